"""Deadlines of tasks in each state: one end each, whoever is there when the time comes, and whoever comes after it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest

from mesh.broker.connection import Connection, connect
from tests.support.agents import Agents
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import Viewer, submit
from tests.support.http_client import PatientClient
from tests.support.patience import stretched
from tests.support.processes import running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

DEADLINE_SECONDS = 6.0
"""Far above what it takes on a quiet machine to get to the states below."""
CALL = '!call add {"a": 1, "b": 2}'
APPROVED: Mapping[str, object] = {"tools": ["add"], "approval": "always"}


class Case(NamedTuple):
    """What is asked, the status that it gets to, and the end that its deadline makes."""

    text: str
    status: str
    end: str
    output: str | None = None
    request: Mapping[str, object] = MappingProxyType({})
    deadline_seconds: float = DEADLINE_SECONDS


IN_A_WAIT = [
    Case(f"!say 1\n{CALL}", "waiting", "task.completed", "t0 ", APPROVED),
    Case(CALL, "waiting", "task.expired", None, APPROVED),
    Case("!say 2\n!ask Which?", "waiting", "task.completed", "t0 t1 "),
    Case("!fail server_error 9", "dead_lettered", "task.expired"),
]
# One after the other: the worker does one step at a time.
IN_A_RUN = Case("!say 2\n!hang 60", "running", "task.completed", "t0 t1 ")
# Sooner than what is before it in the queue: that frees the worker.
IN_THE_QUEUE = Case("hello", "queued", "task.expired", deadline_seconds=DEADLINE_SECONDS - 2)


async def fired(connection: Connection) -> int:
    """How many deadlines have come."""
    info = await connection.requests.api("STREAM.INFO.TIMERS", {"subjects_filter": "timers.fired.deadline.>"})
    return len(info["state"].get("subjects") or {})


@pytest.mark.parametrize("away", [False, True], ids=["the steward is there", "stewards come after it"])
async def test_a_deadline_ends_a_task_once_in_whatever_state(tmp_path: Path, away: bool) -> None:
    recorded = Recorded()
    services = ("ingress", "stream_edge", "tool_runner")
    async with (
        running_mesh(tmp_path, *services, MESH_MAX_TRIES="1", MESH_WORKER_CONCURRENCY="1") as mesh,
        PatientClient() as client,
        connect(mesh.settings, "test") as connection,
    ):
        worker = await mesh.start("inference_worker")
        steward = await mesh.start("steward")
        agents = Agents(connection)
        cases: dict[str, Case] = {}
        for case in (*IN_A_WAIT, IN_A_RUN, IN_THE_QUEUE):
            request = {"deadline_seconds": stretched(case.deadline_seconds), **case.request}
            task = await submit(client, mesh.ingress_url, recorded, case.text, **request)
            cases[task] = case
            await agents.until_status(task, case.status)
        following = [
            asyncio.create_task(Viewer(str(mesh.settings.edge_address), task).follow(seconds=90)) for task in cases
        ]
        if away:
            await steward.kill()
            await worker.kill()
            await until(lambda: all_fired(connection, len(cases)))
            await asyncio.gather(mesh.start("steward"), mesh.start("steward"))
        recorded.histories += await asyncio.gather(*following)
        if away:
            await mesh.start("inference_worker")
        await until_no_work_is_left(connection)
        await until(lambda: all_fired(connection, 0))  # Each goes once it is carried out, records and all.
        stored = await read_stored(connection.requests)
    for task, case in cases.items():
        end = stored.journals[task][-1].event
        incomplete = "deadline" if case.output else None
        assert (end["type"], end.get("output"), end.get("incomplete")) == (case.end, case.output, incomplete)
    assert check(recorded, stored) == []


async def all_fired(connection: Connection, tasks: int) -> bool:
    return await fired(connection) == tasks
