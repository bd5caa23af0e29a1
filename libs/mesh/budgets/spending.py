"""What turns use of their tenants' budgets, in the process that runs them.

Before a turn its tenant's account is looked at; while it runs, what it reads and puts out counts within a second or two
for all processes, in the windows of then; once it has ended, what its provider has counted takes that place. So what a
worker that dies was seen to use stays counted. No turn waits for the broker here: the account is read while the turn is
claimed, and written beside the turns, a few times a second at the most.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

import structlog

from contracts.errors import TaskmeshError
from contracts.records.budgets import BudgetAccount
from mesh.budgets.account import flush_of, lacking, release, run, spend, used_in
from mesh.budgets.accounts import Accounts, Sighting
from mesh.budgets.limits import NOTHING, Amount, Limit, counted, end_of, limits_of
from mesh.clock import lease_clock, now
from mesh.configuration.tenants_table import TenantConfiguration
from mesh.loop_health import LoopHealth

log = structlog.get_logger("mesh.budgets.spending")

PAUSE_SECONDS: Final = 0.25
"""Between two writes of one process."""
SOON_SECONDS: Final = 0.03
"""How long after a turn has begun, or ended, that is written: with others, and not on the way to a first token."""
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


CostOf = Callable[[int], int]
"""What so many tokens cost, in millionths of the currency."""


def free(_: int) -> int:
    """What has no price counts as nothing."""
    return 0


class Release(NamedTuple):
    """What is not reserved any more, of what was then, or shortly before."""

    at: datetime
    amount: Amount


class _Write(NamedTuple):
    """What was in a write of one tenant's account."""

    spent: Amount
    released: list[Release]


@dataclass(slots=True, eq=False)
class _Tenant:
    """What runs here of a tenant, and what is still to be written of it."""

    name: str
    running: int = 0
    expected: Amount = NOTHING
    """What the turns that run here are thought to use beyond what they have."""
    spent: Amount = NOTHING
    """What was used, and is not known to be in the account. Less than nothing, where it was seen as more."""
    released: list[Release] = field(default_factory=list)
    unsure: dict[int, _Write] = field(default_factory=dict)
    """Writes that are under way, or were not answered. All go by one revision, so one of them is stored at the most."""
    written: Amount = NOTHING
    """What was expected when it was written last."""
    written_at: float = 0.0
    is_due: bool = False
    looked_at: Sighting | None = None
    account: BudgetAccount | None = None
    limits: tuple[Limit, ...] = ()
    """The account and the limits by which `room` is."""
    room: dict[Limit, int] = field(default_factory=dict)
    """How much the turns that run here may use of each limit beyond what is in the account that was looked at last."""

    @property
    def is_used_up(self) -> bool:
        """Whether nothing is left of one."""
        return any(self.spent.of(limit.unit) >= room for limit, room in self.room.items())


class TurnMeter:
    """What one turn has used so far. `cuts`: whether it is to end as soon as its tenant's budget is used up."""

    def __init__(self, spending: BudgetSpending, here: _Tenant, estimate: Amount, *, cuts: bool) -> None:
        self._spending = spending
        self._here = here
        self._cost: CostOf = free
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

    def asks(self, reads: Amount, cost: CostOf) -> None:
        """A model is asked, and shown about so much. `cost`: what so many tokens cost that it puts out."""
        self._cost, self._bytes, self._tokens = cost, 0, 0
        self._add(reads)

    def put_out(self, text: str) -> bool:
        """It has put out more. True if it is to end here, since its tenant's budget is used up."""
        self._bytes += len(text.encode())
        tokens = self._bytes // BYTES_PER_TOKEN
        if tokens > self._tokens:
            self._add(Amount(tokens - self._tokens, self._cost(tokens) - self._cost(self._tokens)))
            self._tokens = tokens
        return self._cuts and self._spending.is_used_up(self._here)

    def ended(self, amount: Amount | None = None) -> None:
        """The turn is over, or is let go of. `amount`: what its provider has counted.

        None: nobody has told that; then it counts for what it was seen to use.
        """
        if self._is_over:
            return
        self._is_over = True
        here = self._here
        here.running -= 1
        here.expected = here.expected.less(self._expected)
        if amount is not None:
            here.spent = here.spent.plus(amount.minus(self._used))
        self._spending.write_soon(here)

    def _add(self, amount: Amount) -> None:
        before = self._expected
        self._used = self._used.plus(amount)
        self._expected = before.less(amount)
        self._here.spent = self._here.spent.plus(amount)
        self._here.expected = self._here.expected.less(before.less(self._expected))


