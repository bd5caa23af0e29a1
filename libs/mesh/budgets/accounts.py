"""The accounts of tenants, shared by all processes: the bucket `budgets`, written by compare-and-set.

Only tenants that have a budget, and something to do here, are looked at.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from contracts.codec import encode
from contracts.records.budgets import BudgetAccount
from contracts.streams import BUDGETS_BUCKET
from mesh.background import is_seen, repeatedly
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.budgets.account import empty, rolled
from mesh.clock import lease_clock, now
from mesh.errors import BrokerUnavailable
from mesh.loop_health import LoopHealth

log = structlog.get_logger("mesh.budgets.accounts")

REFRESH_SECONDS: Final = 1.0
"""How often the accounts are read again of tenants that have something to do here: this old is what is decided by."""
WANTED_SECONDS: Final = 15.0
"""How long an account is kept fresh after somebody has asked for it."""
FRESH_SECONDS: Final = 2.5
"""An account that was read longer ago is read before it is decided by."""
AT_ONCE_MAX: Final = 512
"""So many are read at once; with more of them each is read less often."""
KEPT_MAX: Final = 10_000
"""Accounts that are kept: about a kilobyte each."""
CHANGE_SECONDS_MAX: Final = 3.0
"""How long a change may be tried while others change the same account."""

Change = Callable[[BudgetAccount], BudgetAccount | None]
"""What an account is to become; None if it stays. Called again where somebody else was faster."""


class Sighting(NamedTuple):
    """An account as it was read, its revision, and when that was, on the clock of leases."""

    account: BudgetAccount | None
    revision: int
    at: float


class Accounts:
    """The accounts that one process has to do with."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._seen: OrderedDict[str, Sighting] = OrderedDict()
        self._wanted: OrderedDict[str, float] = OrderedDict()
        self._rolled: dict[str, tuple[Sighting, float, BudgetAccount]] = {}
        """By tenant: the account of a sighting as it is in a second, and until when: many ask for it within one."""
        self._looks: dict[str, asyncio.Task[Sighting]] = {}

    async def run(self) -> None:
        """Keep the accounts fresh that are wanted, until cancelled."""
        await repeatedly(self._refresh, REFRESH_SECONDS, LoopHealth(log, "budgets.unavailable"))

    @property
    def wanted(self) -> list[str]:
        """The tenants that somebody has asked for lately."""
        return list(self._wanted)

    def known(self, tenant: str) -> BudgetAccount:
        """The account as it was read last, without what does not count any more. Keeps it fresh for a while."""
        seen, last, at = self._seen.get(tenant), self._rolled.get(tenant), lease_clock()
        if last is not None and last[0] is seen and at < last[1]:
            return last[2]
        self._wanted[tenant] = at
        self._wanted.move_to_end(tenant)
        time = now()
        if seen is None:
            return empty(tenant, time)
        account = rolled(seen.account, time) if seen.account is not None else empty(tenant, time)
        self._rolled[tenant] = (seen, at + 1 - time.microsecond / 1e6, account)
        return account

    def seen(self, tenant: str) -> Sighting | None:
        """The last reading of an account: another one than before if there was one since."""
        return self._seen.get(tenant)

    def is_fresh(self, tenant: str) -> bool:
        """Whether it was read lately."""
        seen = self._seen.get(tenant)
        return seen is not None and lease_clock() - seen.at <= FRESH_SECONDS

    def look(self, tenant: str) -> None:
        """Read an account that is not fresh, beside what goes on here."""
        if not self.is_fresh(tenant) and tenant not in self._looks:
            look = self._looks[tenant] = asyncio.create_task(self._read(tenant))
            look.add_done_callback(is_seen)
            look.add_done_callback(lambda _: self._looks.pop(tenant, None))

    async def looked(self, tenant: str) -> BudgetAccount:
        """The account, read again if it is not fresh. Where the broker does not answer, as it was read last."""
        self.look(tenant)
        look = self._looks.get(tenant)
        if look is not None:
            try:
                # Whoever is cancelled leaves it to the others.
                await asyncio.shield(look)
            except BrokerUnavailable as error:
                log.warning("budget.unread", tenant=tenant, error=str(error))
        return self.known(tenant)

    async def change(self, tenant: str, change: Change, *, afresh: bool = False) -> BudgetAccount:
        """Change an account as everybody sees it, and return it. `afresh`: it is read first, whatever is known of it.

        Raises `BrokerUnavailable`, also where others change it all the time; then nobody knows whether it was changed.
        """
        give_up_at = lease_clock() + CHANGE_SECONDS_MAX
        seen = self._seen.get(tenant) if not afresh else None
        failures = 0
        while True:
            if seen is None or failures:
                seen = await self._read(tenant, from_leader=afresh or failures > 0)
            at = now()
            before = rolled(seen.account, at) if seen.account is not None else empty(tenant, at)
            after = change(before)
            if after is None:
                return before
            revision = await key_value.compare_and_put(
                self._requests, BUDGETS_BUCKET.name, tenant, encode(after), seen.revision
            )
            if revision is not None:
                self._keep(tenant, Sighting(after, revision, lease_clock()))
                return after
            failures += 1
            if lease_clock() > give_up_at:
                raise BrokerUnavailable(f"the budget of tenant {tenant} is changed by too many at once")
            # The more are at it, the longer each waits, and the more it has to write at once then.
            await asyncio.sleep(random.random() * min(0.5, 0.004 * 2.0 ** min(failures, 10)))

    async def _read(self, tenant: str, *, from_leader: bool = False) -> Sighting:
        asked_at = lease_clock()
        entry = None if from_leader else await key_value.get(self._requests, BUDGETS_BUCKET.name, tenant)
        if entry is None and (from_leader or self._is_known(tenant)):
            # A replica that has nothing may be behind. The leader knows.
            entry = await key_value.get_from_leader(self._requests, BUDGETS_BUCKET.name, tenant)
        return self._see(tenant, entry, asked_at)

    def _is_known(self, tenant: str) -> bool:
        seen = self._seen.get(tenant)
        return seen is not None and seen.revision > 0

    async def _refresh(self) -> None:
        oldest = lease_clock() - WANTED_SECONDS
        for tenant, wanted_at in list(self._wanted.items()):
            if wanted_at >= oldest:
                break
            del self._wanted[tenant]
        by_age = sorted(self._wanted, key=lambda tenant: self._seen[tenant].at if tenant in self._seen else 0.0)
        if by_age:
            asked_at = lease_clock()
            tenants = by_age[:AT_ONCE_MAX]
            found = await key_value.get_many(self._requests, BUDGETS_BUCKET.name, tenants)
            for tenant in tenants:
                if tenant in found or not self._is_known(tenant):
                    self._see(tenant, found.get(tenant), asked_at)
                else:
                    await self._read(tenant, from_leader=True)

    def _see(self, tenant: str, entry: key_value.KeyValueEntry | None, asked_at: float) -> Sighting:
        known = self._seen.get(tenant)
        revision = entry.revision if entry is not None else 0
        if known is not None and known.revision > revision > 0:
            # A replica that is behind. What is known is newer.
            return known
        # One that can't be read counts as none: as if nothing had been used.
        account = key_value.record_of(entry, BudgetAccount, log, "budget.unreadable", tenant=tenant)
        return self._keep(tenant, Sighting(account, revision, asked_at))

    def _keep(self, tenant: str, seen: Sighting) -> Sighting:
        self._seen[tenant] = seen
        self._seen.move_to_end(tenant)
        if len(self._seen) > KEPT_MAX:
            self._rolled.pop(self._seen.popitem(last=False)[0], None)
        return seen
