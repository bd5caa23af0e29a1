"""What comes to a task once it is packed: a first turn that is delivered late, and what a writer leaves that slept."""

from __future__ import annotations

from collections.abc import Callable

from contracts import headers, subjects
from contracts.codec import encode
from contracts.messages.control import DeadlineCommand
from contracts.messages.work import ToolWork
from contracts.records.archive import PackedTask
from mesh.archive.lookup import find
from mesh.broker.requests import Requests
from mesh.journal.projection import project
from tests.chaos.clients import TENANT, sooner_or_later
from tests.support.tasks import publish_work, turn_work

FORGOTTEN_TOOL = "forgotten"
"""Nobody serves it."""
FAR_AWAY = "@at 2099-01-01T00:00:00Z"


async def deliver_late(requests: Requests, task: str) -> None:
    """Have a task's first turn come again, once it is packed, and its message id is forgotten."""
    await sooner_or_later(lambda: find(requests, TENANT, task))
    await sooner_or_later(lambda: publish_work(requests, turn_work(task, tenant=TENANT)))


async def leave_behind(requests: Requests, task: str, is_gone: Callable[[], bool]) -> None:
    """Leave a record, a timer and a message of a packed task, as of writers that slept: the sweeps are to find them.

    Nothing where the task is dropped before that.
    """

    async def leave() -> bool:
        packed = await find(requests, TENANT, task)
        if packed is not None:
            await _leave(requests, packed)
        return packed is not None or is_gone()

    await sooner_or_later(leave)


async def _leave(requests: Requests, packed: PackedTask) -> None:
    task = packed.task
    await project(requests, packed.record)
    at, fired = (place("deadline", TENANT, task, "task") for place in (subjects.timer_at, subjects.timer_fired))
    schedule = {headers.SCHEDULE: FAR_AWAY, headers.SCHEDULE_TARGET: fired}
    await requests.publish(at, encode(DeadlineCommand(task=task, tenant=TENANT, by="chaos")), schedule)
    work = ToolWork(task=task, tenant=TENANT, turn=1, call="1-0", tool=FORGOTTEN_TOOL, arguments={})
    message_id = {headers.MESSAGE_ID: f"{task}.{FORGOTTEN_TOOL}"}
    await requests.publish(subjects.tools(FORGOTTEN_TOOL), encode(work), message_id)
