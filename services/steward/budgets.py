"""Budgets, as they hold back what waits in BACKLOG."""

from __future__ import annotations

from mesh.broker.requests import Requests
from mesh.budgets.accounts import Accounts
from mesh.budgets.limits import limits_of
from mesh.budgets.spending import is_blocked
from mesh.configuration.tenants_table import TenantOf


class BudgetCondition:
    """Tells whether a tenant has something left. Looked up beside the rounds of who asks."""

    def __init__(self, requests: Requests, tenant_of: TenantOf) -> None:
        self._accounts = Accounts(requests)
        self._tenant_of = tenant_of

    async def run(self) -> None:
        """Keep accounts fresh that are asked for, until cancelled."""
        await self._accounts.run()

    def may_go_on(self, tenant: str, _pool: str, _priority: str) -> bool:
        """Whether what waits of a tenant may go on. Of one that is not known yet it may in a moment."""
        configured = self._tenant_of(tenant)
        if not limits_of(configured):
            return True
        self._accounts.look(tenant)
        return self._accounts.is_fresh(tenant) and is_blocked(self._accounts.known(tenant), configured) is None
