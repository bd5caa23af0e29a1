"""Which handler a turn goes to: that of its pool, and of the configuration that holds as the turn begins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from contracts.messages.work import TurnWork, Work
from mesh.steps.claimed_step import ClaimedStep, StepHandler
from mesh.task.state import TaskState


class Generation:
    """The handlers of one configuration, and the connections that they stand on, which end with their last turn."""

    def __init__(self, handlers: Mapping[str, StepHandler], close: Callable[[], Awaitable[None]]) -> None:
        self.handlers = handlers
        self._close = close
        self._running = 0
        self._is_retired = False

    async def perform(self, step: ClaimedStep, pool: str) -> None:
        """Run a turn. Raises `StepFailed`."""
        self._running += 1
        try:
            await self.handlers[pool].perform(step)
        finally:
            self._running -= 1
            if self._is_retired and not self._running:
                await self._close()

    async def retire(self) -> None:
        """Begin no further turn: the connections close as soon as none runs."""
        self._is_retired = True
        if not self._running:
            await self._close()


class PoolHandlers:
    """One handler for each pool. A lane's subject names the pool, so that no turn of another one comes here."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    def describe_claim(self, state: TaskState, work: Work) -> dict[str, str]:
        """Which provider and model the turn goes to."""
        return self._generation.handlers[_pool_of(work)].describe_claim(state, work)

    async def perform(self, step: ClaimedStep) -> None:
        """Run the turn. Raises `StepFailed`."""
        await self._generation.perform(step, _pool_of(step.work))

    async def replace(self, generation: Generation) -> None:
        """Turns that begin from now on go to these handlers; those that run stay with theirs."""
        old, self._generation = self._generation, generation
        await old.retire()

    async def close(self) -> None:
        """No turn runs any more."""
        await self._generation.retire()


def _pool_of(work: Work) -> str:
    if not isinstance(work, TurnWork):
        raise TypeError("not a turn")
    return work.pool