class BudgetSpending:
    """What one process uses of budgets. `tenant_of` tells what holds for a tenant at present."""

    def __init__(self, accounts: Accounts, worker: str, tenant_of: Callable[[str], TenantConfiguration]) -> None:
        self._accounts = accounts
        self._worker = worker
        self.tenant_of = tenant_of
        self._tenants: dict[str, _Tenant] = {}
        # Not from 1: in a container the process that comes after this one may have its name.
        self._flushes = random.getrandbits(48)
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
        if here is not None and here.account is account and here.limits is limits:
            self._settle(here, account)
            if not here.is_used_up:
                return None  # As most times: what is left is known.
        own = self._unwritten(here, account) if here is not None else NOTHING
        used = {window: each.plus(own) for window, each in used_in(account).items()}
        at = now()
        short = lacking(limits, at, used)
        return Blocked(short, end_of(short.window, at)) if short is not None else None

    def begin(self, tenant: str, estimate: Amount, release: Release | None = None) -> TurnMeter | None:
        """Measure a turn that begins; None if its tenant has no budget.

        `release`: what was reserved for it, if it takes the place of that.
        """
        configured = self.tenant_of(tenant)
        limits = limits_of(configured)
        if not limits:
            return None
        here = self._tenants.setdefault(tenant, _Tenant(tenant))
        meter = TurnMeter(self, here, counted(estimate, limits), cuts=configured.on_exhausted == "refuse")
        if release is not None:
            here.released.append(release)
        self._look_for_room(here)
        self.write_soon(here)
        return meter

    def is_used_up(self, here: _Tenant) -> bool:
        """Whether nothing is left of a limit, as far as is known. Without a request: it is for each piece of a text."""
        if here.looked_at is self._accounts.seen(here.name) and not here.is_used_up:
            return False
        # Once more: since the account was read a window may have ended.
        self._look_for_room(here)
        return here.is_used_up

    async def run(self) -> None:
        """Write down what is used, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(SEEN_SECONDS):
                    await self._due.wait()
            except TimeoutError:
                pass
            await asyncio.sleep(SOON_SECONDS)
            self._due.clear()
            await self._write_all()
            await asyncio.sleep(PAUSE_SECONDS - SOON_SECONDS)

    async def close(self) -> None:
        """Write down what is left to be: no turn runs here any more."""
        await self._write_all()

    def write_soon(self, here: _Tenant) -> None:
        """Something is to be written that others should not wait for."""
        here.is_due = True
        self._due.set()

    async def _write_all(self) -> None:
        at = lease_clock()
        due: list[_Tenant] = []
        for tenant, here in list(self._tenants.items()):
            is_other = here.spent != NOTHING or here.written != here.expected
            grown = is_other and at - here.written_at >= SEEN_SECONDS
            if here.is_due or grown or (here.running and at - here.written_at >= ALIVE_SECONDS):
                due.append(here)
            elif not here.running and here.spent == NOTHING and not here.released and not here.unsure:
                del self._tenants[tenant]
            else:
                self._look_for_room(here)
        room = asyncio.Semaphore(WRITES_AT_ONCE_MAX)

        async def write(here: _Tenant) -> TaskmeshError | None:
            async with room:
                try:
                    await self._write(here)
                except TaskmeshError as error:
                    return error
            return None

        failures = [failure for failure in await asyncio.gather(*map(write, due)) if failure is not None]
        if failures:
            self._health.failed(failures[0])
        elif due:
            self._health.succeeded()

    async def _write(self, here: _Tenant) -> None:
        here.is_due = False
        self._flushes += 1
        flush, expected = self._flushes, NOTHING

        def written(account: BudgetAccount) -> BudgetAccount:
            nonlocal expected
            self._settle(here, account)
            at, expected = now(), here.expected
            here.unsure[flush] = _Write(here.spent, list(here.released))
            for since, amount in here.released:
                account = release(account, at, since, amount)
            if here.spent != NOTHING:
                account = spend(account, at, here.spent)
            return run(account, at, self._worker, expected, flush)

        try:
            # While nobody knows what became of a write none is added to it.
            account = await self._accounts.change(here.name, written, afresh=bool(here.unsure))
        except TaskmeshError:
            self.write_soon(here)
            raise
        self._settle(here, account)
        here.written, here.written_at = expected, lease_clock()
        self._look_for_room(here)

    def _settle(self, here: _Tenant, account: BudgetAccount) -> None:
        """Be done with the write that an account has, if it is one that nobody has answered yet."""
        stored = here.unsure.get(flush_of(account, self._worker))
        if stored is not None:
            here.spent = here.spent.minus(stored.spent)
            del here.released[: len(stored.released)]
            here.unsure.clear()

    def _unwritten(self, here: _Tenant, account: BudgetAccount) -> Amount:
        """What was used here that is not in this account."""
        self._settle(here, account)
        return here.spent

    def _look_for_room(self, here: _Tenant) -> None:
        """How much what runs here may use, as the account is now."""
        here.looked_at = self._accounts.seen(here.name)
        account = self._accounts.known(here.name)
        self._settle(here, account)
        limits = limits_of(self.tenant_of(here.name))
        if account is here.account and limits is here.limits:
            return
        here.account, here.limits, used = account, limits, used_in(account)
        here.room = {limit: limit.most - used[limit.window].of(limit.unit) for limit in limits}


def is_blocked(account: BudgetAccount, configured: TenantConfiguration) -> Blocked | None:
    """The limit that a tenant has used up by its account, for who runs none of its turns; None if there is none."""
    at = now()
    short = lacking(limits_of(configured), at, used_in(account))
    return Blocked(short, end_of(short.window, at)) if short is not None else None
