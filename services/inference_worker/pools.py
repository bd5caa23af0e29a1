"""Which handler a turn goes to: that of its pool."""

from __future__ import annotations

from collections.abc import Mapping

from contracts.messages.work import TurnWork, Work
from mesh.steps.claimed_step import ClaimedStep, StepHandler
from mesh.task.state import TaskState


class PoolHandlers:
    """One handler for each pool. A lane's subject names the pool, so that no turn of another one comes here."""

    def __init__(self, handlers: Mapping[str, StepHandler]) -> None:
        self._handlers = handlers

    def describe_claim(self, state: TaskState, work: Work) -> dict[str, str]:
        """Which provider and model the turn goes to."""
        return self._of(work).describe_claim(state, work)

    async def perform(self, step: ClaimedStep) -> None:
        """Run the turn. Raises `StepFailed`."""
        await self._of(step.work).perform(step)

    def _of(self, work: Work) -> StepHandler:
        if not isinstance(work, TurnWork):
            raise TypeError("not a turn")
        return self._handlers[work.pool]
