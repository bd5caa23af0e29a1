"""The budget of a task, of which its sub-tasks get their shares; and what all of them have used. Pure.

What a task has left is its budget without what its own turns have used, what its ended sub-tasks have used, and what
those that still run were given. So each member of a tree exceeds its share by one turn at most, its last.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from contracts.identifiers import turn_of
from contracts.journal import events, parts
from contracts.records.tools import SPAWN_TASK
from contracts.records.usage import unpriced_of
from contracts.tasks import COST_MICROS
from mesh.task.discarded import discarded_tokens
from mesh.task.state import TaskState


def usage_so_far(state: TaskState, after_turn: int | None = None) -> parts.Usage:
    """What all calls of models have used, and what was thrown away of turns: in all turns, or in those up to one."""
    turns = [turn for turn in state.turns.values() if after_turn is None or turn.turn <= after_turn]
    told = [turn.completed.usage for turn in turns if turn.completed] + [each for turn in turns for each in turn.spent]
    lost = sum(turn.lost_calls for turn in turns) + len(state.terminal.lost or () if state.terminal else ())
    thrown_away = discarded_tokens(state, after_turn)
    rest = parts.Usage(discarded_tokens=thrown_away or msgspec.UNSET, untold_calls=lost or msgspec.UNSET)
    return total([*told, rest])


def lost_calls(state: TaskState) -> list[parts.ModelCall] | None:
    """Calls of models that are under way, as whoever ends their claim, or their task, has to tell; None without any."""
    return [call for turn in state.turns.values() for call in turn.open_calls] or None


def tree_usage(state: TaskState) -> parts.Usage:
    """What the completed turns and all sub-tasks that have ended have used, those of sub-tasks included."""
    ended = (result.usage for call in state.children if (result := _end_of_child(state, call)) and result.usage)
    return total([usage_so_far(state), *ended])


def budget_left(state: TaskState) -> int | None:
    """How many tokens, read and put out, the turns and sub-tasks to come may use up; None without a budget.

    What a turn has used is known once it is completed, and what it has thrown away once it begins again.
    """
    budget = state.queued.budget_tokens if state.queued else None
    if budget is None:
        return None
    of_children = sum(_counted(state, started) for started in state.children.values())
    return max(0, budget - tokens(usage_so_far(state)) - of_children)


def budget_left_with(state: TaskState, usage: parts.Usage) -> int | None:
    """What is left once the turn under way is completed, as its event tells it."""
    left = budget_left(state)
    return None if left is None else max(0, left - tokens(usage))


def cost_left_micros(state: TaskState) -> int | None:
    """What the turns to come may cost, in millionths of the currency; None without such a budget.

    What ended sub-tasks have cost is taken off as well. What has no price costs nothing here: it is unknown.
    """
    budget = state.request.budget_cost if state.request else None
    if budget is None:
        return None
    return max(0, round(budget * COST_MICROS) - (tree_usage(state).cost_micros or 0))


def was_budget_left(state: TaskState, completed: events.TurnCompleted) -> int | None:
    """What was left when a turn was completed, whatever was used since. A writer of before counted its turns alone."""
    if completed.budget_left_tokens is not None:
        return completed.budget_left_tokens
    budget = state.queued.budget_tokens if state.queued else None
    return None if budget is None else max(0, budget - tokens(usage_so_far(state, completed.turn)))


def share_of_budget(state: TaskState, call: str) -> int | None:
    """What a call of `spawn_task` may give its sub-task: 0 if nothing is left; None without a budget.

    All calls of its turn that have still to begin get the same, and so does the task itself for what follows.
    """
    left, completed = budget_left(state), state.turn(turn_of(call)).completed
    if left is None or completed is None:
        return None
    to_begin = [
        asked
        for asked in completed.calls
        if asked.tool == SPAWN_TASK
        and asked.error is None
        and asked.call not in state.children
        and asked.call not in state.call_results
    ]
    return left // (len(to_begin) + 1)


def uncounted_tokens(state: TaskState) -> int:
    """The most that an ended task may have used beyond what it tells of its tree; 0 without a budget.

    By a turn that was cut off, by sub-tasks that run on, and by what those that have ended have left uncounted.
    """
    of_children = sum(_counted(state, started) for started in state.children.values())
    told = tokens(tree_usage(state)) - tokens(usage_so_far(state))
    last = state.turns.get(max(state.turns, default=0))
    begun = last is not None and last.claims > 0 and last.completed is None
    return of_children - told + ((budget_left(state) or 0) if begun else 0)


def accounts(state: TaskState) -> dict[str, Any]:
    """What an end tells of the task's whole tree: `tree_usage` and `over_budget_tokens`, where there is any."""
    used = tree_usage(state)
    budget = state.queued.budget_tokens if state.queued else None
    over = 0 if budget is None else max(0, tokens(used) - budget)
    return {"tree_usage": used if state.children else None, "over_budget_tokens": over or None}


def accounts_cut_short(state: TaskState) -> dict[str, Any]:
    """The same, and `lost`, of an end that comes while calls of models may be under way: these go with it."""
    lost, told = lost_calls(state), accounts(state)
    if told["tree_usage"] is not None:
        told["tree_usage"] = with_lost(told["tree_usage"], lost)
    return {**told, "lost": lost}


def with_lost(usage: parts.Usage, lost: list[parts.ModelCall] | None) -> parts.Usage:
    """Usage, and calls that nobody can tell of any more."""
    return total([usage, parts.Usage(untold_calls=len(lost))]) if lost else usage


def tokens(usage: parts.Usage) -> int:
    """Tokens read and put out, those that were thrown away included."""
    return usage.input_tokens + usage.output_tokens + (usage.discarded_tokens or 0)


def _end_of_child(state: TaskState, call: str) -> events.SubtaskCompleted | None:
    result = state.call_results.get(call)
    return result if isinstance(result, events.SubtaskCompleted) else None


def _counted(state: TaskState, started: events.SubtaskStarted) -> int:
    """What a sub-task takes from the budget: what it has used, if that is told; else what it was given.

    Writers of before tell neither, and led tasks on without counting it: so it counts nothing.
    """
    end = _end_of_child(state, started.call)
    if end is None or end.usage is None:
        return started.budget_tokens or 0
    return tokens(end.usage) + (end.uncounted_tokens or 0)


def total(usages: Iterable[parts.Usage]) -> parts.Usage:
    """All of them together. What has no price is told beside the cost of the rest, and no cost where nothing has."""
    read = put_out = discarded = cached = created = reasoning = unpriced = untold = 0
    cost: int | None = None
    for usage in usages:
        read += usage.input_tokens
        put_out += usage.output_tokens
        discarded += usage.discarded_tokens or 0
        cached += usage.cached_tokens or 0
        created += usage.cache_creation_tokens or 0
        reasoning += usage.reasoning_tokens or 0
        unpriced += unpriced_of(usage)
        untold += usage.untold_calls or 0
        if usage.cost_micros is not msgspec.UNSET:
            cost = (cost or 0) + usage.cost_micros
    return parts.Usage(
        input_tokens=read,
        output_tokens=put_out,
        discarded_tokens=discarded or msgspec.UNSET,
        cached_tokens=cached or msgspec.UNSET,
        cache_creation_tokens=created or msgspec.UNSET,
        reasoning_tokens=reasoning or msgspec.UNSET,
        cost_micros=msgspec.UNSET if cost is None else cost,
        unpriced_tokens=(unpriced if cost is not None else 0) or msgspec.UNSET,
        untold_calls=untold or msgspec.UNSET,
    )
