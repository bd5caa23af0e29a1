"""Tenants of one lane take turns, and lanes by their weights, with real processes: who floods hurts nobody else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from contracts.streams import BACKLOG
from contracts.tasks import Priority
from mesh.admission import backlog
from mesh.broker.connection import connect
from mesh.broker.direct_get import read_page
from tests.support.checker import Recorded, Stored, StoredEvent, check, read_stored
from tests.support.clients import PostingConnection
from tests.support.processes import running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

FLOOD = 240
FEW = 10
PLACES = 4
TURN = "!hang 0.1\nwell"


RUNNING = 3
"""Turns of the tenant `bounded` that may be worked on, or be next."""


async def post(
    address: str, tenant: str, count: int, recorded: Recorded, priority: Priority = "normal", turn: str = TURN
) -> list[str]:
    """Post so many tasks of a tenant, one after the other; their ids."""
    connection = PostingConnection(address)
    accepted: list[str] = []
    for _ in range(count):
        body = json.dumps({"input": turn, "priority": priority}).encode()
        status, _, payload = await connection.post(body, f"Mesh-Tenant: {tenant}\r\n")
        assert status == 202, payload
        accepted.append(json.loads(payload)["id"])
    connection.close()
    recorded.accepted.update(accepted)
    return accepted


async def depth_told(address: str, recorded: Recorded) -> int | None:
    """What an ingress says of the lane's depth to a task of somebody else: None while it does not know."""
    connection = PostingConnection(address)
    status, _, payload = await connection.post(b'{"input": "hello"}')
    connection.close()
    assert status == 202, payload
    accepted = json.loads(payload)
    recorded.accepted.add(accepted["id"])
    return accepted["queue"]["depth"]  # type: ignore[no-any-return]  # of JSON


async def is_known(address: str, recorded: Recorded) -> bool:
    """Whether the ingress knows how its lane stands."""
    return await depth_told(address, recorded) is not None


def claims(stored: Stored) -> list[tuple[int, str]]:
    """Which task was claimed at which sequence, in order."""
    return sorted(
        (event.sequence, task)
        for task, journal in stored.journals.items()
        for event in journal
        if event.event["type"] == "step.claimed"
    )


def claimed_at(stored: Stored, task: str, kind: str = "step.claimed") -> int:
    """The sequence of a task's first event of a type."""
    return next(event.sequence for event in stored.journals[task] if event.event["type"] == kind)


def at_once(stored: Stored, tasks: set[str]) -> int:
    """How many of these tasks were worked on at the same time, at most."""
    changes = [
        (event.sequence, 1 if event.event["type"] == "step.claimed" else -1)
        for task in tasks
        for event in stored.journals[task]
        if event.event["type"] in ("step.claimed", "task.completed")
    ]
    most = running = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most


def claims_of(journal: list[StoredEvent]) -> int:
    """How often the one turn of a task was claimed."""
    return sum(event.event["type"] == "step.claimed" for event in journal)


