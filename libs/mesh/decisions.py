"""What to do with a delivery, and with a failure: pure functions of the folded journal and the message.

The numbers are those of the rules in PROTOCOL.md, "Rules of a writer".
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from contracts import events
from contracts.errors import ErrorInfo, TaskmeshError
from contracts.retries import RetryPolicy
from contracts.tasks import fingerprint
from contracts.work import TurnWork, Work
from mesh.fold import TaskState


@dataclass(frozen=True, slots=True)
class Begin:
    """There is no journal yet: write its first event from the request in the message, and decide again."""

    work: TurnWork


@dataclass(frozen=True, slots=True)
class Claim:
    """The step is to be done: claim it."""


@dataclass(frozen=True, slots=True)
class Settle:
    """The step, or the whole task, is done: project, publish what is due, ack."""


@dataclass(frozen=True, slots=True)
class SettleDeadLetter:
    """The step gave up before: write its record again, and term."""

    event: events.TaskDeadLettered


@dataclass(frozen=True, slots=True)
class Expire:
    """The deadline passed before anybody began: end the task, and decide again."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Another message stands for this step: ack, and no more."""


@dataclass(frozen=True, slots=True)
class Later:
    """What this step builds on can't be seen yet: a stale read, or a message ahead of its journal."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """No journal can ever fit this message: a dead letter of its own."""

    error: ErrorInfo


Decision = Begin | Claim | Settle | SettleDeadLetter | Expire | Drop | Later | Refuse


def decide(  # noqa: PLR0911 - one return for each case, in the order of the rules
    state: TaskState, work: Work, message: int, now: datetime
) -> Decision:
    """What to do with a delivery of `work`, whose stream sequence is `message`."""
    if state.queued is None:
        if isinstance(work, TurnWork) and work.request is not None and work.accepted_at is not None:
            return Begin(work)  # rule 10
        return Later()
    if state.terminal is not None:
        return Settle()  # rule 2
    gen = state.gen(work.step)
    if work.gen != gen:
        return Drop() if work.gen < gen else Later()  # rule 6
    if state.bindings.get((work.step, gen), message) != message:
        return Drop()  # rule 3
    dead_letter = state.dead_letters.get((work.step, gen))
    if dead_letter is not None:
        return SettleDeadLetter(dead_letter)  # rule 7
    if state.has_result(work.step) and not _lacks_its_end(state, work):
        return Settle()  # rule 2
    if isinstance(work, TurnWork):
        if work.turn > 1 and not state.turn(work.turn - 1).completed:
            return Later()
        if state.queued.deadline is not None and now >= state.queued.deadline and not state.claims:
            return Expire()
    elif not _asked_for(state, work.turn, work.call):
        return Refuse(ErrorInfo("call-unknown", f"no turn of the journal asked for call {work.call}"))
    return Claim()


@dataclass(frozen=True, slots=True)
class Cancel:
    """The task goes on: end it."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """No journal can be seen: there is no such task, if the stream's leader says so too."""


def decide_cancel(state: TaskState) -> Cancel | Settle | Unknown:
    """What to do with a command to stop a task."""
    if state.queued is None:
        return Unknown()  # rule 11
    return Cancel() if state.terminal is None else Settle()  # rules 9 and 2


def _lacks_its_end(state: TaskState, work: Work) -> bool:
    """A last turn (it asks for no calls) is only done once the task has its terminal event."""
    if not isinstance(work, TurnWork):
        return False
    completed = state.turn(work.turn).completed
    return completed is not None and not completed.calls


def _asked_for(state: TaskState, turn: int, call: str) -> bool:
    completed = state.turn(turn).completed
    return completed is not None and any(asked.call == call for asked in completed.calls)


def queued_event(stamp: events.Stamp, work: TurnWork) -> events.TaskQueued:
    """The first event of a journal, the same whoever writes it: the ingress, or a worker that finds none."""
    if work.request is None or work.accepted_at is None:
        raise ValueError("only the first turn, as it is in TASKS, carries the request")
    return events.TaskQueued(
        *stamp,
        request=work.request,
        pool=work.pool,
        priority=work.priority,
        fingerprint=fingerprint(work.request),
        accepted_at=work.accepted_at,
        deadline=work.deadline,
    )


@dataclass(frozen=True, slots=True)
class Retry:
    """Try the step again after a delay."""

    delay_seconds: float
    tries: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No further try: a dead letter."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The request itself is wrong: the task ends."""


class StepFailed(TaskmeshError):
    """A step's own failure. `terminal`: the request is at fault, and no other try can succeed."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool,
        terminal: bool = False,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable)
        self.terminal = terminal
        self.retry_after_seconds = retry_after_seconds


def decide_failure(
    state: TaskState, work: Work, error: StepFailed, policy: RetryPolicy, random_fraction: float
) -> Retry | GiveUp | Fail:
    """What follows a failed try. Tries are counted in the journal, so that crashes and deploys don't eat them."""
    if error.terminal:
        return Fail()
    tries = state.tries.get((work.step, work.gen), 0) + 1
    if not error.retryable or tries >= policy.tries_max:
        return GiveUp()
    return Retry(policy.delay_seconds(tries, random_fraction, error.retry_after_seconds), tries)
