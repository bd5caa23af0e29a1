"""What turns use of their tenants' budgets, in the process that runs them.

Before a turn its tenant's account is looked at; while it runs, what it has put out counts within a second or two for
all processes; once it has ended, what its provider has counted takes that place. No turn waits for the broker here: the
account is read while the turn is claimed, and written beside the turns, a few times a second at the most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

import structlog

from contracts.errors import TaskmeshError
from contracts.records.budgets import BudgetAccount
from mesh.budgets.account import flush_of, lacking, release, run, spend, used_in
from mesh.budgets.accounts import Accounts
from mesh.budgets.limits import NOTHING, Amount, Limit, counted, end_of, limits_of
from mesh.clock import lease_clock, now
from mesh.configuration.tenants_table import TenantConfiguration
from mesh.loop_health import LoopHealth

log = structlog.get_logger("mesh.budgets.spending")

PAUSE_SECONDS: Final = 0.25
"""Between two writes of one process."""
SEEN_SECONDS: Final = 1.0
"""How often what turns have put out is written down while they run."""
ALIVE_SECONDS: Final = 8.0
"""How often turns under way are written down at least: they count for `account.RUNNING_FOR` after that."""
WRITES_AT_ONCE_MAX: Final = 16
BYTES_PER_TOKEN: Final = 4
"""An estimate, of UTF-8: what a model has put out is counted by its provider at the end, and no sooner."""


class Blocked(NamedTuple):
    """A tenant that has used up a limit, and when that frees."""

    limit: Limit
    until: datetime


class _Write(NamedTuple):
    """What was in a write of one tenant's account."""

    flush: int
    spent: Amount
    released: list[tuple[datetime, Amount]]


@dataclass(slots=True, eq=False)
class _Tenant:
    """What runs here of a tenant, and what is still to be written of it."""

    running: int = 0
    used: Amount = NOTHING
    """By the turns that run here, so far."""
    expected: Amount = NOTHING
    """What they are thought to use beyond that."""
    spent: Amount = NOTHING
    released: list[tuple[datetime, Amount]] = field(default_factory=list)
    unsure: _Write | None = None
    """A write that was not answered."""
    written: tuple[Amount, Amount] = (NOTHING, NOTHING)
    written_at: float = 0.0
    is_due: bool = False
    room: dict[Limit, int] = field(default_factory=dict)
    """How much the turns that run here may use of each limit, as the account was when it was looked at last."""


class TurnMeter:
    """What one turn has used so far. `cost`: what so many tokens cost that it puts out, in millionths.

    `cuts`: whether it is to end as soon as its tenant's budget is used up.
    """

    def __init__(
        self, spending: BudgetSpending, here: _Tenant, estimate: Amount, cost: Callable[[int], int], *, cuts: bool
    ) -> None:
        self._spending = spending
        self._here = here
        self._cost = cost
        self._cuts = cuts
        self._bytes = 0
        self._tokens = 0
        self._used = NOTHING
        self._expected = estimate
        self._is_over = False
        here.running += 1
        here.expected = here.expected.plus(estimate)

    @property
    def used(self) -> Amount:
        """What it has read, and put out so far: an estimate."""
        return self._used

    def reads(self, amount: Amount) -> None:
        """It is shown about so much."""
        self._add(amount)

    def put_out(self, text: str) -> bool:
        """It has put out more. True if it is to end here, since its tenant's budget is used up."""
        self._bytes += len(text.encode())
        tokens = self._bytes // BYTES_PER_TOKEN
        if tokens > self._tokens:
            self._add(Amount(tokens - self._tokens, self._cost(tokens) - self._cost(self._tokens)))
            self._tokens = tokens
        here = self._here
        if not self._cuts:
            return False
        # Without a request, and without another look: this is for each piece of a text.
        return any(here.used.of(limit.unit) + here.spent.of(limit.unit) >= room for limit, room in here.room.items())

    def ended(self, amount: Amount | None = None) -> None:
        """The turn is over, or is let go of. `amount`: what its provider has counted.

        None: nobody has told that; then it counts for what it was seen to use.
        """
        if self._is_over:
            return
        self._is_over = True
        here = self._here
        here.running -= 1
        here.used = here.used.less(self._used)
        here.expected = here.expected.less(self._expected)
        here.spent = here.spent.plus(self._used if amount is None else amount)
        self._spending.write_soon(here)

    def _add(self, amount: Amount) -> None:
        before = self._expected
        self._used = self._used.plus(amount)
        self._expected = before.less(amount)
        self._here.used = self._here.used.plus(amount)
        self._here.expected = self._here.expected.less(before.less(self._expected))


