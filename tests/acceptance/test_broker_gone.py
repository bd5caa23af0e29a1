"""Submission without a broker: nothing is accepted in time, nothing is lost, and afterwards all works."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from contracts.identifiers import new_id, task_id_for_key
from mesh.broker.provisioning import apply, declared
from tests.support.checker import Recorded, check, read_stored
from tests.support.patience import within
from tests.support.submission import Bench, open_bench
from tests.support.waiting import until, until_no_work_is_left

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

T = TypeVar("T")

PARTS = ("broker", "TASKS", "EVENTS", "KV_tasks")
ANSWER_SECONDS_MAX = 7.0
"""An ingress without a broker says so within this."""
STOP_SECONDS_MAX = 8.0


async def holds(reading: Awaitable[T], condition: Callable[[T], bool]) -> bool:
    """Whether a condition holds of what is read."""
    return condition(await reading)


async def health(bench: Bench) -> tuple[int, dict[str, bool]]:
    """Status of `/health/ready`, and what it says of the broker and of each stream: nobody else is there to be well."""
    response = await bench.client.get("/health/ready", timeout=10)
    return response.status_code, {
        part["name"]: part["ok"] for part in response.json()["checks"] if part["name"] in PARTS
    }


async def test_without_a_broker_nothing_is_accepted_and_afterwards_all_works(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    recorded = Recorded()
    async with open_bench(tmp_path_factory, "broken", "ingress", "inference_worker") as bench:

        async def is_ready() -> bool:
            return (await health(bench))[0] == 200

        async def is_not_ready() -> bool:
            return not await is_ready()

        async def refused(method: str, path: str, **sent: Any) -> None:
            response = await bench.client.request(method, path, timeout=10, **sent)
            assert (response.status_code, response.json()["code"]) == (503, "broker-unavailable"), response.text
            assert response.headers["content-type"] == "application/problem+json"
            assert int(response.headers["retry-after"]) >= 1

        assert await health(bench) == (200, dict.fromkeys(PARTS, True))
        recorded.accepted.add(await bench.accepted("before", "default"))
        # Accepted is accepted, even if the broker goes while the client waits for the end.
        waiting = asyncio.create_task(bench.post("!hang 1", "default", wait=3))
        await until(lambda: holds(bench.listed("default", status="running"), lambda tasks: len(tasks) == 1))
        in_flight = [asyncio.create_task(bench.post("hello", "default", key=f"key {number}")) for number in range(8)]
        await bench.mesh.broker.kill()
        await until(is_not_ready)

        body = {"input": "hello"}
        async with within(ANSWER_SECONDS_MAX):
            await asyncio.gather(
                refused("POST", "/v1/tasks", json=body),
                refused("POST", "/v1/tasks", json=body, headers={"Idempotency-Key": "again"}),
                refused("POST", "/v1/tasks", json=body, headers={"Prefer": "wait=1"}),
                refused("GET", "/v1/tasks"),
                refused("GET", f"/v1/tasks/{new_id()}"),
            )
        assert await health(bench) == (503, {"broker": False})
        assert (await bench.client.get("/health/live")).json()["ok"] is True
        assert {(await answer).status_code for answer in in_flight} <= {202, 503}
        answer = await waiting
        assert answer.status_code == 202, answer.text
        recorded.accepted.add(answer.json()["id"])

        await bench.mesh.broker.start()
        await until(is_ready)
        for key in ["again", *(f"key {number}" for number in range(8))]:
            retried = {await bench.accepted("hello", "default", key=key) for _ in range(2)}
            assert retried == {task_id_for_key("default", key)}
            recorded.accepted |= retried
        await until_no_work_is_left(bench.connection)
        assert check(recorded, await read_stored(bench.connection.requests)) == []


async def test_what_tasks_has_taken_is_accepted_whatever_becomes_of_the_journal(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with open_bench(tmp_path_factory, "halved", "ingress") as bench:
        (ingress,) = bench.mesh.processes
        await bench.connection.requests.api("STREAM.DELETE.EVENTS")
        assert await health(bench) == (503, {"broker": True, "TASKS": True, "EVENTS": False, "KV_tasks": True})
        response = await bench.post("hello", "default", wait=1)
        assert (response.status_code, response.json()["status"]) == (202, "queued")
        assert await bench.last("TASKS") == 1
        # The first event still waits for its stream; told to stop, the ingress leaves it to a worker.
        async with within(STOP_SECONDS_MAX):
            assert await ingress.stop() == 0

        await apply(bench.connection.requests, declared(bench.mesh.settings, ("add",)), update=False)
        await ingress.start()
        await bench.mesh.start("inference_worker")
        await until(bench.task_has(response.json()["id"], "default", "completed"))
        record = await bench.task(response.json()["id"], "default")
        assert record["created_at"] == response.json()["created_at"]
        assert (await health(bench))[0] == 200
