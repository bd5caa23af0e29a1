"""Settling: what is done for a step or command that is done, whoever comes upon it. Each part may be done twice."""

from __future__ import annotations

from mesh.dues import Due, due_after, publish_due
from mesh.fold import TaskState, record
from mesh.projection import project
from mesh.requests import Requests


async def settle(
    requests: Requests, state: TaskState, steps: tuple[str, ...], traceparent: str | None, again: tuple[Due, ...] = ()
) -> None:
    """Project the task, then publish what is due after each of the steps, and what goes on (rule 1).

    Raises `BrokerUnavailable`.
    """
    await project(requests, record(state))
    for step in steps:
        await publish_due(requests, due_after(state, step), traceparent)
    await publish_due(requests, [*again], traceparent)
