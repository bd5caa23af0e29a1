"""The tool `http_get`: reads from the hosts that the operator allows, and from nowhere else.

Requests go to addresses that were checked (`mesh.serving.pinned_http`). Each redirect is checked like a new
request.
"""

from __future__ import annotations

import codecs
from typing import Annotated
from urllib.parse import urljoin

import httpx
import msgspec
from msgspec import Meta

from mesh.configuration.addresses import is_allowed
from mesh.configuration.tool_tables import HttpGetConfiguration
from mesh.serving import pinned_http
from mesh.serving.pinned_http import AddressForbidden, HostUnresolved, Target
from tool_runner.tools.tool import Call, Tool, ToolRefused, built_in

BODY_BYTES_MAX = 1024 * 1024
"""More is cut off, and the result says so."""
REDIRECTS_MAX = 5
TIMEOUT_SECONDS = 20.0
CHARSETS = frozenset(
    codecs.lookup(name).name
    for name in (
        *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "ascii", "latin-1", "mac-roman"),
        *(f"iso8859-{part}" for part in range(2, 17) if part != 12),  # noqa: PLR2004 - there is no part 12
        *(f"cp{page}" for page in (437, 850, 852, 855, 858, 866, 874, *range(1250, 1259))),
        *("koi8-r", "koi8-u", "gb2312", "gbk", "gb18030", "big5", "big5hkscs", "euc-jp", "euc-kr", "cp949"),
        *("shift_jis", "cp932", "iso2022-jp", "tis-620"),
    )
)
"""Charsets of pages (WHATWG Encoding, and some older ones), by the names of Python's codecs.

Python has others that are no charsets, or take a time that grows with the square of the text: punycode, idna, rot13.
"""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


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
    async with pinned_http.open_client(TIMEOUT_SECONDS) as client:
        at = url
        for _ in range(REDIRECTS_MAX + 1):
            answer = await _get(client, configuration, at)
            if isinstance(answer, Page):
                return msgspec.structs.replace(answer, url=at) if at != url else answer
            at = urljoin(at, answer)
    raise ToolRefused(f"more than {REDIRECTS_MAX} redirects", code="http-failed")


async def _get(client: httpx.AsyncClient, configuration: HttpGetConfiguration, at: str) -> Page | str:
    """One request: its page, or where it is redirected to."""
    target = _checked_target(configuration, at)
    try:
        response = await pinned_http.send(client, "GET", target, allow_private=configuration.allow_private)
    except (HostUnresolved, AddressForbidden) as error:
        raise ToolRefused(str(error), code=error.code) from None
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
    """The charset that the page names, if it is one of text that is read in one go; else UTF-8."""
    try:
        name = codecs.lookup(response.charset_encoding or "utf-8").name
    except (LookupError, ValueError):
        return "utf-8"
    return name if name in CHARSETS else "utf-8"


def _checked_target(configuration: HttpGetConfiguration, at: str) -> Target:
    try:
        target = pinned_http.parse_target(at)
    except ValueError:
        raise ToolRefused("takes http(s)://<host>/… without a user", code="http-forbidden") from None
    if not is_allowed(target.host, target.port, configuration.allowed_hosts):
        raise ToolRefused(f"the operator does not allow {target.host}:{target.port}", code="http-forbidden")
    return target
