"""A tenant's account: what was used in each window, what is reserved, and what runs. Pure.

What is taken of a limit is the sum of three: what turns have used in its window, also those that still run; what these
are thought to use beyond that; and what accepted tasks that have not begun are thought to use. The latter two count in
each window until they are over. Both end by themselves, so that nobody who dies leaves a budget short for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec

from contracts.records.budgets import HELD_MAX, RUNNING_MAX, BudgetAccount, HeldSlot, RunningTurns, WindowSpent
from mesh.budgets.limits import WINDOWS, Amount, Limit, Window, begin_of, end_of

ANY: Final = Amount(1, 1)
"""The least that somebody may want."""
HELD_SLOT: Final = timedelta(minutes=5)
HELD_FOR: Final = timedelta(minutes=60)
"""How long a reservation counts that nobody has released. Of a task that waits longer nothing is reserved any more; it
is held against its tenant's budget again when it begins."""
RUNNING_FOR: Final = timedelta(seconds=30)
"""How long the turns of a process count that does not write any more."""
REMEMBERED_FOR: Final = timedelta(minutes=10)
"""How long the number of its last write stays: for who was not answered, and could not ask sooner."""


def empty(tenant: str, at: datetime) -> BudgetAccount:
    """The account of a tenant that has used nothing."""
    return BudgetAccount(tenant=tenant, time=at)


def rolled(account: BudgetAccount, at: datetime) -> BudgetAccount:
    """The account without what does not count any more at this time."""
    spent = {window: _window(account, window, at) for window in WINDOWS}
    held = [slot for slot in account.held if slot.since + HELD_FOR > at]
    running = [
        each if each.time + RUNNING_FOR > at else RunningTurns(worker=each.worker, time=each.time, flush=each.flush)
        for each in account.running
        if each.time + REMEMBERED_FOR > at
    ]
    return msgspec.structs.replace(account, **spent, held=held, running=running)


def spend(account: BudgetAccount, at: datetime, amount: Amount) -> BudgetAccount:
    """Turns have used so much more, or less than they were seen to: then the amount is less than nothing."""
    spent: dict[str, WindowSpent] = {}
    for window in WINDOWS:
        before = _window(account, window, at) or WindowSpent(since=begin_of(window, at))
        spent[window] = WindowSpent(
            since=before.since,
            tokens=max(0, before.tokens + amount.tokens),
            cost_micros=max(0, before.cost_micros + amount.cost_micros),
        )
    return msgspec.structs.replace(account, time=at, **spent)


def at_least(account: BudgetAccount, at: datetime, used: dict[Window, Amount]) -> BudgetAccount:
    """An account that tells no less used than others have counted, in these windows.

    It is never lowered: what others count comes later, and this is what is decided by.
    """
    spent: dict[str, WindowSpent] = {}
    for window, amount in used.items():
        before = _window(account, window, at) or WindowSpent(since=begin_of(window, at))
        spent[window] = WindowSpent(
            since=before.since,
            tokens=max(before.tokens, amount.tokens),
            cost_micros=max(before.cost_micros, amount.cost_micros),
        )
    return msgspec.structs.replace(account, **spent)


def hold(account: BudgetAccount, at: datetime, amount: Amount) -> BudgetAccount:
    """Reserve so much."""
    since = _slot_of(at)
    held = [slot for slot in account.held if slot.since != since]
    before = next((slot for slot in account.held if slot.since == since), HeldSlot(since=since))
    held.append(_slot(before, before.tokens + amount.tokens, before.cost_micros + amount.cost_micros))
    return msgspec.structs.replace(account, time=at, held=sorted(held, key=lambda slot: slot.since)[-HELD_MAX:])


def release(account: BudgetAccount, at: datetime, since: datetime, amount: Amount) -> BudgetAccount:
    """Give back what was reserved at a time, or shortly before: it is a task's, or was not needed."""
    left = amount
    held: list[HeldSlot] = []
    for slot in sorted(account.held, key=lambda slot: slot.since, reverse=True):
        if slot.since <= since:
            here = Amount(slot.tokens, slot.cost_micros)
            rest = here.less(left)
            left = left.less(here)
            slot = _slot(slot, *rest)  # noqa: PLW2901 - what is left of it
        if slot.tokens or slot.cost_micros:
            held.append(slot)
    return msgspec.structs.replace(account, time=at, held=held[::-1])


def run(account: BudgetAccount, at: datetime, worker: str, expected: Amount, flush: int) -> BudgetAccount:
    """A process's turns under way are thought to use so much more than they have."""
    running = [each for each in account.running if each.worker != worker]
    # One that runs nothing stays for a while all the same: it tells what was stored.
    own = RunningTurns(
        worker=worker,
        time=at,
        flush=flush,
        expected_tokens=expected.tokens,
        expected_cost_micros=expected.cost_micros,
    )
    return msgspec.structs.replace(account, time=at, running=[*running[-RUNNING_MAX + 1 :], own])


def flush_of(account: BudgetAccount, worker: str) -> int:
    """The last write of a process that is in the account; 0 if none is."""
    return next((each.flush for each in account.running if each.worker == worker), 0)


def spent_in(account: BudgetAccount, window: Window) -> Amount:
    """What turns have used."""
    spent: WindowSpent | None = getattr(account, window)
    return Amount() if spent is None else Amount(spent.tokens, spent.cost_micros)


def used_in(account: BudgetAccount) -> dict[Window, Amount]:
    """What was used in each window of an account that is `rolled`."""
    return {window: spent_in(account, window) for window in WINDOWS}


def reserved_in(account: BudgetAccount) -> Amount:
    """What accepted tasks are thought to use, and turns under way beyond what they have: in each window."""
    return Amount(
        sum(slot.tokens for slot in account.held) + sum(each.expected_tokens for each in account.running),
        sum(slot.cost_micros for slot in account.held) + sum(each.expected_cost_micros for each in account.running),
    )


def taken_of(account: BudgetAccount) -> dict[Window, Amount]:
    """What was used in each window, and all that is reserved: what no further task may count on."""
    reserved = reserved_in(account)
    return {window: spent_in(account, window).plus(reserved) for window in WINDOWS}


def lacking(limits: Sequence[Limit], at: datetime, taken: dict[Window, Amount], wanted: Amount = ANY) -> Limit | None:
    """The limit that has no room for so much; None if all have. Of several the one that frees last."""
    short = [limit for limit in limits if taken[limit.window].of(limit.unit) + wanted.of(limit.unit) > limit.most]
    return max(short, key=lambda limit: end_of(limit.window, at), default=None)


def _window(account: BudgetAccount, window: Window, at: datetime) -> WindowSpent | None:
    """What was used in the window of this time. Who wrote may be ahead by a moment: a later window counts, too."""
    spent: WindowSpent | None = getattr(account, window)
    return spent if spent is not None and spent.since >= begin_of(window, at) else None


def _slot_of(at: datetime) -> datetime:
    begin = begin_of("day", at)
    return begin + (at - begin) // HELD_SLOT * HELD_SLOT


def _slot(slot: HeldSlot, tokens: int, cost_micros: int) -> HeldSlot:
    return HeldSlot(since=slot.since, tokens=tokens, cost_micros=cost_micros)
