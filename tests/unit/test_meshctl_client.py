"""The client: what it makes of frames, of answers that are no stream, and of connections that break. No sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing

import httpx
import pytest

from contracts.api import sse
from contracts.api.inputs import ApprovalInput, MessageInput
from contracts.api.sse import Frame
from contracts.codec import encode
from contracts.errors import problem
from meshctl import client as client_module
from meshctl.client import Client, Cursor, Received, Reconnection
from meshctl.errors import ApiError, StreamBroken, Unreachable

TASK = "01m7wh5eyc81mpvdjs4a849g13"


def payload(n: int, event_type: str = "output.delta") -> bytes:
    return encode({"type": event_type, "id": TASK, "task": TASK, "tenant": "default", "n": n})


def frame(sequence: int, n: int, event_type: str = "output.delta") -> Frame:
    return Frame(str(sequence), event_type, payload(n, event_type).decode())


GAP = Frame("", "stream.gap", encode({"type": "stream.gap", "task": TASK, "tenant": "t", "from": 9, "to": 4}).decode())
SNAPSHOT = {"type": "snapshot", "task": TASK, "tenant": "t", "n": 7, "status": "running", "turns": []}


def test_the_cursor_moves_with_each_event() -> None:
    cursor = Cursor()
    assert [cursor.advance(frame(sequence, n)).cursor for n, sequence in enumerate((5, 6, 9))] == [5, 6, 9]


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        (frame(5, 1), "sequence 5 .* came after 5"),
        (frame(4, 1), "sequence 4 .* came after 5"),
        (frame(6, 0), "n=0 came where n=1 was due"),
        (frame(6, 2), "n=2 came where n=1 was due"),
        (Frame("", "output.delta", payload(1).decode()), "no sequence"),
        (Frame("six", "output.delta", payload(1).decode()), "no sequence"),
    ],
)
def test_what_comes_twice_backwards_or_with_a_hole_is_refused(second: Frame, complaint: str) -> None:
    cursor = Cursor()
    cursor.advance(frame(5, 0))
    with pytest.raises(StreamBroken, match=complaint):
        cursor.advance(second)


def test_a_resumed_stream_begins_at_any_n_and_is_dense_from_there() -> None:
    cursor = Cursor(after=5)
    cursor.advance(frame(6, 41))
    with pytest.raises(StreamBroken):
        cursor.advance(frame(7, 43))


def test_after_a_gap_a_snapshot_may_lead_back_and_n_goes_on_behind_it() -> None:
    cursor = Cursor(after=9)
    assert cursor.advance(GAP) == Received(9, "stream.gap", GAP.data.encode())
    assert cursor.advance(Frame("4", "snapshot", encode(SNAPSHOT).decode())).cursor == 4
    cursor.advance(frame(5, 8))
    with pytest.raises(StreamBroken):
        cursor.advance(Frame("4", "snapshot", encode(SNAPSHOT).decode()))


def test_reconnecting_waits_as_long_as_the_server_asked_doubled_and_bounded() -> None:
    reconnection = Reconnection()
    assert [reconnection.delay_seconds() for _ in range(6)] == [1, 2, 4, 8, 15, 15]
    reconnection.succeeded()
    reconnection.retry_seconds = 0.2
    assert reconnection.delay_seconds() == pytest.approx(0.2)
    assert reconnection.delay_seconds(retry_after_seconds=3) == 3
    assert reconnection.delay_seconds(retry_after_seconds=3600) == 15
    reconnection.retry_seconds = 0
    reconnection.succeeded()
    assert reconnection.delay_seconds() > 0


class Edge(httpx.AsyncBaseTransport):
    """Answers each request with the next of its answers, and remembers what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self._answers = list(answers)
        self.asked: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def cursors(self) -> list[str | None]:
        return [request.headers.get("last-event-id") for request in self.asked]


def stream(*chunks: bytes | Exception) -> httpx.Response:
    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    return httpx.Response(200, headers={"content-type": "text/event-stream; charset=utf-8"}, content=body())


def events(*numbered: tuple[int, int, str]) -> bytes:
    return b"".join(sse.frame(sequence, kind, payload(n, kind)) for sequence, n, kind in numbered)


def refusal(code: str) -> httpx.Response:
    document = problem(code, "because")
    return httpx.Response(document.status, content=encode(document))


