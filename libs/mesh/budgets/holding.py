"""Tasks without a caller, and tasks that never run: what is set aside for those, and goes back of these.

Behind a signal and a schedule is nobody who could be refused, and come again later. So their tasks are accepted, and
wait where nothing is left; and what they are thought to take is set aside, whether there is room for it or not.
"""

from __future__ import annotations

from datetime import datetime

import structlog

from contracts.errors import TaskmeshError
from contracts.journal.parts import Reserved
from contracts.tasks import TaskRequest
from mesh.admission.estimate import estimate
from mesh.broker.requests import Requests
from mesh.budgets.account import hold, release
from mesh.budgets.accounts import Accounts
from mesh.budgets.costs import prices_at, thought_to_take
from mesh.budgets.limits import NOTHING, Amount, counted, limits_of
from mesh.clock import now
from mesh.configuration.mesh_toml import Configuration
from mesh.configuration.tenants_table import TenantOf

log = structlog.get_logger("mesh.budgets.holding")


class Holding:
    """What one process sets aside. `tenant_of` tells what holds for a tenant at present."""

    def __init__(self, requests: Requests, tenant_of: TenantOf, configuration: Configuration) -> None:
        self._accounts = Accounts(requests)
        self._tenant_of = tenant_of
        self._configuration = configuration

    def configure(self, configuration: Configuration) -> None:
        """Go by other pools and prices from now on."""
        self._configuration = configuration

    async def hold(self, tenant: str, request: TaskRequest) -> Reserved | None:
        """Set aside what a task is thought to take: nothing without a budget, or where tasks wait for theirs.

        Raises `BrokerUnavailable`.
        """
        configured = self._tenant_of(tenant)
        limits, pool = limits_of(configured), self._configuration.pools.get(request.pool)
        if not limits or configured.on_exhausted == "wait" or pool is None:
            return None
        prices = prices_at(self._configuration, pool.provider, request.model or pool.model)
        amount = counted(thought_to_take(estimate(request, pool), prices), limits)
        if amount == NOTHING:
            return None
        await self._accounts.change(tenant, lambda account: hold(account, now(), amount))
        return Reserved(tokens=amount.tokens, cost_micros=amount.cost_micros)

    async def give_back(self, tenant: str, reserved: Reserved) -> None:
        """It was for a task that was there already."""
        await give_back(self._accounts, tenant, reserved, now())


async def give_back(accounts: Accounts, tenant: str, reserved: Reserved, at: datetime) -> None:
    """What was reserved then, or shortly before, is for nobody any more. If that can't be written it ends by itself."""
    amount = Amount(reserved.tokens, reserved.cost_micros)
    try:
        await accounts.change(tenant, lambda account: release(account, now(), at, amount))
    except TaskmeshError as error:
        log.warning("budget.not_returned", tenant=tenant, error=str(error))
