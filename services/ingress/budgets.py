"""Budgets at acceptance: what a task is thought to take is reserved, or the task is refused."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import structlog

from contracts.errors import InvalidPayload, TaskmeshError
from contracts.journal.parts import Estimate, Reserved
from contracts.tasks import TaskRequest
from ingress.lane_statistics import Lanes
from mesh.background import background, repeatedly
from mesh.broker.requests import Requests
from mesh.budgets.accounts import Accounts
from mesh.budgets.correction import CORRECT_SECONDS, correct
from mesh.budgets.costs import prices_at, thought_to_take
from mesh.budgets.limits import NOTHING, Amount, end_of, limits_of
from mesh.budgets.reservations import BudgetExhausted, Reservations
from mesh.budgets.returning import Returns
from mesh.budgets.spending import Blocked, is_blocked
from mesh.clock import now
from mesh.configuration.mesh_toml import Configuration
from mesh.configuration.pool_routing import SCRIPTED_MODEL
from mesh.configuration.prices_table import ModelPrices
from mesh.configuration.tenants_table import TenantOf
from mesh.errors import BrokerUnavailable
from mesh.loop_health import LoopHealth
from mesh.serving.http import RequestRefused
from mesh.serving.rate_limit_fields import Quota

log = structlog.get_logger("ingress.budgets")

RESERVED_SECONDS: Final = 30.0
"""When who was refused for what others have reserved may come again, at the soonest: by then some of these have run."""
RESERVED_SECONDS_MAX: Final = 600.0
"""And at the latest. How fast a lane goes now says little of then."""


class Budgets:
    """The budgets of all tenants, as one ingress goes by them."""

    def __init__(
        self,
        requests: Requests,
        configuration: Configuration,
        tenant_of: TenantOf,
        lanes: Lanes,
    ) -> None:
        self._lanes = lanes
        self._returns = Returns()
        self._requests = requests
        self.tenant = tenant_of
        """What holds for a tenant at present."""
        self._configuration = configuration
        self._accounts = Accounts(requests)
        self._reservations = Reservations(self._accounts, tenant_of)

    def configure(self, configuration: Configuration) -> None:
        """Go by other pools and prices from now on."""
        self._configuration = configuration

    async def run(self) -> None:
        """Keep accounts fresh, and give back what is not needed, until cancelled."""
        correcting = repeatedly(self._correct, CORRECT_SECONDS, LoopHealth(log, "budgets.uncorrected"))
        async with background(self._accounts.run(), self._reservations.run()):
            await correcting

    async def close(self) -> None:
        """Accept nothing any more: what is reserved for no task goes back."""
        await self._reservations.close()

    def reserving(self, tenant: str, request: TaskRequest) -> Reservation:
        """A block in which a task is accepted, or not."""
        return Reservation(self, tenant, request)

    def quotas(self, tenant: str) -> list[Quota]:
        """What is left of a tenant's budgets, as far as is known here."""
        return self._reservations.quotas(tenant)

    async def blocked(self, tenant: str) -> Blocked | None:
        """The limit that a tenant has used up, so that its turns wait; None if there is none."""
        if not limits_of(self.tenant(tenant)):
            return None
        return is_blocked(await self._accounts.looked(tenant), self.tenant(tenant))

    def known_blocked(self, tenant: str) -> Blocked | None:
        """The same for a task that was accepted a moment ago, by the account as it was read for that."""
        limited = self.tenant(tenant)
        if limited.on_exhausted == "refuse" or not limits_of(limited):
            return None
        self._accounts.look(tenant)
        return is_blocked(self._accounts.known(tenant), limited)

    def check_priced(self, request: TaskRequest) -> None:
        """Raise `InvalidPayload` for a task that may cost so much, if one of its models has no price.

        Nothing would bound it.
        """
        if request.budget_cost is None:
            return
        pool = self._configuration.pools[request.pool]
        for at, each in enumerate(pool.models):
            model = (request.model if at == 0 else None) or each.model
            if prices_at(self._configuration, each.provider, model) is None:
                raise InvalidPayload(
                    f"budget_cost: nobody has set what {model or SCRIPTED_MODEL!r} of {each.provider!r} costs, "
                    f"a model of pool {request.pool!r}"
                )

    def _prices(self, request: TaskRequest) -> ModelPrices | None:
        pool = self._configuration.pools[request.pool]
        return prices_at(self._configuration, pool.provider, request.model or pool.model)

    async def reserve(self, tenant: str, request: TaskRequest, thought: Estimate) -> Amount:
        """Reserve what a task is `thought` to take; nothing if its tenant has no budget.

        Raises `RequestRefused`, and `BrokerUnavailable`.
        """
        if not limits_of(self.tenant(tenant)):
            return NOTHING
        amount = thought_to_take(thought, self._prices(request))
        try:
            return await self._reservations.reserve(tenant, amount)
        except BudgetExhausted as error:
            raise self._refusal(error, tenant, request) from None

    def check(self, tenant: str, request: TaskRequest) -> None:
        """Raise `RequestRefused` where nothing is left for any task."""
        try:
            self._reservations.check(tenant)
        except BudgetExhausted as error:
            raise self._refusal(error, tenant, request) from None

    def _refusal(self, error: BudgetExhausted, tenant: str, request: TaskRequest) -> RequestRefused:
        at = now()
        seconds = (self._frees_at(error, tenant, request, at) - at).total_seconds()
        quotas = [each.in_seconds(seconds) if each.name == error.limit.name else each for each in self.quotas(tenant)]
        return RequestRefused(
            error.code,
            str(error),
            retry_after_seconds=seconds,
            cause=error.limit.name,
            depth=self._lanes.depth(request.pool, request.priority),
            quotas=quotas,
        )

    def _frees_at(self, error: BudgetExhausted, tenant: str, request: TaskRequest, at: datetime) -> datetime:
        """When one who was refused has a fair chance."""
        limit = error.limit
        waiting = self._lanes.depth(request.pool, request.priority) or 0
        speed = self._lanes.tasks_per_second(request.pool, request.priority)
        seconds = min(waiting / speed if speed else 0.0, RESERVED_SECONDS_MAX)
        if limit.window == "minute" or not error.is_reserved:
            # What has begun by then counts in the minute in which it did.
            reserved = error.reserved if at + timedelta(seconds=seconds) > end_of(limit.window, at) else 0
            sharers = self._lanes.fleet.ingresses
            return self._returns.take(tenant, limit, error.wanted, at, reserved=reserved, sharers=sharers)
        # Once what waits now has run it is known how much of that was needed.
        return min(end_of(limit.window, at), at + timedelta(seconds=max(RESERVED_SECONDS, seconds)))

    def give_back(self, tenant: str, reserved: Amount) -> None:
        """A task was not accepted after all."""
        self._reservations.give_back(tenant, reserved)

    async def _correct(self) -> None:
        failure: TaskmeshError | None = None
        for tenant in self._accounts.wanted:
            try:
                await correct(self._requests, self._accounts, tenant, limits_of(self.tenant(tenant)))
            except TaskmeshError as error:
                failure = error  # It says nothing of the others.
        if failure is not None:
            raise failure


