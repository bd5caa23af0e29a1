"""Where providers are, and what the conventions for generative AI call them: for spans and metrics alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import msgspec

from mesh.configuration.provider_tables import ProviderConfiguration, ScriptedProviderConfiguration

_NAMES_BY_HOST: Final = {
    "api.mistral.ai": "mistral_ai",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.moonshot.ai": "moonshot_ai",
    "api.moonshot.cn": "moonshot_ai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
    "generativelanguage.googleapis.com": "gcp.gemini",
}
"""Vendors that speak OpenAI's wire and have a well-known name of their own."""
_AZURE: Final = ".openai.azure.com"
_PORTS: Final = {"http": 80, "https": 443}
ID_CHARACTERS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A provider for telemetry. Without a server it has no address."""

    provider_name: str
    """`gen_ai.provider.name`: by the kind, or the vendor's where the host is known."""
    server_address: str | None = None
    server_port: int | None = None


_NULL: Final = msgspec.Raw(b"null")


class _Response(msgspec.Struct):
    """The beginning of an answer, of either wire, as far as it is read."""

    id: msgspec.Raw = _NULL
    model: msgspec.Raw = _NULL
    message: msgspec.Raw = _NULL


@dataclass(slots=True)
class Response:
    """What a server calls its answer, and the model that gave it; None as long as it has not said so."""

    id: str | None = None
    model: str | None = None

    def read(self, payload: bytes) -> None:
        """Take what an event says of both. What can't be read says nothing; the answer's own reader complains."""
        try:
            told = msgspec.json.decode(payload, type=_Response)
            if bytes(told.message).startswith(b"{"):
                told = msgspec.json.decode(told.message, type=_Response)
            name, model = _text(told.id), _text(told.model)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        self.id, self.model = self.id or name, self.model or model


_endpoints: dict[str, Endpoint] = {}
_response: ContextVar[Response | None] = ContextVar("response", default=None)


def endpoint_of(configuration: ProviderConfiguration) -> Endpoint:
    """Where a provider is, by its configuration."""
    if isinstance(configuration, ScriptedProviderConfiguration):
        return Endpoint("scripted")
    kind = str(configuration.__struct_config__.tag)
    url = urlsplit(configuration.base_url)
    host = (url.hostname or "").lower()
    name = _NAMES_BY_HOST.get(host, "azure.ai.openai" if host.endswith(_AZURE) else kind)
    return Endpoint(name, host or None, url.port or _PORTS.get(url.scheme))


def know(provider: str, configuration: ProviderConfiguration) -> None:
    """Remember where a provider of that name is. At the start of the process."""
    _endpoints[provider] = endpoint_of(configuration)


def endpoint(provider: str) -> Endpoint:
    """Where a provider is; for one that nobody told of, its name."""
    return _endpoints.get(provider) or Endpoint(provider)


@contextmanager
def listening() -> Iterator[Response]:
    """Learn in the body what the answer to a request is called."""
    response = Response()
    token = _response.set(response)
    try:
        yield response
    finally:
        _response.reset(token)


def heard(payload: bytes) -> None:
    """An event of an answer has come: whoever listens learns from it."""
    response = _response.get()
    if response is not None and response.id is None:
        response.read(payload)


def _text(raw: msgspec.Raw) -> str | None:
    value = msgspec.json.decode(raw)
    return value[:ID_CHARACTERS_MAX] if isinstance(value, str) and value else None