class BudgetSpending:
    """What one process uses of budgets. `tenant_of` tells what holds for a tenant at present."""

    def __init__(self, accounts: Accounts, worker: str, tenant_of: Callable[[str], TenantConfiguration]) -> None:
        self._accounts = accounts
        self._worker = worker
        self.tenant_of = tenant_of
        self._tenants: dict[str, _Tenant] = {}
        self._flushes = 0
        self._due = asyncio.Event()
        self._health = LoopHealth(log, "budgets.unwritten")

    def expect(self, tenant: str) -> None:
        """A turn of a tenant is about to begin: if it has a budget, its account is read meanwhile."""
        if limits_of(self.tenant_of(tenant)):
            self._accounts.look(tenant)

    def has_budget(self, tenant: str) -> bool:
        """Whether any limit holds for a tenant."""
        return bool(limits_of(self.tenant_of(tenant)))

    async def blocked(self, tenant: str) -> Blocked | None:
        """The limit that a tenant has used up, so that none of its turns may begin; None if there is none."""
        limits = limits_of(self.tenant_of(tenant))
        if not limits:
            return None
        account = await self._accounts.looked(tenant)
        here = self._tenants.get(tenant)
        own = here.used.plus(here.spent) if here is not None else NOTHING
        used = {window: each.plus(own) for window, each in used_in(account, without=self._worker).items()}
        at = now()
        short = lacking(limits, at, used)
        return Blocked(short, end_of(short.window, at)) if short is not None else None

    def begin(
        self, tenant: str, estimate: Amount, cost: Callable[[int], int], reserved_at: datetime | None = None
    ) -> TurnMeter | None:
        """Measure a turn that begins; None if its tenant has no budget.

        `cost`: what so many tokens cost that it puts out, in millionths of the currency. `reserved_at`: when the
        estimate was reserved, if that is the task's first turn.
        """
        configured = self.tenant_of(tenant)
        limits = limits_of(configured)
        if not limits:
            return None
        here = self._tenants.setdefault(tenant, _Tenant())
        refuses = configured.on_exhausted == "refuse"
        counts = counted(estimate, limits)
        meter = TurnMeter(self, here, counts, cost, cuts=refuses)
        if reserved_at is not None and refuses:
            here.released.append((reserved_at, counts))
        self._look_for_room(tenant, here)
        self.write_soon(here)
        return meter

    async def run(self) -> None:
        """Write down what is used, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(SEEN_SECONDS):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            await self._write_all()
            await asyncio.sleep(PAUSE_SECONDS)

    async def close(self) -> None:
        """Write down what is left to be: no turn runs here any more."""
        await self._write_all()

    def write_soon(self, here: _Tenant) -> None:
        """Something is to be written that others should not wait for."""
        here.is_due = True
        self._due.set()

    async def _write_all(self) -> None:
        at = lease_clock()
        due: list[tuple[str, _Tenant]] = []
        for tenant, here in list(self._tenants.items()):
            grown = here.running and at - here.written_at >= SEEN_SECONDS and here.written != (here.used, here.expected)
            if here.is_due or grown or (here.running and at - here.written_at >= ALIVE_SECONDS):
                due.append((tenant, here))
            elif not here.running and here.spent == NOTHING and not here.released and here.unsure is None:
                del self._tenants[tenant]
            else:
                self._look_for_room(tenant, here)
        room = asyncio.Semaphore(WRITES_AT_ONCE_MAX)

        async def write(tenant: str, here: _Tenant) -> TaskmeshError | None:
            async with room:
                try:
                    await self._write(tenant, here)
                except TaskmeshError as error:
                    return error
            return None

        failures = [failure for failure in await asyncio.gather(*(write(*each) for each in due)) if failure is not None]
        if failures:
            self._health.failed(failures[0])
        elif due:
            self._health.succeeded()

    async def _write(self, tenant: str, here: _Tenant) -> None:
        here.is_due = False
        self._flushes += 1
        flush = self._flushes
        write = _Write(flush, NOTHING, [])
        counts = (here.used, here.expected)

        def written(account: BudgetAccount) -> BudgetAccount:
            nonlocal write, counts
            if here.unsure is not None and flush_of(account, self._worker) >= here.unsure.flush:
                # It was stored, and only its answer was lost.
                self._was_written(here, here.unsure)
                here.unsure = None
            at = now()
            write, counts = _Write(flush, here.spent, list(here.released)), (here.used, here.expected)
            for since, amount in write.released:
                account = release(account, at, since, amount)
            if write.spent != NOTHING:
                account = spend(account, at, write.spent)
            return run(account, at, self._worker, *counts, flush)

        try:
            await self._accounts.change(tenant, written)
        except TaskmeshError:
            here.unsure = write
            self.write_soon(here)
            raise
        here.unsure = None
        here.written, here.written_at = counts, lease_clock()
        self._was_written(here, write)
        self._look_for_room(tenant, here)

    def _was_written(self, here: _Tenant, write: _Write) -> None:
        here.spent = here.spent.less(write.spent)
        del here.released[: len(write.released)]

    def _look_for_room(self, tenant: str, here: _Tenant) -> None:
        """How much what runs here may use, as the account is now."""
        used = used_in(self._accounts.known(tenant), without=self._worker)
        limits = limits_of(self.tenant_of(tenant))
        here.room = {limit: limit.most - used[limit.window].of(limit.unit) for limit in limits}


def is_blocked(account: BudgetAccount, configured: TenantConfiguration) -> Blocked | None:
    """The limit that a tenant has used up by its account, for who runs none of its turns; None if there is none."""
    at = now()
    short = lacking(limits_of(configured), at, used_in(account))
    return Blocked(short, end_of(short.window, at)) if short is not None else None
