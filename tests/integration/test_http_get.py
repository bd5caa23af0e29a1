"""`http_get` against a real server: what it reads, and what it refuses to go near."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh.configuration.tool_tables import HttpGetConfiguration
from tests.support.broker import free_port
from tests.support.web_server import WebServer, web_server
from tool_runner.tools.http_get import BODY_BYTES_MAX, REDIRECTS_MAX, HttpGetArguments, Page, http_get
from tool_runner.tools.tool import ToolRefused

pytestmark = pytest.mark.integration

UNUSED: Any = None


@pytest.fixture
async def web() -> AsyncIterator[WebServer]:
    async with web_server() as server:
        yield server


async def get(url: str, *hosts: str, allow_private: bool = True) -> Page:
    tool = http_get(HttpGetConfiguration(allowed_hosts=list(hosts), allow_private=allow_private))
    result = await tool.run(HttpGetArguments(url), UNUSED)
    assert isinstance(result, Page)
    return result


async def refusal(url: str, *hosts: str, allow_private: bool = True) -> str:
    with pytest.raises(ToolRefused) as refused:
        await get(url, *hosts, allow_private=allow_private)
    return refused.value.code


async def test_a_page_of_an_allowed_host_is_read(web: WebServer) -> None:
    web.answer("/a?b=c", "grüße".encode(), content_type="text/plain; charset=utf-8")
    page = await get(f"http://localhost:{web.port}/a?b=c#part", f"localhost:{web.port}")
    assert page == Page(200, "text/plain; charset=utf-8", "grüße")
    (head,) = web.requests
    assert head.startswith("GET /a?b=c HTTP/1.1\r\n")
    assert f"\r\nhost: localhost:{web.port}\r\n" in head.lower()


async def test_the_charset_is_the_one_that_the_server_names(web: WebServer) -> None:
    web.answer("/a", "ü".encode("latin-1"), content_type="text/html; charset=iso-8859-1")
    web.answer("/b", b"\xff", content_type="text/html; charset=nonsense")
    assert (await get(f"http://127.0.0.1:{web.port}/a", f"127.0.0.1:{web.port}")).body == "ü"
    assert (await get(f"http://127.0.0.1:{web.port}/b", f"127.0.0.1:{web.port}")).body == "\ufffd"


@pytest.mark.parametrize(
    "charset", ["punycode", "idna", "rot13", "base64", "unicode_escape", "undefined", "zlib", "utf-7"]
)
async def test_a_codec_that_is_no_charset_is_not_used(web: WebServer, charset: str) -> None:
    # With an escape of unicode_escape and one of utf-7: to these "a-b" says what it says to everybody.
    text = r"a-b \x41 +AEE- " * 1_000
    web.answer("/a", text.encode(), content_type=f"text/plain; charset={charset}")
    assert (await get(f"http://127.0.0.1:{web.port}/a", f"127.0.0.1:{web.port}")).body == text


async def test_an_error_page_is_a_page(web: WebServer) -> None:
    assert (await get(f"http://127.0.0.1:{web.port}/none", f"127.0.0.1:{web.port}")).status == 404


async def test_a_page_that_is_too_long_is_cut_and_says_so(web: WebServer) -> None:
    web.answer("/", b"x" * (BODY_BYTES_MAX * 4))
    page = await get(f"http://127.0.0.1:{web.port}/", f"127.0.0.1:{web.port}")
    assert (len(page.body), page.truncated) == (BODY_BYTES_MAX, True)


async def test_what_is_compressed_unasked_is_refused(web: WebServer) -> None:
    web.answer("/", b"\x1f\x8b", content_encoding="gzip")
    assert await refusal(f"http://127.0.0.1:{web.port}/", f"127.0.0.1:{web.port}") == "http-failed"


async def test_a_redirect_is_followed_and_the_result_says_where_it_led(web: WebServer) -> None:
    web.answer("/a", status="302 Found", location="/b")
    web.answer("/b", b"there")
    page = await get(f"http://127.0.0.1:{web.port}/a", f"127.0.0.1:{web.port}")
    assert (page.body, page.url) == ("there", f"http://127.0.0.1:{web.port}/b")


@pytest.mark.parametrize(
    "location", ["http://example.com/", "//example.com/", "file:///etc/passwd", "http://127.0.0.1:1/"]
)
async def test_a_redirect_to_what_is_not_allowed_is_refused(web: WebServer, location: str) -> None:
    web.answer("/", status="301 Moved", location=location)
    assert await refusal(f"http://127.0.0.1:{web.port}/", f"127.0.0.1:{web.port}") == "http-forbidden"


async def test_redirects_come_to_an_end(web: WebServer) -> None:
    web.answer("/", status="307 Again", location="/")
    assert await refusal(f"http://127.0.0.1:{web.port}/", f"127.0.0.1:{web.port}") == "http-failed"
    assert len(web.requests) == REDIRECTS_MAX + 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_an_allowed_name_with_a_private_address_is_refused_unless_the_operator_says_so(
    web: WebServer, host: str
) -> None:
    url = f"http://{host}:{web.port}/"
    assert await refusal(url, f"{host}:{web.port}", allow_private=False) == "http-forbidden"
    assert web.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "http://user:secret@allowed.example/",
        "http:///",
        "allowed.example",
        "http://allowed.example@127.0.0.1/",
        "http://[::1]/",
        "http://2130706433/",
        "http://allowed.example:22/",
        "\0",
    ],
)
async def test_addresses_that_are_not_on_the_list_are_refused(url: str) -> None:
    assert await refusal(url, "allowed.example") == "http-forbidden"


async def test_a_host_that_does_not_answer_is_a_failed_call_and_no_crash() -> None:
    port = free_port()
    assert await refusal(f"http://127.0.0.1:{port}/", f"127.0.0.1:{port}") == "http-failed"