class Reservation:
    """What is reserved for one task. It goes back at the block's end if the task turns out not to need it.

    Where nobody knows whether the task was accepted, it stays, and ends by itself.
    """

    def __init__(self, budgets: Budgets, tenant: str, request: TaskRequest) -> None:
        self._budgets = budgets
        self._tenant = tenant
        self._request = request
        budgets.check_priced(request)
        self._reserved = NOTHING
        self.is_needed = True

    def check(self) -> None:
        """Raise `RequestRefused` where nothing is left for any task: what it is thought to take need not be known."""
        self._budgets.check(self._tenant, self._request)

    async def take(self, thought: Estimate) -> Reserved | None:
        """Reserve what the task is thought to take, if anything. Raises `RequestRefused`, and `BrokerUnavailable`."""
        self._reserved = await self._budgets.reserve(self._tenant, self._request, thought)
        tokens, cost_micros = self._reserved
        return Reserved(tokens=tokens, cost_micros=cost_micros) if self._reserved != NOTHING else None

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        is_in_doubt = kind is not None and (not issubclass(kind, Exception) or issubclass(kind, BrokerUnavailable))
        if self._reserved != NOTHING and not is_in_doubt and (kind is not None or not self.is_needed):
            self._budgets.give_back(self._tenant, self._reserved)
