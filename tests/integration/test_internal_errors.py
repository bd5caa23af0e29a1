"""Whatever breaks while a request is served: the client gets a problem, and the log a line."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from litestar import Litestar, Response, get
from litestar.types import Receive, Scope, Send
from structlog.testing import capture_logs

from mesh.errors import BrokerUnavailable, JournalCorrupt
from mesh.serving import http
from mesh.serving.http import EXCEPTION_HANDLERS, AnyRequest, answer_directly
from tests.support.serving import served
from tests.support.waiting import until

pytestmark = pytest.mark.integration


async def corrupt(_: AnyRequest) -> Response[bytes]:
    raise JournalCorrupt("n has a hole")


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    match scope["path"]:
        case "/direct":
            await answer_directly(corrupt, scope, receive, send)
        case "/outside":
            raise ZeroDivisionError("outside of the framework")
        case "/away":
            raise BrokerUnavailable("nobody there")
        case "/begun":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise ZeroDivisionError("in the middle")


@get("/inside")
async def inside() -> None:
    raise ZeroDivisionError("inside of the framework")


async def test_every_500_is_a_problem_and_has_a_line_in_the_log() -> None:
    framework = Litestar([inside], exception_handlers=EXCEPTION_HANDLERS, logging_config=None, openapi_config=None)

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        await (framework if scope["path"] == "/inside" else app)(scope, receive, send)

    async with served(both) as (url, _), httpx.AsyncClient() as client:
        away = await client.get(url + "/away")
        assert away.status_code == 503
        assert (away.json()["code"], away.headers["retry-after"]) == ("broker-unavailable", "1")
        for path in ("/direct", "/outside", "/inside"):
            with capture_logs() as lines:
                answer = await client.get(url + path)
            assert answer.status_code == 500, path
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["code"] == "internal"
            assert [(line["event"], line["path"]) for line in lines] == [("http.internal_error", path)]
        with capture_logs() as lines, pytest.raises(httpx.RemoteProtocolError):
            await client.get(url + "/begun")
        assert [line["event"] for line in lines] == ["http.internal_error"]


async def test_a_request_that_a_stop_cuts_off_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SHUTDOWN_SECONDS", 1)
    asked = asyncio.Event()

    async def waits(_: Scope, __: Receive, ___: Send) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with served(waits) as (url, stopping), httpx.AsyncClient() as client:
        answer = asyncio.create_task(client.get(url))
        await asked.wait()
        stopping.set()
        await until(answer.done)
        assert (await answer).status_code == 503
        assert (await answer).headers["retry-after"]
