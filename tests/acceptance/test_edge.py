"""The stream edge: what a stream begins, idles and ends with, who may read it, and that nothing is lost in it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
import pytest_asyncio
from litestar.types import HTTPReceiveMessage, Message

from contracts.api.sse import Decoder
from mesh.broker.connection import Connection, connect
from mesh.journal.following import Following
from stream_edge import stream
from tests.support.checker import ClientHistory, check_history, read_stored
from tests.support.clients import Viewer
from tests.support.http_client import PatientClient
from tests.support.patience import within
from tests.support.processes import Mesh, running_mesh
from tests.support.tasks import append_text, begin_journal, complete_turn, end_task, turn_work
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

on_the_modules_loop = pytest.mark.asyncio(loop_scope="module")

ORIGIN = "https://app.example"


@dataclass
class Bench:
    """Ingress, edge and a worker."""

    mesh: Mesh
    connection: Connection
    ingress: httpx.AsyncClient
    edge: httpx.AsyncClient

    async def finished(self, text: str = "hello") -> str:
        """An ended task."""
        response = await self.ingress.post("/v1/tasks", json={"input": text}, headers={"Prefer": "wait=20"}, timeout=30)
        assert response.status_code == 200
        return str(response.json()["id"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """A mesh that the following cases share."""
    async with (
        running_mesh(tmp_path_factory.mktemp("bench"), "ingress", "stream_edge", "inference_worker") as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url) as ingress,
        PatientClient(base_url=mesh.edge_url) as edge,
    ):
        yield Bench(mesh, connection, ingress, edge)
        assert mesh.tracebacks() == []


@on_the_modules_loop
async def test_a_stream_begins_with_one_retry_in_the_block_of_its_first_event_and_ends_with_the_task(
    bench: Bench,
) -> None:
    task = await bench.finished()
    response = await bench.edge.get(f"/v1/tasks/{task}/events")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.text.startswith("retry: 1000\nid: ")
    assert response.text.count("retry: ") == 1
    after_retry = response.text.removeprefix("retry: 1000\n").removesuffix("\n\n")
    blocks = [block.split("\n") for block in after_retry.split("\n\n")]
    assert all([line.partition(": ")[0] for line in block] == ["id", "event", "data"] for block in blocks)
    assert [block[1] for block in blocks][:: len(blocks) - 1] == ["event: task.queued", "event: task.completed"]


@on_the_modules_loop
async def test_a_cursor_at_or_after_the_end_is_answered_with_no_content(bench: Bench) -> None:
    task = await bench.finished()
    await bench.finished("something later in the stream")
    history = await Viewer(str(bench.mesh.settings.edge_address), task).follow()
    last, before_last = history.frames[-1].sequence, history.frames[-2].sequence
    assert last is not None
    events = f"/v1/tasks/{task}/events"
    for cursor in (last, last + 1):
        for response in (
            await bench.edge.get(events, headers={"Last-Event-ID": str(cursor)}),
            await bench.edge.get(events, params={"after": cursor}),
        ):
            assert (response.status_code, response.content) == (204, b"")
            assert response.headers["cache-control"] == "no-store"
    # The header is what a browser adds by itself when it comes back: it outranks the query of the first time.
    resumed = await bench.edge.get(events, params={"after": 0}, headers={"Last-Event-ID": str(before_last)})
    assert re.findall(r"^id: (\d+)$", resumed.text, re.MULTILINE) == [str(last)]


@on_the_modules_loop
async def test_pages_of_configured_origins_may_read_streams_and_others_may_not(bench: Bench) -> None:
    task = await bench.finished()
    events = f"/v1/tasks/{task}/events"
    preflight = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "last-event-id,mesh-tenant",
    }
    edge = await bench.mesh.start("stream_edge", MESH_EDGE_ADDRESS="127.0.0.1:0", MESH_EDGE_CORS_ORIGINS=ORIGIN)
    try:
        async with PatientClient(base_url=f"http://{edge.address}") as client:
            asked = await client.options(events, headers=preflight)
            assert asked.status_code in (200, 204)
            assert asked.headers["access-control-allow-origin"] == ORIGIN
            assert asked.headers["access-control-allow-methods"] == "GET"
            allowed = asked.headers["access-control-allow-headers"].lower().split(", ")
            assert {"last-event-id", "mesh-tenant"} <= set(allowed)
            for path, status in ((events, 200), (f"{events}?after={10**15}", 200), ("/v1/tasks/nope/events", 404)):
                response = await client.get(path, headers={"Origin": ORIGIN})
                assert response.status_code == status
                assert response.headers["access-control-allow-origin"] == ORIGIN
                assert "access-control-allow-credentials" not in response.headers
            for response in (
                await client.get(events, headers={"Origin": "https://evil.example"}),
                await client.options(events, headers={**preflight, "Origin": "https://evil.example"}),
            ):
                assert "access-control-allow-origin" not in response.headers
    finally:
        await edge.stop()
    for response in (
        await bench.edge.get(events, headers={"Origin": ORIGIN}),
        await bench.edge.options(events, headers=preflight),
    ):
        assert not [name for name in response.headers if name.startswith("access-control-")]


@on_the_modules_loop
async def test_one_stream_too_many_is_told_when_to_come_back(bench: Bench) -> None:
    edge = await bench.mesh.start("stream_edge", MESH_EDGE_ADDRESS="127.0.0.1:0", MESH_EDGE_STREAMS_MAX="1")
    try:
        journal = await begin_journal(bench.connection.requests, turn_work())
        events = f"http://{edge.address}/v1/tasks/{journal.state.task}/events"
        async with PatientClient() as client:
            async with client.stream("GET", events) as first:
                assert first.status_code == 200
                refused = await client.get(events)
                assert (refused.status_code, refused.json()["code"]) == (429, "rate-limited")
                assert refused.headers["content-type"] == "application/problem+json"
                assert int(refused.headers["retry-after"]) >= 1

            async def there_is_room_again() -> bool:
                async with client.stream("GET", events) as again:
                    return again.status_code == 200

            await until(there_is_room_again)
    finally:
        await edge.stop()
        bench.mesh.processes.remove(edge)


TEXTS = {
    "line breaks": "a\rb\r\nc\n\nd\n\r",
    "frames": "x\n\nid: 1\nevent: task.completed\ndata: {}\n\n: comment",
    "NUL": "a\0b\0",
    "control characters": "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f",
    "separators": "a\u2028b\u2029c\u0085d\ufeffe",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 \U0010ffff",
    "right to left": "שלום \u202egnp.exe",
    "quotes": "\"\\' </script> ${x} \\u0000 \\ud800",
    "combining": "e\u0301 " + "\u0300" * 200,
}


@on_the_modules_loop
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize("script", ["", "!rate 0\n"], ids=["as input", "as output"])
async def test_any_text_goes_through_unchanged(bench: Bench, script: str, text: str) -> None:
    metadata = {"text": text[:400]}
    accepted = await bench.ingress.post("/v1/tasks", json={"input": script + text, "metadata": metadata})
    assert accepted.status_code == 202, accepted.text
    task = accepted.json()["id"]
    history = await Viewer(str(bench.mesh.settings.edge_address), task).follow()
    events = [json.loads(frame.data) for frame in history.frames]
    record = (await bench.ingress.get(f"/v1/tasks/{task}")).json()
    journal = (await read_stored(bench.connection.requests)).journals[task]
    await until_no_work_is_left(bench.connection)

    assert check_history(ClientHistory(task, history.frames), journal) == []
    assert events[0]["request"]["input"] == script + text
    assert record["metadata"] == metadata
    joined = "".join(event["text"] for event in events if event["type"] == "output.delta")
    assert joined == record["output"] == events[-1]["output"]
    assert joined == "".join(stored.event["text"] for stored in journal if stored.event["type"] == "output.delta")
    if script:
        assert joined == text.strip("\r\n") + "\n"


# The stream itself, in this process


def body_of(sent: list[Message]) -> bytes:
    """All that a stream has sent after its head."""
    return b"".join(message["body"] for message in sent if message["type"] == "http.response.body")


async def test_an_idle_stream_sends_comments_and_goes_on_with_what_comes(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "COMMENT_SECONDS", 0.02)
    journal = await begin_journal(connection.requests, turn_work())
    follower = await Following(connection).open("default", journal.state.task, 0)
    assert follower is not None
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> HTTPReceiveMessage:
        await asyncio.Event().wait()
        raise AssertionError("a client that stays says nothing")

    streaming = asyncio.create_task(stream.stream(follower, receive, send, asyncio.Event()))
    await until(lambda: body_of(sent).count(b": idle\n\n") >= 3)
    await append_text(journal, "late")
    await complete_turn(journal)
    await end_task(journal)
    async with within(10):
        await streaming
    assert sent[0]["type"] == "http.response.start"
    assert body_of(sent).count(b"retry: ") == 1
    types = [frame.event_type for frame in Decoder().feed(body_of(sent))]
    assert types == ["task.queued", "step.claimed", "output.delta", "turn.completed", "task.completed"]
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_stream_gives_its_subscription_back_when_the_client_is_gone(connection: Connection) -> None:
    journal = await begin_journal(connection.requests, turn_work())
    subscriptions = dict(connection.client._subs)
    follower = await Following(connection).open("default", journal.state.task, 0)
    assert follower is not None
    gone = asyncio.Event()
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> HTTPReceiveMessage:
        await gone.wait()
        return {"type": "http.disconnect"}

    streaming = asyncio.create_task(stream.stream(follower, receive, send, asyncio.Event()))
    await until(lambda: b"step.claimed" in body_of(sent))
    assert connection.client._subs.keys() != subscriptions.keys()
    gone.set()
    async with within(10):
        await streaming
    assert connection.client._subs.keys() == subscriptions.keys()