async def follow(edge: Edge, after: int = 0, appears_within_seconds: float = 0.0) -> list[int]:
    async with (
        Client("http://127.0.0.1:1", "http://127.0.0.1:2", transport=edge) as client,
        aclosing(client.follow(TASK, after, appears_within_seconds=appears_within_seconds)) as received,
    ):
        return [event.cursor async for event in received]


START, DELTA, END = (7, 0, "task.queued"), (8, 1, "output.delta"), (9, 2, "task.completed")
SOON = sse.retry(1)


async def test_it_resumes_after_the_last_event_until_the_task_has_ended() -> None:
    edge = Edge(
        stream(SOON, events(START)[:-1], events(START)[-1:] + events(DELTA)[:20], httpx.ReadError("reset")),
        stream(SOON, sse.comment("idle")),
        httpx.ConnectError("refused"),
        refusal("broker-unavailable"),
        stream(SOON, events(DELTA) + events(END) + events((10, 3, "output.delta"))),
    )
    assert await follow(edge) == [7, 8, 9]
    assert edge.cursors == [None, "7", "7", "7", "7"]


async def test_a_cursor_at_the_end_has_nothing_more_to_come() -> None:
    assert await follow(Edge(httpx.Response(204)), after=9) == []


async def test_nobody_there_the_first_time_is_said_at_once() -> None:
    with pytest.raises(Unreachable, match="refused"):
        await follow(Edge(httpx.ConnectError("refused")))


async def test_an_outage_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "OUTAGE_SECONDS_MAX", 0.2)
    edge = Edge(stream(SOON, events(START)), *[httpx.ConnectError("refused") for _ in range(20)])
    with pytest.raises(Unreachable):
        await follow(edge)


async def test_an_unknown_task_is_an_error_with_its_code() -> None:
    with pytest.raises(ApiError) as caught:
        await follow(Edge(refusal("not-found")))
    assert (caught.value.code, str(caught.value)) == ("not-found", "because")


async def test_a_task_just_accepted_may_appear_a_moment_later() -> None:
    edge = Edge(refusal("not-found"), refusal("not-found"), stream(events(START, DELTA, END)))
    assert await follow(edge, appears_within_seconds=5) == [7, 8, 9]


async def test_a_task_that_is_gone_after_it_was_seen_is_an_error() -> None:
    edge = Edge(stream(SOON, events(START)), refusal("not-found"))
    with pytest.raises(ApiError):
        await follow(edge, appears_within_seconds=5)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (httpx.Response(200, content=b"<html>"), "no event stream"),
        (stream(events(START), events(START)), "came after"),
        (stream(sse.frame(7, "output.delta", b"{}")), "missing required field"),
    ],
)
async def test_what_is_no_stream_of_a_journal_is_refused(answer: httpx.Response, complaint: str) -> None:
    with pytest.raises(StreamBroken, match=complaint):
        await follow(Edge(answer))


async def test_what_is_said_is_posted_with_its_key_if_it_has_one() -> None:
    record = {
        "id": TASK, "tenant": "default", "status": "waiting", "pool": "default", "priority": "normal",
        "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z", "sequence": 9,
    }  # fmt: skip
    edge = Edge(*[httpx.Response(202, content=encode(record)) for _ in range(2)])
    async with Client("http://127.0.0.1:1", "http://127.0.0.1:2", transport=edge) as client:
        answer = await client.say(TASK, ApprovalInput(call="1-0", decision="denied"))
        await client.say(TASK, MessageInput(text="Q3", mode="redirect"), "k")
    assert (answer.value.status, answer.raw) == ("waiting", encode(record))
    assert [(request.method, request.url.path) for request in edge.asked] == [("POST", f"/v1/tasks/{TASK}/inputs")] * 2
    assert [request.headers.get("idempotency-key") for request in edge.asked] == [None, "k"]
    assert [json.loads(request.content) for request in edge.asked] == [
        {"kind": "approval", "call": "1-0", "decision": "denied"},
        {"kind": "message", "text": "Q3", "mode": "redirect"},
    ]


async def test_an_answer_that_is_no_problem_document_is_named_by_its_status() -> None:
    edge = Edge(httpx.Response(418, content=b"short and stout"))
    async with Client("http://127.0.0.1:1", "http://127.0.0.1:2", transport=edge) as client:
        with pytest.raises(ApiError, match="answered 418") as caught:
            await client.get("../x")
    assert caught.value.status == 418
    assert edge.asked[0].url.raw_path == b"/v1/tasks/..%2Fx"
