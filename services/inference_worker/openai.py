"""Any OpenAI-compatible chat completions server as a source of turns, over httpx.

What a server sends is read in `openai_stream`, what its errors mean is in `openai_errors`; here are the connection, the
times, and the end. Three clocks run: for the connection, for the first token, and for each one after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import msgspec

from contracts import VERSION
from inference_worker.chunks import Chunk, TurnInput
from inference_worker.openai_errors import ProviderFailed, failure_in_stream, failure_of_status
from inference_worker.openai_stream import Answer, LineReader
from mesh.clock import now
from mesh.configuration import OpenAIProviderConfiguration

KEEPALIVE_SECONDS = 4.0
"""How long an idle connection is kept: uvicorn, which vLLM runs on, closes it after 5 s."""
USAGE_SECONDS = 5.0
"""How long the usage may take once the model has finished: the answer is whole without it."""
DRAIN_SECONDS = 0.2
"""How long the end of the response may take after `[DONE]`: then the connection can be used again."""
ERROR_BODY_BYTES_MAX = 64 * 1024
ERROR_BODY_SECONDS = 5.0
_OPENAI_HOST = "api.openai.com"
_NO_STREAM = ("application/json", "text/html")


def open_client(configuration: OpenAIProviderConfiguration, key: str | None, connections_max: int) -> httpx.AsyncClient:
    """The connections to one server. Proxies and certificates are those of the environment, as httpx knows it."""
    headers = {
        "Accept": "text/event-stream",
        # A compressed stream is a delayed one.
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": f"taskmesh/{VERSION}",
        **configuration.headers,
    }
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return httpx.AsyncClient(
        headers=headers,
        # Each read has a clock of ours: httpx's would begin anew with every comment that keeps the connection alive.
        timeout=httpx.Timeout(None, connect=configuration.connect_seconds),
        limits=httpx.Limits(
            max_connections=connections_max,
            max_keepalive_connections=connections_max,
            keepalive_expiry=KEEPALIVE_SECONDS,
        ),
    )


class OpenAIProvider:
    """One server. `name` is the one that the configuration gives it."""

    def __init__(
        self, name: str, configuration: OpenAIProviderConfiguration, client: httpx.AsyncClient, key: str | None = None
    ) -> None:
        self.name = name
        self.continues_prefix = configuration.continue_prefix is not None
        self._configuration = configuration
        self._client = client
        self._key = key
        self._url = httpx.URL(f"{configuration.base_url.rstrip('/')}/chat/completions")

    async def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        """Generate a turn. Raises `ProviderFailed`. Closing the generator closes the connection at once."""
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + self._configuration.first_token_seconds
        try:
            response = await self._open(turn, give_up_at)
            try:
                # The response's iterator is a generator, whatever its type says; it is closed here, not by chance.
                chunks = cast("AsyncGenerator[bytes, None]", response.aiter_bytes())
                async with aclosing(chunks) as body:
                    lines, answer = LineReader(), Answer()
                    while not answer.done:
                        data = await _read(body, give_up_at, answer)
                        if data is None:
                            for chunk in answer.take_last(lines.end()):
                                yield chunk
                            break
                        for payload in lines.feed(data):
                            for chunk in answer.take(payload):
                                yield chunk
                        if answer.finish_reason is not None:
                            give_up_at = clock() + USAGE_SECONDS
                        elif answer.begun:
                            give_up_at = clock() + self._configuration.between_tokens_seconds
                    finished = answer.finished()
                    await _drain(body)
                    yield finished
            finally:
                await response.aclose()
        except ProviderFailed as error:
            if self._key and error.detail:
                error.detail = error.detail.replace(self._key, "[key]")
            raise

    async def _open(self, turn: TurnInput, give_up_at: float) -> httpx.Response:
        """Send the request, and wait for the head of the answer. Raises what an answer that is no stream stands for."""
        body = request_body(self._configuration, turn)
        request = self._client.build_request("POST", self._url, content=msgspec.json.encode(body))
        with _translated():
            async with asyncio.timeout_at(give_up_at):
                response = await self._client.send(request, stream=True)
        content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.status_code == httpx.codes.OK and content_type not in _NO_STREAM:
            return response
        try:
            said = await _error_body(response)
        finally:
            await response.aclose()
        if response.status_code != httpx.codes.OK:
            raise failure_of_status(response.status_code, response.headers, said, now())
        raise _no_stream(said, content_type)


def request_body(configuration: OpenAIProviderConfiguration, turn: TurnInput) -> dict[str, Any]:
    """The body of the request."""
    body: dict[str, Any] = {
        "model": turn.model,
        "messages": [{"role": message.role, "content": message.content} for message in turn.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if turn.max_output_tokens is not None:
        body[_max_tokens_field(configuration)] = turn.max_output_tokens
    if turn.temperature is not None:
        body["temperature"] = turn.temperature
    if turn.prefix and configuration.continue_prefix == "vllm":
        body["messages"].append({"role": "assistant", "content": turn.prefix})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def _max_tokens_field(configuration: OpenAIProviderConfiguration) -> str:
    """OpenAI's newer models refuse the old name; many other servers ignore the new one."""
    if configuration.max_tokens_field is not None:
        return configuration.max_tokens_field
    return "max_completion_tokens" if urlsplit(configuration.base_url).hostname == _OPENAI_HOST else "max_tokens"


async def _read(body: AsyncGenerator[bytes, None], give_up_at: float, answer: Answer) -> bytes | None:
    """More of the answer; None at its end. Once the model has finished, a failure is as good as the end."""
    try:
        with _translated():
            async with asyncio.timeout_at(give_up_at):
                return await anext(body, None)
    except ProviderFailed:
        if answer.finish_reason is None:
            raise
        return None


async def _drain(body: AsyncGenerator[bytes, None]) -> None:
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while await anext(body, None) is not None:
                pass
    except (TimeoutError, httpx.HTTPError):
        pass  # Then the connection is closed with the response.


async def _error_body(response: httpx.Response) -> bytes:
    """As much of the body as comes in time: it is there to be shown."""
    said = bytearray()
    try:
        async with asyncio.timeout(ERROR_BODY_SECONDS):
            async for data in response.aiter_bytes():
                said += data
                if len(said) >= ERROR_BODY_BYTES_MAX:
                    break
    except (TimeoutError, httpx.HTTPError):
        pass
    return bytes(said[:ERROR_BODY_BYTES_MAX])


def _no_stream(said: bytes, content_type: str) -> ProviderFailed:
    try:
        value = msgspec.json.decode(said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    if isinstance(value, dict) and (value.get("error") or value.get("object") == "error"):
        return failure_in_stream(value)
    return ProviderFailed("provider-error", f"the answer is {content_type}, and no stream: is base_url right?")


@contextmanager
def _translated() -> Iterator[None]:
    """Failures of the connection as the step's. Their texts name addresses and system errors, no payloads."""
    try:
        yield
    except TimeoutError:
        raise ProviderFailed("provider-timeout", "no token came in time", retryable=True) from None
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        said = str(error) or "no connection in time"
        raise ProviderFailed("provider-unreachable", f"no connection: {said}", retryable=True) from None
    except httpx.HTTPError as error:
        said = f"the connection broke ({type(error).__name__})"
        raise ProviderFailed("provider-disconnected", said, retryable=True) from None
