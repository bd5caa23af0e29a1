"""Asking a model server how it stands: which page, with what, and within which bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import httpx

from inference_worker.capacity.signals import PAGES, Kind, NotTold, ServerLoad, kind_of_metrics, read
from inference_worker.models.endpoints import endpoint_of
from mesh.configuration.addresses import is_loopback
from mesh.configuration.capacity_table import CapacitySettings
from mesh.configuration.provider_tables import ServerConfiguration

READ_SECONDS: Final = 2.0
"""A page takes milliseconds, to its last byte; one that takes so long says that the server stands still."""
PAGE_BYTES_MAX: Final = 4 * 1024 * 1024
_VENDORS: Final = frozenset({"api.openai.com", "api.anthropic.com"})
_OK: Final = 200


class LoadReader:
    """Reads the load of one server. `kind` is what it was found to be; None while that is not known."""

    def __init__(self, configuration: ServerConfiguration, settings: CapacitySettings, key: str | None) -> None:
        self.kind: Kind | None = None
        self._root = root_of(configuration, settings)
        self._headers = _headers(configuration, self._root, key)
        self._path: str | None = None
        self._is_found = settings.signals == "auto"
        match settings.signals:
            case "auto" | "none":
                pass
            case kind:
                self.kind = kind
        self.asks = settings.signals != "none" and not (settings.signals == "auto" and _is_vendors(configuration))
        """Whether there is anything to be asked: vendors of APIs have no such pages."""

    def forget(self) -> None:
        """It tells nothing any more: where nobody has set its kind, another server may be there by now."""
        if self._is_found:
            self.kind = self._path = None

    @property
    def is_on_loopback(self) -> bool:
        """Whether the server is on this machine, and its GPU is this machine's."""
        return is_loopback(urlsplit(self._root).hostname or "")

    @property
    def is_secure(self) -> bool:
        """Whether TLS is spoken with it."""
        return self._root.lower().startswith("https:")

    async def read(self, client: httpx.AsyncClient) -> ServerLoad:
        """The server's load. Raises `NotTold`, also where it can't be reached."""
        if self.kind is None:
            return await self._find(client)
        paths = PAGES[self.kind] if self._path is None else (self._path,)
        error = NotTold("it has no such page")
        for path in paths:
            try:
                load = read(self.kind, path, await self._page(client, path))
            except NotTold as failed:
                error = failed
                continue
            self._path = path
            return load
        self._path = None
        raise error

    async def _find(self, client: httpx.AsyncClient) -> ServerLoad:
        """What kind of server it is: the first whose page is there."""
        why = ""
        try:
            page = await self._page(client, "/metrics")
            kind = kind_of_metrics(page.decode("utf-8", "replace"))
            if kind is not None and kind != "llama_cpp":
                load = read(kind, "/metrics", page)
                self.kind, self._path = kind, "/metrics"
                return load
        except NotTold as error:
            why = f": {error}"
        others: tuple[tuple[Kind, str], ...] = (
            ("llama_cpp", "/slots"),
            ("llama_cpp", "/metrics"),
            ("ollama", "/api/ps"),
        )
        for kind, path in others:
            try:
                load = read(kind, path, await self._page(client, path))
            except NotTold:
                continue
            self.kind, self._path = kind, path
            return load
        raise NotTold(f"it tells nothing that is known{why}")

    async def _page(self, client: httpx.AsyncClient, path: str) -> bytes:
        said = bytearray()
        try:
            async with (
                asyncio.timeout(READ_SECONDS),
                client.stream("GET", self._root + path, headers=self._headers, timeout=None) as response,
            ):
                if response.status_code != _OK:
                    raise NotTold(f"{path} answers {response.status_code}")
                # As it comes: what is packed may be any size unpacked.
                async for data in response.aiter_raw():
                    said += data
                    if len(said) > PAGE_BYTES_MAX:
                        raise NotTold(f"{path} has more than {PAGE_BYTES_MAX} bytes")
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise NotTold(f"{path} can't be read ({type(error).__name__})") from None
        return bytes(said)


def root_of(configuration: ServerConfiguration, settings: CapacitySettings) -> str:
    """Where a server's pages are: what is set, else `base_url` without its `/v1`."""
    if settings.url is not None:
        return settings.url.rstrip("/")
    return configuration.base_url.rstrip("/").removesuffix("/v1")


def _headers(configuration: ServerConfiguration, root: str, key: str | None) -> Mapping[str, str]:
    """Those of the provider, its key among them, where the pages are the provider's own: nobody else gets a key."""
    plain = {"Accept-Encoding": "identity"}
    if _origin(root) != _origin(configuration.base_url):
        return plain
    return {**configuration.headers, **({"Authorization": f"Bearer {key}"} if key else {}), **plain}


def _origin(address: str) -> tuple[str, str | None, int | None]:
    url = urlsplit(address)
    return url.scheme, url.hostname, url.port


def _is_vendors(configuration: ServerConfiguration) -> bool:
    kind = str(configuration.__struct_config__.tag)
    return configuration.host in _VENDORS or endpoint_of(configuration).provider_name != kind  # type: ignore[arg-type]  # a server's is one of the union
