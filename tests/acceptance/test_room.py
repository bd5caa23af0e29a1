"""What is refused for want of room holds nothing: no slot, no delivery, no place in hand. It comes once there is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from contracts.journal.events import ToolCompleted
from mesh.broker.connection import Connection, connect
from tests.support.calls import Calls
from tests.support.limits import limit, unlimit
from tests.support.processes import running_mesh
from tests.support.tasks import publish_work, turn_work
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance

CALLS = 64
"""The calls of one turn, and the places of a runner."""
LANE = "tasks.default.normal.default"


async def messages_in(connection: Connection, stream: str, subject: str = ">") -> int:
    """How many messages lie on a subject."""
    info = await connection.requests.api(f"STREAM.INFO.{stream}", {"subjects_filter": subject})
    return sum((info["state"].get("subjects") or {}).values())


async def test_calls_that_a_full_lane_refuses_hold_no_slot_and_each_becomes_its_task_once_there_is_room(
    tmp_path: Path,
) -> None:
    async with (
        # A steward would loosen again what is limited here.
        running_mesh(tmp_path, "tool_runner", "steward", MESH_UPGRADE_STREAMS="0") as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        requests, calls = connection.requests, Calls(connection)
        await limit(requests, "TASKS", max_msgs_per_subject=1)
        await limit(requests, "BACKLOG", max_msgs_per_subject=1)
        blocker = turn_work(text="nobody runs this: there is no worker")
        await publish_work(requests, blocker)
        parent = await calls.ask("spawn_task", *({"input": str(number)} for number in range(CALLS)))
        await asyncio.gather(*(calls.publish(parent, "spawn_task", f"1-{number}") for number in range(CALLS)))

        # Another's call is not held up: before, all 64 slots of the runner waited for room.
        other = await calls.run("calculator", {"expression": "6 * 7"}, seconds=30)
        assert isinstance(other, ToolCompleted)

        async def no_call_is_left() -> bool:
            return await messages_in(connection, "TOOLS") == 0

        await until(no_call_is_left)
        assert len((await calls.journal(parent)).state.children) == CALLS
        assert await messages_in(connection, "TASKS", LANE) == 1
        assert await messages_in(connection, "TIMERS", "timers.>") > 0

        await unlimit(requests, "TASKS")
        await unlimit(requests, "BACKLOG")

        async def all_are_queued() -> bool:
            behind = await messages_in(connection, "BACKLOG", f"backlog.{LANE.removeprefix('tasks.')}")
            return behind + await messages_in(connection, "TASKS", LANE) == CALLS + 1

        await until(all_are_queued, seconds=60)

        async def no_timer_is_left() -> bool:
            return await messages_in(connection, "TIMERS", "timers.at.>") == 0

        await until(no_timer_is_left)
        state = (await calls.journal(parent)).state
        assert [state.claim_counts[f"1-{number}", 0] for number in range(CALLS)] == [1] * CALLS, (
            "no delivery was used up"
        )
        assert mesh.tracebacks() == []
        assert await messages_in(connection, "DEAD_LETTERS") == 0
