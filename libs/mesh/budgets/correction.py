"""Accounts against the ledger's counters: what a process did not live to write down counts all the same, but later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mesh.broker.requests import Requests
from mesh.budgets.account import at_least, spent_in
from mesh.budgets.accounts import Accounts
from mesh.budgets.limits import Amount, Limit, Window
from mesh.clock import now
from mesh.ledger.counters import totals

CORRECT_SECONDS: Final = 30.0
"""How often the account of a tenant that has something to do here is held against the counters."""


async def correct(requests: Requests, accounts: Accounts, tenant: str, limits: Sequence[Limit]) -> None:
    """Raise an account to what the counters have of its day and month. It is never lowered: they come later.

    Raises `BrokerError`, `BrokerUnavailable`.
    """
    at = now()
    periods: dict[Window, str] = {"day": f"{at:%Y-%m-%d}", "month": f"{at:%Y-%m}"}
    wanted = {window: period for window, period in periods.items() if any(each.window == window for each in limits)}
    if not wanted:
        return
    counted = await totals(requests, tenant, list(wanted.values()))
    used: dict[Window, Amount] = {
        window: Amount(counted[period].tokens, counted[period].cost_micros) for window, period in wanted.items()
    }
    account = accounts.known(tenant)
    if any(not spent_in(account, window).covers(amount) for window, amount in used.items()):
        # In the window that was asked for, even if the next one has begun.
        await accounts.change(tenant, lambda account: at_least(account, at, used))
