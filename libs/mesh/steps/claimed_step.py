"""A claimed step: what its handler gets, and appends to; and how it is performed until it ends, or has to be let go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from contracts import subjects
from contracts.codec import encode
from contracts.journal import events
from contracts.journal.edge_events import OutputPreview
from contracts.journal.events import JournalEvent
from contracts.messages.work import Work
from mesh import faults
from mesh.broker.deliveries import Delivery
from mesh.errors import StepLost
from mesh.journal.journal import Build, Journal
from mesh.journal.watching import Watches, until_lost
from mesh.task.state import TaskState

log = structlog.get_logger("mesh.steps.claimed_step")

LET_GO_SECONDS_MAX = 0.5
"""How long a handler may take to stop by itself, with what it has gathered appended, before it is cancelled."""


class StepRecalled(Exception):
    """The process stops, and another one is to go on with the step."""


class ClaimedStep:
    """A step that this process owns, until the journal says otherwise."""

    def __init__(self, journal: Journal, work: Work, claim: events.StepClaimed, delivery: Delivery) -> None:
        self.work = work
        self.claim = claim
        self.deliveries = delivery.deliveries
        self.recalled = delivery.recalled
        self.on_news: Callable[[], None] | None = None
        """Called when somebody else's events were folded while the step runs, and when it is recalled."""
        self._journal = journal

    @property
    def state(self) -> TaskState:
        """The journal as folded so far."""
        return self._journal.state

    def fitting(self, bytes_max: int) -> int:
        """A bound that was made for messages of 1 MiB, for those that the broker takes (`Requests.fitting`)."""
        return self._journal.requests.fitting(bytes_max)

    @property
    def is_recalled(self) -> bool:
        """Whether its handler is to stop, as soon as what it has gathered is appended, by raising `StepRecalled`."""
        return self.recalled.is_set()

    async def append(self, build: Build) -> JournalEvent:
        """Append an event of this step. Raises `StepLost` once the step is somebody else's, or the task over."""
        await self._journal.folded.pause.over()
        return await self._journal.append(build, lambda state: state.owns(self.claim))

    async def append_if(self, build: Build, still_so: Callable[[TaskState], bool]) -> JournalEvent | None:
        """The same, while `still_so` holds; None if it does not any more. Raises `StepLost`."""
        await self._journal.folded.pause.over()
        try:
            return await self._journal.append(build, lambda state: state.owns(self.claim) and still_so(state))
        except StepLost:
            if not self.state.owns(self.claim):
                raise
            return None

    async def preview(self, turn: int, text: str) -> None:
        """Tell those who listen what a turn has said since its last event, while nothing can be stored. May be lost."""
        state = self.state
        said = OutputPreview(task=state.task, tenant=state.tenant, n=max(state.next_n - 1, 0), turn=turn, text=text)
        payload = encode(said)
        if len(payload) <= self._journal.requests.payload_bytes_max:
            await self._journal.requests.announce(subjects.live_preview(state.tenant, state.task), payload)

    async def publish(self, subject: str, payload: bytes, message_headers: dict[str, str]) -> None:
        """Publish what a step is there to publish, under a message id: nothing fences it.

        Raises `BrokerError`, `BrokerUnavailable`.
        """
        await self._journal.requests.publish(subject, payload, message_headers)


class StepHandler(Protocol):
    """What a service does with a step."""

    def describe_claim(self, state: TaskState, work: Work) -> dict[str, str]:
        """More fields for the claim event: `provider` and `model` of a turn, and `reason`."""
        ...

    async def perform(self, step: ClaimedStep) -> None:
        """Run the step, and append its result. Raises `StepFailed`, `StepRecalled`; anything else counts as unknown."""
        ...


async def perform_while_owned(handler: StepHandler, step: ClaimedStep, journal: Journal, watches: Watches) -> None:
    """Run the handler for as long as the step is owned. Raises what it raises, `StepLost`, or `StepRecalled`."""
    performing = asyncio.create_task(handler.perform(step))
    watching = asyncio.create_task(_watch(step, journal, watches))
    recall = asyncio.create_task(step.recalled.wait())
    try:
        await asyncio.wait({performing, watching, recall}, return_when=asyncio.FIRST_COMPLETED)
        if not performing.done() and watching.done() and watching.exception() is not None:
            # The fence and the lease protect the step without it.
            log.error("step.watch_broke", error=str(watching.exception()))
            await asyncio.wait({performing, recall}, return_when=asyncio.FIRST_COMPLETED)
        if not performing.done() and recall.done():
            if step.on_news is not None:
                step.on_news()
            await asyncio.wait({performing}, timeout=LET_GO_SECONDS_MAX)
            if not performing.done():
                raise StepRecalled
        if not performing.done():
            raise StepLost(f"task {journal.state.task}: the journal has moved on")
        performing.result()
    finally:
        # Also where this delivery's own task is cancelled: nothing of the step outlives it.
        for task in (performing, watching, recall):
            task.cancel()
        await asyncio.gather(performing, watching, recall, return_exceptions=True)


async def _watch(step: ClaimedStep, journal: Journal, watches: Watches) -> None:
    if not faults.WATCH_ON:
        await asyncio.Event().wait()

    def on_news() -> None:
        if step.on_news is not None:
            step.on_news()

    async with watches.on(journal):
        await until_lost(journal, step.claim, on_news)
