"""Submission over HTTP: what 202 promises, keys, waiting, lists, traces and a full lane."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from datetime import datetime

import pytest
import pytest_asyncio
from nats.aio.msg import Msg

from contracts import headers, subjects
from contracts.codec import encode
from contracts.identifiers import task_id_for_key, turn_message_id
from contracts.streams import TASKS
from tests.support.checker import read_stored
from tests.support.clients import Viewer
from tests.support.http_client import PatientClient
from tests.support.limits import narrow, unlimit
from tests.support.submission import Bench, open_bench
from tests.support.tasks import begin_journal, complete_turn, end_task, publish_work, turn_work
from tests.support.waiting import until, until_no_work_is_left

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]
SLOW = "!rate 100\n!say 150"
SLOW_OUTPUT = "".join(f"t{number} " for number in range(150))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """Ingress, edge and a worker."""
    async with open_bench(tmp_path_factory, "served", "ingress", "stream_edge", "inference_worker") as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def idle(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """An ingress alone: what is accepted waits."""
    async with open_bench(tmp_path_factory, "idle", "ingress") as opened:
        yield opened


# What 202 says


async def test_an_accepted_task_is_told_with_its_place_and_links_that_work(bench: Bench) -> None:
    response = await bench.post("hello", "shape", priority="high", metadata={"a": 1})
    assert response.status_code == 202
    accepted = response.json()
    task = accepted["id"]
    of_a_record = {"id", "tenant", "status", "pool", "priority", "created_at", "updated_at", "sequence", "links"}
    assert accepted.keys() == of_a_record | {"queue"}
    assert (accepted["tenant"], accepted["updated_at"], accepted["sequence"]) == ("shape", accepted["created_at"], 0)
    assert (accepted["status"], accepted["pool"], accepted["priority"]) == ("queued", "default", "high")
    assert datetime.fromisoformat(accepted["created_at"]).utcoffset() is not None
    assert accepted["queue"].keys() == {"depth", "position", "eta_seconds", "basis"}
    assert response.headers["location"] == f"/v1/tasks/{task}" == accepted["links"]["self"]
    record = (await bench.client.get(response.headers["location"], headers={"Mesh-Tenant": "shape"})).json()
    assert (record["id"], record["tenant"], record["priority"]) == (task, "shape", "high")
    assert (record["created_at"], record["metadata"]) == (accepted["created_at"], {"a": 1})
    assert record["links"] == accepted["links"]
    async with PatientClient() as client:
        events = await client.get(accepted["links"]["events"], headers={"Mesh-Tenant": "shape"})
    assert (events.status_code, events.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert "event: task.completed\n" in events.text


async def test_a_record_is_folded_from_the_journal_while_the_task_runs_and_when_it_has_ended(bench: Bench) -> None:
    task = await bench.accepted(SLOW, "default")
    viewer = Viewer(str(bench.mesh.settings.edge_address), task)
    following = asyncio.create_task(viewer.follow())
    await until(lambda: any(frame.type == "output.delta" for frame in viewer.history.frames))
    running = await bench.task(task, "default")
    assert (running["status"], running["turn"], "output" in running) == ("running", 1, False)
    history = await following
    ended = await bench.task(task, "default")
    assert (ended["status"], ended["output"]) == ("completed", SLOW_OUTPUT)
    assert ended["sequence"] == history.frames[-1].sequence
    assert ended["usage"]["output_tokens"] == 150
    assert ended["timings"]["queued_seconds"] >= 0


async def test_a_task_that_ends_while_the_client_waits_is_answered_with_its_record(bench: Bench) -> None:
    response = await bench.post("!say 3", "waiting", wait=10)
    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=10"
    record = response.json()
    assert (record["status"], record["output"]) == ("completed", "t0 t1 t2 ")
    assert response.headers["location"] == f"/v1/tasks/{record['id']}"
    assert record == await bench.task(record["id"], "waiting")


async def test_a_task_that_failed_while_the_client_waits_is_answered_too(bench: Bench) -> None:
    record = (await bench.post("!fail bad_request", "waiting", wait=10)).json()
    assert (record["status"], record["error"]["code"]) == ("failed", "provider-bad-request")


async def test_a_client_does_not_wait_longer_than_it_asked_for(bench: Bench) -> None:
    began = time.monotonic()
    response = await bench.post("!hang 2", "waiting", wait=1)
    assert (response.status_code, response.json()["status"]) == (202, "queued")
    assert "preference-applied" not in response.headers
    assert time.monotonic() - began >= 1
    await until(bench.task_has(response.json()["id"], "waiting", "completed"))


# Idempotency keys


async def test_the_same_key_and_request_is_the_same_task_however_often_and_whenever(bench: Bench) -> None:
    before = await bench.last("TASKS")
    first = await bench.post("hello", "keys", key="once", priority="normal")
    body = b'{ "metadata": null, "input":"hello" }'  # the same request in other words
    sent = {"Mesh-Tenant": "keys", "Idempotency-Key": "once", "Content-Type": "application/json"}
    again = await bench.client.post("/v1/tasks", content=body, headers=sent)
    assert (first.status_code, again.status_code) == (202, 202)
    task = first.json()["id"]
    await until(bench.task_has(task, "keys", "completed"))
    ended = await bench.post("hello", "keys", key="once")
    assert (ended.status_code, ended.json()["status"]) == (202, "completed")
    for other in (again, ended):
        assert other.json()["id"] == task
        assert other.json()["created_at"] == first.json()["created_at"]
        assert other.headers["location"] == first.headers["location"]
    waited = await bench.post("hello", "keys", key="once", wait=5)
    assert (waited.status_code, waited.json()["id"]) == (200, task)
    assert await bench.last("TASKS") == before + 1


async def test_a_key_that_is_used_twenty_times_at_once_makes_one_task(bench: Bench) -> None:
    before = await bench.last("TASKS")
    answers = await asyncio.gather(*(bench.post("hello", "keys", key="at once") for _ in range(20)))
    assert [answer.status_code for answer in answers] == [202] * 20
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len({answer.json()["created_at"] for answer in answers}) == 1
    assert await bench.last("TASKS") == before + 1
    await until_no_work_is_left(bench.connection)
    stored = await read_stored(bench.connection.requests)
    types = [event.event["type"] for event in stored.journals[answers[0].json()["id"]]]
    assert (types.count("task.queued"), types.count("task.completed")) == (1, 1)


async def test_a_key_with_another_request_is_refused_and_the_first_task_is_untouched(bench: Bench) -> None:
    task = await bench.accepted("hello", "keys", key="taken")
    await until(bench.task_has(task, "keys", "completed"))
    before = await bench.task(task, "keys")
    for fields in ({"priority": "high"}, {"metadata": {"a": 1}}, {"max_output_tokens": 5}):
        response = await bench.post("hello", "keys", key="taken", **fields)
        assert (response.status_code, response.json()["code"]) == (422, "idempotency-mismatch")
    response = await bench.post("goodbye", "keys", key="taken")
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    assert await bench.task(task, "keys") == before


async def test_a_key_used_at_once_for_two_requests_makes_one_task_and_refuses_the_other(bench: Bench) -> None:
    texts = ["this", "that"] * 5
    answers = await asyncio.gather(*(bench.post(text, "keys", key="contested") for text in texts))
    assert {answer.status_code for answer in answers} == {202, 422}
    winner = {text for text, answer in zip(texts, answers, strict=True) if answer.status_code == 202}
    assert len(winner) == 1
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 202}) == 1


async def test_the_same_key_of_another_tenant_is_another_task(bench: Bench) -> None:
    one = await bench.accepted("hello", "one", key="shared")
    other = await bench.accepted("something else", "other", key="shared")
    assert one != other
    response = await bench.client.get(f"/v1/tasks/{one}", headers={"Mesh-Tenant": "other"})
    assert response.status_code == 404


async def test_a_key_whose_task_ended_before_the_broker_can_remember_it_is_found_in_the_journal(bench: Bench) -> None:
    task = task_id_for_key("keys", "long ago")
    journal = await begin_journal(bench.connection.requests, turn_work(task, tenant="keys"))
    await complete_turn(journal)
    await end_task(journal)
    before = await bench.last("TASKS")
    response = await bench.post("hello", "keys", key="long ago")
    assert (response.status_code, response.json()["id"], response.json()["status"]) == (202, task, "completed")
    assert (await bench.post("goodbye", "keys", key="long ago")).status_code == 422
    assert await bench.last("TASKS") == before


# An ingress that died between TASKS and the journal


async def test_a_task_whose_ingress_died_after_the_commit_is_run_and_found(bench: Bench) -> None:
    work = turn_work(tenant="orphan")
    await publish_work(bench.connection.requests, work)
    await until(bench.task_has(work.task, "orphan", "completed"))
    await until_no_work_is_left(bench.connection)
    assert await bench.listed("orphan") == [work.task]
    assert work.accepted_at is not None
    created_at = (await bench.task(work.task, "orphan"))["created_at"]
    assert datetime.fromisoformat(created_at) == work.accepted_at


async def test_a_retry_after_the_ingress_died_gets_the_task_before_anybody_has_begun_it(idle: Bench) -> None:
    task = task_id_for_key("orphan", "again")
    work = turn_work(task, tenant="orphan")
    message_headers = {headers.MESSAGE_ID: turn_message_id(task, 1, 0)}
    subject = subjects.tasks(work.pool, work.priority, work.tenant)
    await idle.connection.requests.publish(subject, encode(work), message_headers)
    before = await idle.last("TASKS")

    response = await idle.post("hello", "orphan", key="again")
    assert (response.status_code, response.json()["id"], response.json()["status"]) == (202, task, "queued")
    assert (await idle.post("goodbye", "orphan", key="again")).status_code == 422
    assert await idle.last("TASKS") == before


# Lists


async def test_a_list_begins_with_what_changed_last(bench: Bench) -> None:
    slow = await bench.accepted("!hang 0.5", "recent")
    quick = [await bench.finished(f"task {number}", "recent") for number in range(4)]
    await until(bench.task_has(slow, "recent", "completed"))
    await until_no_work_is_left(bench.connection)
    assert await bench.listed("recent") == [slow, *reversed(quick)]
    first = (await bench.page("recent", limit=1))["tasks"][0]
    task = await bench.task(slow, "recent")
    assert task.pop("output") is not None
    assert first == task, "all but the output"


async def test_pages_of_more_than_a_hundred_tasks_lose_and_double_none(bench: Bench) -> None:
    posted = await asyncio.gather(*(bench.accepted(f"task {number}", "paging") for number in range(130)))
    await until_no_work_is_left(bench.connection)
    whole = await bench.listed("paging", limit=100)
    assert (len(whole), set(whole)) == (130, set(posted))
    assert await bench.listed("paging", limit=7) == whole
    assert await bench.listed("paging") == whole
    # What comes meanwhile is at the front, which a page further on does not see.
    page = await bench.page("paging", limit=50)
    later = await bench.finished("later", "paging")
    await until_no_work_is_left(bench.connection)
    rest = await bench.listed("paging", limit=100, cursor=page["cursor"])
    assert [task["id"] for task in page["tasks"]] + rest == whole
    assert await bench.listed("paging") == [later, *whole]


async def test_a_list_can_be_of_one_status(bench: Bench) -> None:
    failed = [await bench.finished("!fail bad_request", "mixed") for _ in range(2)]
    completed = [await bench.finished("hello", "mixed") for _ in range(3)]
    running = await bench.accepted("!hang 1", "mixed")

    async def runs() -> bool:
        return await bench.listed("mixed", status="running") == [running]

    await until(runs)
    assert await bench.listed("mixed", status="failed", limit=1) == failed[::-1]
    assert await bench.listed("mixed", status="completed", limit=2) == completed[::-1]
    assert await bench.listed("mixed", status="cancelled") == []
    assert set(await bench.listed("mixed")) == {*failed, *completed, running}
    await until_no_work_is_left(bench.connection)


async def test_a_list_shows_a_tenant_its_own_tasks_only(bench: Bench) -> None:
    ours = [await bench.finished("hello", "ours") for _ in range(3)]
    theirs = await bench.finished("hello", "theirs")
    # A prefix is not the tenant.
    assert await bench.listed("our") == []
    assert await bench.listed("ours") == ours[::-1]
    assert await bench.listed("theirs") == [theirs]
    assert {task["tenant"] for task in (await bench.page("ours"))["tasks"]} == {"ours"}


# Traces, from HTTP to the journal

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("sent", "trace"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (None, None),
        ("rubbish", None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-b7ad6b7169203331-01-more", None),
    ],
    ids=["given", "none", "rubbish", "zero", "too long"],
)
async def test_a_trace_goes_from_the_request_into_the_work_and_every_milestone(
    bench: Bench, sent: str | None, trace: str | None
) -> None:
    seen: dict[str, list[str | None]] = {"tasks": [], "log": [], "delta": []}

    async def note(message: Msg) -> None:
        kind = "tasks" if message.subject.startswith("tasks.") else message.subject.rpartition(".")[2]
        seen[kind].append((message.headers or {}).get(headers.TRACEPARENT))

    subscriptions = [
        await bench.connection.client.subscribe(subject, cb=note)
        for subject in ("tasks.*.*.traced", "live.events.traced.>")
    ]
    await bench.connection.client.flush()
    request_headers = {"Mesh-Tenant": "traced", "Prefer": "wait=20"}
    if sent is not None:
        request_headers["traceparent"] = sent
    response = await bench.client.post("/v1/tasks", json={"input": "hello"}, headers=request_headers, timeout=30)
    assert response.status_code == 200
    await until_no_work_is_left(bench.connection)
    # What came to the connection is not yet what its callbacks have seen.
    await until(lambda: len(seen["tasks"]) >= 1 and len(seen["log"]) >= 4)
    await bench.connection.client.flush()
    for subscription in subscriptions:
        await subscription.unsubscribe()

    parts = [
        re.fullmatch(r"00-([0-9a-f]{32})-[0-9a-f]{16}-0[01]", value or "") for value in seen["tasks"] + seen["log"]
    ]
    traces = {part[1] if part else None for part in parts}
    assert (len(seen["tasks"]), len(seen["log"])) == (1, 4)
    assert len(traces) == 1
    assert traces != {None}
    assert trace is None or traces == {trace}
    assert trace is not None or traces != {TRACE}
    # Deltas carry none: they are many, and milestones tell enough.
    assert set(seen["delta"]) == {None}


# A full lane


async def test_a_full_lane_refuses_its_tenant_only_and_stores_nothing_of_what_it_refused(idle: Bench) -> None:
    await narrow(idle.connection.requests, 5, "busy")
    try:
        accepted = [await idle.accepted(f"task {number}", "busy", key=f"key {number}") for number in range(5)]

        async def all_are_listed() -> bool:
            return set(await idle.listed("busy")) == set(accepted)

        await until(all_are_listed)
        before = [await idle.last(stream) for stream in ("TASKS", "EVENTS", "KV_tasks")]

        for key in (None, "key 5"):
            refused = await idle.post("one too many", "busy", key=key)
            assert (refused.status_code, refused.json()["code"]) == (503, "queue-full")
            assert refused.headers["content-type"] == "application/problem+json"
            assert int(refused.headers["retry-after"]) >= 1
        assert [await idle.last(stream) for stream in ("TASKS", "EVENTS", "KV_tasks")] == before
        assert await all_are_listed()
        absent = await idle.client.get(f"/v1/tasks/{task_id_for_key('busy', 'key 5')}", headers={"Mesh-Tenant": "busy"})
        assert absent.status_code == 404

        # A task that is known is not refused; neither is another tenant, nor another lane.
        assert await idle.accepted("task 0", "busy", key="key 0") == accepted[0]
        await idle.accepted("hello", "patient")
        assert (await idle.post("hello", "busy", priority="high")).status_code == 202
    finally:
        await idle.connection.requests.api("STREAM.UPDATE.TASKS", TASKS.as_config())
        await unlimit(idle.connection.requests, "BACKLOG")

    # The refused key is free: the client comes back with it, once it is told that there is room.
    async def is_taken() -> bool:
        return (await idle.post("one too many", "busy", key="key 5")).status_code == 202

    await until(is_taken)
    assert await idle.accepted("one too many", "busy", key="key 5") == task_id_for_key("busy", "key 5")
