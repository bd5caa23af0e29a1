"""The tool `http_get`: reads from the hosts that the operator allows, and from nowhere else.

A name is resolved here, its addresses are checked, and the connection goes to the address that was checked: a name that
resolves differently a moment later (DNS rebinding) gains nothing. Each redirect is checked as if it were a new request.
"""

from __future__ import annotations

import asyncio
import codecs
import socket
from typing import Annotated
from urllib.parse import urljoin

import httpx
import msgspec
from msgspec import Meta

from contracts import VERSION
from mesh.tool_configuration import HttpGetConfiguration
from tool_runner.addresses import is_allowed, is_public
from tool_runner.tools import Call, Tool, ToolRefused, built_in

BODY_BYTES_MAX = 1024 * 1024
"""More is cut off, and the result says so."""
REDIRECTS_MAX = 5
TIMEOUT_SECONDS = 20.0
CONNECT_SECONDS = 5.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PORTS = {"http": 80, "https": 443}


class HttpGetArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An address to read, `http` or `https`."""

    url: Annotated[str, Meta(min_length=1, max_length=4096)]


class Page(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was read. `url` is there after a redirect, `truncated` if there was more."""

    status: int
    content_type: str
    body: str
    url: str | None = None
    truncated: bool = False


def http_get(configuration: HttpGetConfiguration) -> Tool[HttpGetArguments]:
    """The tool, with the hosts that the operator allows."""

    async def run(arguments: HttpGetArguments, call: Call) -> Page:
        try:
            return await _read(configuration, arguments.url)
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            raise ToolRefused(f"no answer from {arguments.url[:200]}: {said}", code="http-failed") from None

    return built_in(
        "http_get",
        f"Reads an http or https address (GET) of an allowed host. Gives status, content type and up to "
        f"{BODY_BYTES_MAX} bytes of the body as text.",
        HttpGetArguments,
        run,
        timeout_seconds=TIMEOUT_SECONDS,
    )


async def _read(configuration: HttpGetConfiguration, url: str) -> Page:
    # Without the environment's proxies: what they connect to can't be checked here.
    timeout = httpx.Timeout(TIMEOUT_SECONDS, connect=CONNECT_SECONDS)
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=timeout) as client:
        at = url
        for _ in range(REDIRECTS_MAX + 1):
            answer = await _get(client, configuration, at)
            if isinstance(answer, Page):
                return msgspec.structs.replace(answer, url=at) if at != url else answer
            at = urljoin(at, answer)
    raise ToolRefused(f"more than {REDIRECTS_MAX} redirects", code="http-failed")


async def _get(client: httpx.AsyncClient, configuration: HttpGetConfiguration, at: str) -> Page | str:
    """One request: its page, or where it is redirected to."""
    url, host, port = _checked_url(configuration, at)
    address = await _checked_address(configuration, host, port)
    request = client.build_request(
        "GET",
        url.copy_with(host=address, fragment=None),
        headers={
            "Host": url.netloc.decode("ascii"),
            "User-Agent": f"taskmesh/{VERSION}",
            # What is compressed has no bound until it is unpacked.
            "Accept-Encoding": "identity",
        },
        # The certificate is held against the name, not against the address.
        extensions={"sni_hostname": host},
    )
    response = await client.send(request, stream=True)
    try:
        location = response.headers.get("location")
        if response.status_code in _REDIRECTS and location:
            return str(location)
        return await _page(response)
    finally:
        await response.aclose()


async def _page(response: httpx.Response) -> Page:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise ToolRefused("the server sends compressed content unasked", code="http-failed")
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > BODY_BYTES_MAX:
            break
    content_type = response.headers.get("content-type", "")
    text = bytes(body[:BODY_BYTES_MAX]).decode(_charset(response), "replace")
    return Page(response.status_code, content_type[:256], text, truncated=len(body) > BODY_BYTES_MAX)


def _charset(response: httpx.Response) -> str:
    try:
        name = codecs.lookup(response.charset_encoding or "utf-8").name
        b"".decode(name)
    except (LookupError, ValueError):
        return "utf-8"
    return name


def _checked_url(configuration: HttpGetConfiguration, at: str) -> tuple[httpx.URL, str, int]:
    try:
        url = httpx.URL(at)
    except (httpx.InvalidURL, ValueError):
        raise ToolRefused("not an address that can be read", code="http-forbidden") from None
    if url.scheme not in _PORTS or not url.host or url.userinfo:
        raise ToolRefused("takes http(s)://<host>/… without a user", code="http-forbidden")
    host = url.raw_host.decode("ascii").lower().rstrip(".")
    port = url.port or _PORTS[url.scheme]
    if not is_allowed(host, port, configuration.allowed_hosts):
        raise ToolRefused(f"the operator does not allow {host}:{port}", code="http-forbidden")
    return url, host, port


async def _checked_address(configuration: HttpGetConfiguration, host: str, port: int) -> str:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError):
        raise ToolRefused(f"{host} has no address", code="http-failed") from None
    addresses = [str(each[4][0]) for each in found]
    if not addresses or (not configuration.allow_private and not all(is_public(address) for address in addresses)):
        # One private address among public ones is no accident.
        raise ToolRefused(f"{host} has an address that is not public", code="http-forbidden")
    return addresses[0]