async def test_a_tenant_that_floods_hurts_only_itself(tmp_path: Path) -> None:
    recorded = Recorded()
    async with (
        running_mesh(tmp_path, "ingress", "inference_worker", "steward", MESH_WORKER_CONCURRENCY=str(PLACES)) as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        address = str(mesh.settings.ingress_address)
        await until(lambda: is_known(address, recorded))
        await asyncio.gather(*(post(address, "flood", FLOOD // 4, recorded) for _ in range(4)))
        few = await post(address, "few", FEW, recorded)
        await until_no_work_is_left(connection, 120)
        stored = await read_stored(connection.requests)
        assert mesh.tracebacks() == []
    assert check(recorded, stored) == []
    begun = claims(stored)
    places = [index for index, (_, task) in enumerate(begun) if task in few]
    first_possible = min(
        sum(1 for sequence, _ in begun if sequence < event.sequence)
        for task in few
        for event in stored.journals[task]
        if event.event["type"] == "task.queued"
    )
    # An equal share would be ten of each. Some lie ready, or run, before the first of the few can.
    assert places[-1] - first_possible - FEW <= 3 * FEW


async def test_nothing_is_lost_nor_run_twice_when_the_steward_that_moves_is_killed_and_another_takes_over(
    tmp_path: Path,
) -> None:
    recorded = Recorded()
    (tmp_path / "mesh.toml").write_text(f"[tenants.bounded]\nrunning = {RUNNING}\n")
    variables = {"MESH_WORKER_CONCURRENCY": str(2 * PLACES), "MESH_CONFIG": str(tmp_path / "mesh.toml")}
    async with (
        running_mesh(tmp_path, "ingress", "inference_worker", "steward", "steward", **variables) as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        address = str(mesh.settings.ingress_address)
        await until(lambda: is_known(address, recorded))
        bounded = set(await post(address, "bounded", FLOOD // 8, recorded))
        await asyncio.gather(*(post(address, "flood", FLOOD // 8, recorded) for _ in range(2)))
        bounded |= set(await post(address, "bounded", FEW, recorded, "high"))
        # Some that a steward has moved which died before it deleted them, so long ago that TASKS has forgotten the ids.
        moved = await read_page(connection.requests, BACKLOG.name, "backlog.default.normal.flood", 0, FEW)
        assert moved.messages
        for message in moved.messages:
            await connection.requests.publish(backlog.destination(message), message.payload)

        async def mover() -> str | None:
            await connection.requests.backlog_lanes.refresh()
            record = connection.requests.backlog_lanes.record
            return record.mover if record is not None and record.lanes else None

        async def somebody_moves() -> bool:
            return await mover() is not None

        await until(somebody_moves)
        killed = await mover()
        [process] = [each for each in mesh.processes if each.service == "steward" and f"-{each.pid}@" in str(killed)]
        await process.kill()

        async def another_moves() -> bool:
            return await mover() not in (None, killed)

        await until(another_moves, 60)
        await until_no_work_is_left(connection, 120)
        stored = await read_stored(connection.requests)
        assert mesh.tracebacks() == []
    accepted, again = len(recorded.accepted), len(moved.messages)
    assert check(recorded, stored) == [
        f"I10: {accepted} tasks were accepted, TASKS has stored {accepted + again} messages"
    ]
    assert all(claims_of(journal) == 1 for journal in stored.journals.values()), "a move that was cut short is no claim"
    assert at_once(stored, bounded) <= RUNNING


async def test_what_is_urgent_begins_next_behind_any_batch_and_batches_get_their_share(tmp_path: Path) -> None:
    recorded = Recorded()
    async with (
        running_mesh(tmp_path, "ingress", "inference_worker", "steward", MESH_WORKER_CONCURRENCY=str(PLACES)) as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        address = str(mesh.settings.ingress_address)
        await until(lambda: is_known(address, recorded))
        batch = set(await post(address, "batch", 120, recorded, "low", "!hang 0.2\nwell"))
        urgent = [task for _ in range(5) for task in await post(address, "urgent", 1, recorded, "high")]
        posted = (post(address, "endless", 8, recorded, "high", "!hang 0.2\nwell") for _ in range(8))
        endless = {task for tasks in await asyncio.gather(*posted) for task in tasks}
        await until_no_work_is_left(connection, 120)
        stored = await read_stored(connection.requests)
        assert mesh.tracebacks() == []
    assert check(recorded, stored) == []
    begun = claims(stored)
    for task in urgent:
        queued, claimed = claimed_at(stored, task, "task.queued"), claimed_at(stored, task)
        # As many as there are places may begin while it is on its way: of the batch 120 wait.
        assert sum(queued < sequence < claimed for sequence, each in begun if each in batch) <= 2 * PLACES
    # Of 18 that begin 2 are of the batch, by weight, while both wait; more while what is urgent comes too slowly.
    places = [index for index, (_, task) in enumerate(begun) if task in endless]
    of_both = [task for _, task in begun[places[12] : places[-12]]]
    assert sum(task in batch for task in of_both) >= len(of_both) / 18
