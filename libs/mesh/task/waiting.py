"""What a task waits for, by its journal alone. Pure.

A journal says which step is due, and who has claimed it. That a queue has no worker, is paused, or stands before a
provider that is down, others know (`mesh.fleet`).
"""

from __future__ import annotations

from datetime import datetime

from contracts.identifiers import turn_of
from contracts.journal import parts
from contracts.records.status import Waiting, WaitsFor
from contracts.retries import PAUSE_CODES
from mesh.task.state import TaskState


def waiting_of(state: TaskState) -> Waiting | None:
    """What the task waits for; None if it has ended, or has not begun.

    Of several things that which somebody has to do something about, then what is not being carried out, the oldest
    first.
    """
    if state.terminal is not None or state.queued is None:
        return None
    waits = [*_on_people(state), *_on_calls(state)]
    if not waits:
        return _on_turn(state, state.queued.accepted_at)
    first, *others = sorted(waits, key=lambda wait: (_URGENCY.index(wait.on), wait.since))
    if not others:
        return first
    more = f"{len(others)} other call{'' if len(others) == 1 else 's'}"
    return _with_detail(
        first, f"{first.detail.removesuffix('.')}; {more} of the turn {'is' if len(others) == 1 else 'are'} open too."
    )


_URGENCY = ("repair", "approval", "question", "provider", "runner", "retry", "subtask", "step")


def _on_people(state: TaskState) -> list[Waiting]:
    """Dead letters, approvals and questions."""
    found = [
        Waiting(
            on="repair",
            since=letter.time,
            step=letter.step,
            tool=_tool_of(state, letter.step),
            detail=(
                f"{_name(state, letter.step)} gave up at {clock(letter.time)} ({letter.error.code}), and waits to be"
                f" replayed: meshctl dead-letters show {state.task}."
            ),
        )
        for letter in state.open_dead_letters
    ]
    found += [
        Waiting(
            on="approval",
            since=asked.time,
            step=asked.call,
            tool=asked.tool,
            until=asked.expires_at,
            detail=(
                f"Call {asked.call} of {asked.tool} waits since {clock(asked.time)} for a person to approve it,"
                f" until {clock(asked.expires_at)}."
            ),
        )
        for asked in state.open_approvals
    ]
    for question in state.open_questions:
        until = f", until {clock(question.expires_at)}" if question.expires_at is not None else ""
        found.append(
            Waiting(
                on="question",
                since=question.time,
                step=question.call,
                until=question.expires_at,
                detail=f"A question waits since {clock(question.time)} for the user's answer{until}.",
            )
        )
    return found


def _on_calls(state: TaskState) -> list[Waiting]:
    """Calls of the last turn without a result, but for those that wait for people."""
    completed = state.last_completed
    if completed is None:
        return []
    told = {asked.call for asked in state.open_approvals} | {asked.call or "" for asked in state.open_questions}
    told |= {letter.step for letter in state.open_dead_letters}
    return [_on_call(state, asked, completed.time) for asked in state.open_calls if asked.call not in told]


def _on_call(state: TaskState, asked: parts.ToolCall, since: datetime) -> Waiting:
    child = state.children.get(asked.call)
    if child is not None:
        return Waiting(
            on="subtask",
            since=child.time,
            step=asked.call,
            tool=asked.tool,
            task=child.child,
            detail=f"Call {asked.call} waits since {clock(child.time)} for its sub-task {child.child} to end.",
        )
    resolved = state.resolutions.get(asked.call)
    return _on_step(state, asked.call, max(since, resolved.time) if resolved is not None else since)


def _on_turn(state: TaskState, accepted_at: datetime) -> Waiting:
    """The turn that runs, or is due."""
    number = max(state.turns, default=1)
    before = state.turn(number).completed
    if before is not None:
        # All of its calls have their results: the next turn is due.
        results = [state.call_results[asked.call].time for asked in before.calls if asked.call in state.call_results]
        return _on_step(state, str(number + 1), max(results, default=before.time))
    last = state.turn(number - 1).completed
    return _on_step(state, str(number), last.time if last is not None else accepted_at)


def _on_step(state: TaskState, step: str, since: datetime) -> Waiting:
    """A step that is carried out, waits for its next try, or in its queue."""
    step_gen = (step, state.gen(step))
    name, tool = _name(state, step), _tool_of(state, step)
    claim = state.claims.get(step_gen)
    retry = _next_try(state, step, since)
    if retry is not None:
        return retry
    if claim is not None and state.owns(claim):
        return Waiting(
            on="step",
            since=claim.time,
            step=step,
            tool=tool,
            worker=claim.worker,
            detail=f"{name} is carried out since {clock(claim.time)} by {claim.worker}.",
        )
    return Waiting(
        on="runner" if tool is not None else "worker",
        since=since,
        step=step,
        tool=tool,
        detail=f"{name} waits since {clock(since)} for a free {'runner' if tool is not None else 'worker'}.",
    )


def _next_try(state: TaskState, step: str, since: datetime) -> Waiting | None:
    """A step whose last try has failed, and waits for the next one; None if it has not, or that is under way."""
    step_gen = (step, state.gen(step))
    tries = state.tries.get(step_gen, 0)
    if tries == 0 or tries < state.claim_counts.get(step_gen, 0):
        return None
    name, tool = _name(state, step), _tool_of(state, step)
    failures = state.failures.get(step_gen)
    why = f" ({failures[-1].code})" if failures else ""
    failed = f"after {tries} failed tr{'y' if tries == 1 else 'ies'}{why}"
    retry_at = state.retry_at.get(step_gen)
    away_since = state.away_since(step, step_gen[1])
    if failures and failures[-1].code in PAUSE_CODES:
        at = f"; it is tried again at {clock(retry_at)}" if retry_at is not None else ""
        detail = f"{name} waits for its tenant's budget, which is used up{at}."
        return Waiting(on="retry", since=state.changed_at or since, step=step, tool=tool, until=retry_at, detail=detail)
    if retry_at is not None:
        on: WaitsFor = "retry"
        detail = f"{name} is tried again at {clock(retry_at)}, {failed}."
    elif away_since is not None:
        on, since = "provider", away_since
        detail = f"{name} waits since {clock(since)} for its provider, {failed}."
    else:
        on, since = "retry", state.changed_at or since
        detail = f"{name} waits since {clock(since)} for its next try, {failed}."
    return Waiting(on=on, since=since, step=step, tool=tool, until=retry_at, detail=detail)


def _name(state: TaskState, step: str) -> str:
    tool = _tool_of(state, step)
    return f"Call {step} of {tool}" if tool is not None else f"Turn {turn_of(step)}"


def _tool_of(state: TaskState, step: str) -> str | None:
    if "-" not in step:
        return None
    asked = state.asked_for(step)
    return asked.tool if asked is not None else None


def clock(at: datetime) -> str:
    """A time, for people."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _with_detail(waiting: Waiting, detail: str) -> Waiting:
    return Waiting(**{name: getattr(waiting, name) for name in waiting.__struct_fields__} | {"detail": detail})
