"""Reservations: what accepted tasks are thought to use, taken from a budget before they begin.

An acceptance asks nobody. Each process takes some of what is left ahead of need, in a block that is its own: so what
all of them accept never comes to more than a budget has, however little they see of each other. Only who has no block
yet, or meets more at once than it holds, waits for one request, together with all who come meanwhile. Blocks become
smaller as a budget runs out, and what nobody needs goes back within seconds.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from contracts.errors import TaskmeshError
from contracts.records.budgets import BudgetAccount
from mesh.background import is_seen
from mesh.budgets.account import hold, lacking, release, reserved_in, taken_of, used_in
from mesh.budgets.accounts import Accounts
from mesh.budgets.limits import NOTHING, UNITS, Amount, Limit, Window, least_of, limits_of
from mesh.budgets.quotas import Rest, quotas_of, rests_of
from mesh.clock import lease_clock, now
from mesh.configuration.tenants_table import TenantConfiguration
from mesh.serving.rate_limit_fields import Quota

log = structlog.get_logger("mesh.budgets.reservations")

AHEAD_SHARE: Final = 16
"""A process takes at most this part of what is left ahead of need."""
AHEAD_TASKS_MAX: Final = 64
"""And no more than so many tasks need like the one that came last."""
LOW_SHARE: Final = 4
"""When this part of a block is left, the next one is taken, beside what goes on."""
IDLE_SECONDS: Final = 2.0
"""How long a block may lie unused before it goes back."""
SPARE_SECONDS: Final = 60.0
"""And of a budget of which at most half is taken, some of it: so who submits now and then need not wait, either."""
SPARE_TASKS: Final = 2
"""Such tasks as the last one."""
TIDY_SECONDS: Final = 0.5
KEPT_MAX: Final = 1_000
TOLD_SECONDS: Final = 0.25
"""How long what is left is told as it was: others have taken some of it meanwhile, too."""


class BudgetExhausted(TaskmeshError):
    """A tenant has not as much left of a limit as is `wanted`. `reserved`: what is reserved of it, for others.

    `is_reserved`: nothing but that is in the way. What these turn out not to take comes back before the window ends.
    """

    code = "budget-exhausted"
    retryable = True

    def __init__(self, tenant: str, limit: Limit, wanted: int, reserved: int, *, is_reserved: bool) -> None:
        why = "of which tasks that wait or run are thought to take the rest" if is_reserved else "and has used them up"
        super().__init__(f"tenant {tenant} may use {limit.told()}, {why}")
        self.limit = limit
        self.wanted = wanted
        self.reserved = reserved
        self.is_reserved = is_reserved


@dataclass(slots=True)
class _Block:
    """What a process has taken for a tenant, and not given to a task yet."""

    limits: tuple[Limit, ...]
    """By which it was taken."""
    most: Amount
    """What a task counts for at the most."""
    left: Amount = NOTHING
    low: Amount = NOTHING
    """With less than that left the next one is taken."""
    last: Amount = NOTHING
    """What the last task was thought to use."""
    used_at: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ahead: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _View:
    """What an account comes to by some limits: worked out once for all who ask within a second."""

    account: BudgetAccount
    limits: tuple[Limit, ...]
    taken: dict[Window, Amount]
    used: dict[Window, Amount]
    reserved: Amount
    rests: list[Rest]
    used_up: Limit | None
    """A limit of tokens, of more than a minute, of which nothing is left whatever comes back: no task is so small."""
    told: list[Quota] = field(default_factory=list)
    told_until: float = 0.0


def _view(account: BudgetAccount, limits: tuple[Limit, ...]) -> _View:
    used, reserved = used_in(account), reserved_in(account)
    taken = {window: each.plus(reserved) for window, each in used.items()}
    left = [limit.most - taken[limit.window].of(limit.unit) for limit in limits]
    long = [limit for limit in limits if limit.unit == "tokens" and limit.window != "minute"]
    used_up = lacking(long, now(), used)
    return _View(account, limits, taken, used, reserved, rests_of(limits, left, now()), used_up)


class Reservations:
    """What one process reserves. `tenant_of` tells what holds for a tenant at present."""

    def __init__(self, accounts: Accounts, tenant_of: Callable[[str], TenantConfiguration]) -> None:
        self._accounts = accounts
        self._tenant_of = tenant_of
        self._blocks: dict[str, _Block] = {}
        self._views: OrderedDict[str, _View] = OrderedDict()
        """Of the accounts that were asked for last."""

    async def run(self) -> None:
        """Give back what is not needed, until cancelled."""
        while True:
            await asyncio.sleep(TIDY_SECONDS)
            idle = lease_clock() - IDLE_SECONDS
            for tenant, block in list(self._blocks.items()):
                if block.used_at <= idle and not block.lock.locked():
                    await self._return(tenant, block, self._spare(tenant, block))

    async def close(self) -> None:
        """Give all back: no task is accepted any more."""
        for tenant, block in list(self._blocks.items()):
            await self._return(tenant, block)

    def check(self, tenant: str) -> None:
        """Raise `BudgetExhausted` where a budget is used up so that no task may begin, whatever it is thought to use.

        It need not be estimated then. `reserve` knows of all others.
        """
        configured, block = self._tenant_of(tenant), self._blocks.get(tenant)
        limits = limits_of(configured)
        if not limits or configured.on_exhausted == "wait" or not self._accounts.is_fresh(tenant):
            return
        view = self._viewed(tenant, limits)
        if view.used_up is None or (block is not None and (block.left.tokens or block.ahead or block.lock.locked())):
            return
        raise BudgetExhausted(tenant, view.used_up, 1, view.reserved.tokens, is_reserved=False)

    async def reserve(self, tenant: str, estimate: Amount) -> Amount:
        """Reserve what a task is thought to use, and return what was reserved of it: nothing without a budget.

        Nothing is for a tenant whose tasks wait for their budget, either. Raises `BudgetExhausted`, and
        `BrokerUnavailable`.
        """
        configured = self._tenant_of(tenant)
        limits = limits_of(configured)
        if not limits or configured.on_exhausted == "wait":
            return NOTHING
        block = self._block(tenant, limits)
        if block.limits != limits:
            # The operator has set others: nobody is accepted by what the old ones had room for.
            block.limits, block.most = limits, least_of(limits)
            await self._return(tenant, block)
        amount = estimate.least(block.most)
        if not block.left.covers(amount):
            self._refuse_by_sight(tenant, block, amount, limits)
            async with block.lock:
                # Whoever was before may have taken enough for all.
                while not block.left.covers(amount):
                    await self._take(tenant, block, amount, limits)
        block.left, block.last = block.left.less(amount), amount
        if block.ahead is None and not block.left.covers(block.low):
            block.ahead = asyncio.create_task(self._take_ahead(tenant, block, amount, limits))
            block.ahead.add_done_callback(is_seen)
        return amount

    def give_back(self, tenant: str, reserved: Amount) -> None:
        """A task for which so much was reserved was not accepted after all."""
        block = self._block(tenant, limits_of(self._tenant_of(tenant)))
        block.left = block.left.plus(reserved)

    def _block(self, tenant: str, limits: tuple[Limit, ...]) -> _Block:
        block = self._blocks.get(tenant)
        if block is None:
            block = self._blocks[tenant] = _Block(limits, least_of(limits))
        block.used_at = lease_clock()
        return block

    def quotas(self, tenant: str) -> list[Quota]:
        """What is left of each limit, as far as is known here: as it was a moment ago, for who asks all the time."""
        limits = limits_of(self._tenant_of(tenant))
        if not limits:
            return []
        view, at = self._viewed(tenant, limits), lease_clock()
        if at >= view.told_until:
            block = self._blocks.get(tenant)
            view.told = quotas_of(view.rests, block.left if block is not None else NOTHING, now().timestamp())
            view.told_until = at + TOLD_SECONDS
        return view.told

    def _viewed(self, tenant: str, limits: tuple[Limit, ...]) -> _View:
        account, view = self._accounts.known(tenant), self._views.get(tenant)
        # An account that is looked at in another second is another one.
        if view is None or view.account is not account or view.limits is not limits:
            view = self._views[tenant] = _view(account, limits)
            if len(self._views) > KEPT_MAX:
                self._views.popitem(last=False)
        return view

    def _refuse_by_sight(self, tenant: str, block: _Block, amount: Amount, limits: tuple[Limit, ...]) -> None:
        """Refuse without a request what an account leaves no room for that was read a moment ago."""
        view = self._viewed(tenant, limits)
        if self._accounts.is_fresh(tenant) and block.ahead is None and not block.lock.locked():
            _check(tenant, view, amount.less(block.left))

    async def _take(self, tenant: str, block: _Block, amount: Amount, limits: tuple[Limit, ...]) -> None:
        """Take a block with room for so much. Raises `BudgetExhausted`, `BrokerUnavailable`."""
        granted = NOTHING
        own = block.left  # Tasks may get some of it meanwhile: it counts as taken, and then some more is.

        def reserved(account: BudgetAccount) -> BudgetAccount:
            nonlocal granted
            wanted = amount.less(own)
            left = _check(tenant, _view(account, limits), wanted)
            granted = wanted.plus(_part(left.less(wanted), AHEAD_SHARE).least(amount.times(AHEAD_TASKS_MAX)))
            return hold(account, now(), granted)

        await self._accounts.change(tenant, reserved)
        block.left = block.left.plus(granted)
        block.low = _part(block.left, LOW_SHARE)

    async def _take_ahead(self, tenant: str, block: _Block, amount: Amount, limits: tuple[Limit, ...]) -> None:
        try:
            async with block.lock:
                if not block.left.covers(block.low):
                    await self._take(tenant, block, block.left.plus(amount), limits)
        except BudgetExhausted:
            block.low = NOTHING  # There is no more to be taken: who needs it is told.
        except TaskmeshError as error:
            log.warning("budget.not_reserved", tenant=tenant, error=str(error))
        finally:
            block.ahead = None

    def _spare(self, tenant: str, block: _Block) -> Amount:
        """What of a block stays here that nobody uses."""
        seen = self._accounts.seen(tenant)
        if block.used_at <= lease_clock() - SPARE_SECONDS or seen is None or seen.account is None:
            return NOTHING
        taken = taken_of(seen.account)
        is_ample = all(2 * taken[limit.window].of(limit.unit) <= limit.most for limit in block.limits)
        return block.last.times(SPARE_TASKS) if is_ample else NOTHING

    async def _return(self, tenant: str, block: _Block, spare: Amount = NOTHING) -> None:
        async with block.lock:
            # None of it may be given away any more while it is on its way back.
            unused, block.left = block.left.less(spare), block.left.least(spare)
            block.low = _part(block.left, LOW_SHARE)
            if unused != NOTHING:
                try:
                    await self._accounts.change(tenant, lambda account: release(account, now(), now(), unused))
                except TaskmeshError as error:
                    # It ends by itself.
                    log.warning("budget.not_returned", tenant=tenant, error=str(error))
        # Who waits for the lock has used it just now.
        if block.left == NOTHING and block.ahead is None and block.used_at <= lease_clock() - IDLE_SECONDS:
            self._blocks.pop(tenant, None)


def _check(tenant: str, view: _View, wanted: Amount) -> Amount:
    """What is left in the tightest windows, where that is as much as is wanted. Raises `BudgetExhausted`."""
    limits, taken = view.limits, view.taken
    short = lacking(limits, now(), taken, wanted)
    if short is not None:
        really = lacking(limits, now(), view.used, wanted)
        limit = really or short
        reserved = view.reserved.of(limit.unit)
        raise BudgetExhausted(tenant, limit, wanted.of(limit.unit), reserved, is_reserved=really is None)
    left = {unit: [each.most - taken[each.window].of(unit) for each in limits if each.unit == unit] for unit in UNITS}
    return Amount(min(left["tokens"], default=0), min(left["cost"], default=0))


def _part(amount: Amount, share: int) -> Amount:
    return Amount(amount.tokens // share, amount.cost_micros // share)
