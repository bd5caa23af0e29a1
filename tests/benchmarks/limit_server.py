"""The limits, as routes of a bare server: no task, no journal, no edge. `python -m tests.benchmarks.limit_server`

It stands on the server, framework and NATS client that the services stand on, so that what differs is the mesh.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from litestar import Litestar, Response, post
from litestar.types import ASGIApp, Receive, Scope, Send

from contracts.api import sse
from contracts.tasks import Message
from inference_worker.dialects.scripted.model import ScriptedProvider
from inference_worker.models.chunks import TextDelta, TurnInput
from mesh.configuration.settings import Address
from mesh.serving.http import EXCEPTION_HANDLERS, AnyRequest, serve
from mesh.serving.listening import address_of, bind
from mesh.serving.service import Service, run
from stream_edge.stream import HEADERS

LIMIT_SUBJECT = "limit.default.normal.default"
FRAME_EVENT = "output.delta"


def turn_input(text: str) -> TurnInput:
    """A call of the model with one message."""
    return TurnInput(
        messages=[Message("user", text)],
        model="scripted",
        max_output_tokens=None,
        temperature=None,
        prefix="",
        tries=0,
        deliveries=1,
    )


class FanOut:
    """Writes one frame to all viewers, again and again, as soon as the last of them is there."""

    def __init__(self) -> None:
        self._sends: list[Send] = []
        self._done = asyncio.Event()

    async def serve(self, viewers: int, events: int, per_second: float, frame: bytes, send: Send) -> None:
        """One viewer's stream."""
        await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
        await send({"type": "http.response.body", "body": sse.retry(sse.RETRY_MILLISECONDS), "more_body": True})
        self._sends.append(send)
        done = self._done
        if len(self._sends) == viewers:
            sends, self._sends, self._done = self._sends, [], asyncio.Event()
            await self._write_all(sends, events, per_second, frame)
            done.set()
        await done.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write_all(self, sends: list[Send], events: int, per_second: float, frame: bytes) -> None:
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        for number in range(events):
            await asyncio.sleep(max(0.0, began_at + number / per_second - loop.time()))
            for send in sends:
                await send({"type": "http.response.body", "body": frame, "more_body": True})


def _streaming(generate: Callable[[], AsyncGenerator[bytes, None]]) -> ASGIApp:
    async def send_stream(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
        async for data in generate():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_stream


def create_app(service: Service) -> ASGIApp:
    """The limit routes; `/sse` is below the framework: bare uvicorn."""
    fan_out = FanOut()
    provider = ScriptedProvider(exit_allowed=False)

    @post("/noop", status_code=202)
    async def noop(request: AnyRequest) -> Response[bytes]:
        await request.body()
        return Response(b"{}", media_type="application/json")

    @post("/publish", status_code=202)
    async def publish(request: AnyRequest) -> Response[bytes]:
        await service.requests.publish(LIMIT_SUBJECT, await request.body())
        return Response(b"{}", media_type="application/json")

    @post("/direct", status_code=200)
    async def direct(request: AnyRequest) -> ASGIApp:
        text = (await request.body()).decode()

        async def generate() -> AsyncGenerator[bytes, None]:
            async for chunk in provider.stream(turn_input(text)):
                if isinstance(chunk, TextDelta):
                    yield sse.frame(1, FRAME_EVENT, chunk.text.encode())

        return _streaming(generate)

    app = Litestar(
        route_handlers=[noop, publish, direct],
        exception_handlers=EXCEPTION_HANDLERS,
        openapi_config=None,
        logging_config=None,
        debug=False,
    )

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith("/sse/"):
            viewers, events, per_second, size = scope["path"].split("/")[2:]
            frame = sse.frame(1, FRAME_EVENT, b"x" * int(size))
            await fan_out.serve(int(viewers), int(events), float(per_second), frame, send)
        else:
            await app(scope, receive, send)

    return dispatch


async def main(service: Service) -> None:
    """Serve until told to stop."""
    listener = bind(Address("127.0.0.1", 0), "limit_server")
    await serve(create_app(service), listener, service.stopping, service.ready(str(address_of(listener))))


if __name__ == "__main__":
    run("limit_server", main)
