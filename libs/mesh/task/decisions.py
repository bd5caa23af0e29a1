"""What to do with a delivery: pure functions of the folded journal and the message. For a failure: `failures`.

The numbers are those of the rules in PROTOCOL.md, "Rules of a writer".
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from contracts.errors import ErrorInfo
from contracts.identifiers import turn_of, turn_step
from contracts.journal import events
from contracts.journal.parts import StepGen, ToolCall
from contracts.messages.work import ToolWork, TurnWork, Work
from contracts.records.tools import ASK_USER
from contracts.tasks import fingerprint
from mesh.task.failures import GiveUp
from mesh.task.limits import is_last_turn
from mesh.task.outbox import lacks_its_end
from mesh.task.state import TaskState

FIRST_STEP = turn_step(1)


@dataclass(frozen=True, slots=True)
class Begin:
    """There is no journal yet: write its first event from the request in the message, and decide again."""

    work: TurnWork


@dataclass(frozen=True, slots=True)
class Claim:
    """The step is to be done: claim it."""


@dataclass(frozen=True, slots=True)
class Settle:
    """Nothing is left to do for this delivery, for now or for good: project, publish what is due, ack."""


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
    if work.gen > gen:
        return Later()  # rule 6
    if work.gen < gen:
        # It may have been replayed before its record was written.
        repaired = state.repaired.get((work.step, work.gen))
        return SettleDeadLetter(repaired) if repaired is not None else Drop()
    at, now_at = (work.tries, work.releases), state.message_epoch(work.step)
    if at != now_at:
        # Another message has taken this one's place, or the fold is not there yet.
        return Settle() if at < now_at else Later()
    if state.bindings.get((work.step, gen), message) != message:
        return Drop()  # rule 3
    dead_letter = state.dead_letters.get((work.step, gen))
    if dead_letter is not None:
        return SettleDeadLetter(dead_letter)  # rule 7
    if state.has_result(work.step) and not lacks_its_end(state, work.step):
        return Settle()  # rule 2
    # Whether its next try is due is not asked: with these tries only the timer can have brought the message.
    if isinstance(work, TurnWork):
        if work.turn > 1 and not _may_begin(state, work.turn):
            return Later()
        if state.queued.deadline is not None and now >= state.queued.deadline and not state.claims:
            return Expire()
        return Claim()
    return _decide_call(state, work)


def _decide_call(state: TaskState, work: ToolWork) -> Claim | Settle | Later | Refuse:
    asked = state.asked_for(work.call)
    if asked is None or asked.tool != work.tool or _is_not_for_runners(state, asked):
        return Refuse(ErrorInfo("call-unknown", f"no turn of the journal asked for call {work.call} of {work.tool}"))
    if work.call in state.children:
        return Settle()  # The sub-task's end is the call's.
    if asked.approval and work.call not in state.resolutions:
        return Later()  # Whoever sent this: nobody has agreed yet.
    return Claim()


def stands_for(state: TaskState, step: StepGen, message: int, epoch: tuple[int, int], tool: str | None = None) -> bool:
    """Whether a message that can't be carried out is the one by which a step goes on: with it the step gives up.

    Anybody can publish a message for a task. One that its journal has not called for must not pause it.
    """
    name, gen = step.step, step.gen
    if state.queued is None or state.terminal is not None or state.gen(name) != gen:
        return False
    if epoch != state.message_epoch(name) or state.bindings.get((name, gen), message) != message:
        return False
    if state.has_result(name) or (name, gen) in state.dead_letters:
        return False
    if "-" not in name:
        before = state.turn(turn_of(name) - 1).completed
        return name == FIRST_STEP or (before is not None and _have_results(state, before))
    asked = state.asked_for(name)
    if asked is None or asked.tool != tool or asked.error is not None or asked.tool == ASK_USER:
        return False
    waits = asked.approval and name not in state.resolutions
    return not waits and name not in state.children


def error_of(decided: Later | Refuse, work: Work) -> ErrorInfo:
    """Why a message is given up, once nothing more is to come that could fit it."""
    if isinstance(decided, Refuse):
        return decided.error
    return ErrorInfo("journal-missing", f"no journal fits step {work.step}")


@dataclass(frozen=True, slots=True)
class Leave:
    """Nothing is left to do for the message: project what its task has come to, and take it from its queue."""


def decide_stranded(
    state: TaskState, work: Work, message: int, now: datetime
) -> Begin | Expire | GiveUp | SettleDeadLetter | Refuse | Leave:
    """What to do with a message that nobody will get any more (rule 8): its work is done, or a dead letter."""
    match decide(state, work, message, now):
        case Settle() | Drop():
            return Leave()
        case Claim():
            return GiveUp()
        case Later() as later:
            return Refuse(error_of(later, work))
        case decision:
            return decision


def _is_not_for_runners(state: TaskState, asked: ToolCall) -> bool:
    """Whether nobody is to run the call: it was refused, is a question, or its turn was the last one."""
    completed = state.turn(turn_of(asked.call)).completed
    last = completed is not None and is_last_turn(state, completed)
    return asked.error is not None or asked.tool == ASK_USER or last


def _may_begin(state: TaskState, turn: int) -> bool:
    """Whether the turn before is completed, was not the last one, and all of its calls have their results."""
    before = state.turn(turn - 1).completed
    if before is None or is_last_turn(state, before):
        return False
    return _have_results(state, before)


def _have_results(state: TaskState, completed: events.TurnCompleted) -> bool:
    return all(asked.call in state.call_results for asked in completed.calls)


def base_of_claim(state: TaskState, turn: int, n: int) -> int:
    """The base that a claim with this n says: a text that is there was made from its own, and may be gone on with."""
    so_far = state.turn(turn)
    return so_far.base_n if so_far.parts or so_far.reasoning or so_far.completed else n


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
        parent=work.parent,
        trigger=work.trigger,
        budget_tokens=work.budget_tokens if work.budget_tokens is not None else work.request.budget_tokens,
        by=work.by,
        pool_bound=work.pool_bound,
        estimate=work.estimate,
        reserved=work.reserved,
    )
