"""`python -m inference_worker`"""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

from contracts.streams import lane_consumer
from contracts.subjects import PRIORITIES
from inference_worker.capacity.backlog_watch import watch_backlog
from inference_worker.capacity.capacities import Capacities
from inference_worker.capacity.pool_places import PoolPlaces, check_places_of
from inference_worker.lane_reports import LaneReporter
from inference_worker.models.breakers import Breakers
from inference_worker.models.candidates import Source
from inference_worker.pool_routing import PoolRouting
from inference_worker.pools import Generation, PoolHandlers
from inference_worker.providers import open_providers
from inference_worker.speed_reports import SpeedReporter
from inference_worker.turn.budgets import BudgetGate, TurnBudgets
from inference_worker.turn.history import History
from inference_worker.turn.offers import DeclaredTools
from inference_worker.turn.turns import TurnHandler
from mesh.background import background
from mesh.broker.lanes import ConsumerSpec
from mesh.broker.shares import LANE_WEIGHTS, Share
from mesh.budgets.accounts import Accounts
from mesh.budgets.costs import prices_at
from mesh.budgets.spending import BudgetSpending
from mesh.configuration.settings import Settings
from mesh.serving.heartbeats import PlacesTold, heartbeats
from mesh.serving.service import Service, run
from mesh.steps.put_off import AnyPutsOff
from mesh.steps.work_loop import WorkLoop
from mesh.telemetry import metrics
from mesh.tools.toolbox import Toolbox
from mesh.valves.gates import ValveGate
from mesh.valves.paused_tenants import PausedTenants
from mesh.valves.watched import Valves


def lanes(settings: Settings, breakers: Breakers, valves: Valves) -> list[ConsumerSpec]:
    """Every lane of every pool, started work first, behind the gate of the pool's providers and a valve of its own."""
    specs: list[ConsumerSpec] = []
    for pool in settings.pools:
        consumers = tuple(
            (stream, lane_consumer(stream, pool, priority)) for stream in ("TURNS", "TASKS") for priority in PRIORITIES
        )
        gate = breakers.gate(settings.configuration.providers_of(pool), consumers, pool)
        for priority in PRIORITIES:
            share = Share(pool, priority, LANE_WEIGHTS[priority])
            lane_gate = ValveGate(gate, partial(valves.is_paused, pool=pool, priority=priority))
            valves.on_changed(lane_gate.update)
            for stream in ("TURNS", "TASKS"):
                specs.append(ConsumerSpec(stream, lane_consumer(stream, pool, priority), share, lane_gate))
    return specs


class Worker:
    """What a worker's turns stand on. It goes by another configuration from one turn to the next."""

    def __init__(self, service: Service) -> None:
        configuration = service.settings.configuration
        self._requests = service.requests
        self._toolbox = Toolbox(service.requests, configuration.tools)
        self._tools, self._history = DeclaredTools(self._toolbox), History(service.requests)
        self.reporter = LaneReporter(service.connection, service.worker)
        self._accounts = Accounts(service.requests)
        self.spending = BudgetSpending(self._accounts, service.worker, service.valves.limits_of)
        self.breakers = Breakers(
            service.requests,
            configuration.breakers,
            service.worker,
            configuration.paces,
            lambda provider: service.valves.is_paused(provider=provider),
        )
        service.valves.on_changed(self.breakers.changed)
        self.speeds = SpeedReporter(service.connection, service.worker)
        self.capacities = Capacities(service.requests, service.settings, service.worker)
        self.places = PoolPlaces(
            service.settings,
            lambda: self.capacities.servers,
            self.breakers.is_closed,
            lambda: service.requests.backlog_lanes.record,
        )
        self.capacities.on_changed(self.places.changed)

    async def budgets(self) -> None:
        """See what tenants have left, and write down what their turns use, until cancelled."""
        async with background(self._accounts.run()):
            await self.spending.run()

    async def generation(self, settings: Settings) -> Generation:
        """Handlers with the models of these settings."""
        async with AsyncExitStack() as stack:
            routing = PoolRouting(
                settings.configuration, self._guarded, self.speeds, self.breakers.is_closed, self._room
            )
            opening = open_providers(settings, routing.guard, self._requests, routing.route)
            providers = await stack.enter_async_context(opening)
            handlers = {
                pool: TurnHandler(
                    candidates,
                    self._tools,
                    self._history,
                    pool=settings.configuration.pools[pool],
                    available=self.breakers.available,
                    waiting_seconds=settings.waiting_seconds,
                    on_claimed=self.reporter.claimed,
                    on_finished=self.reporter.finished,
                    prices=partial(prices_at, settings.configuration),
                )
                for pool, candidates in providers.items()
            }
            for handler in handlers.values():
                handler.budgets = TurnBudgets(self.spending, settings.configuration)
            return Generation(handlers, stack.pop_all().aclose)
        raise AssertionError  # No context here swallows an exception.

    def _guarded(self, source: Source) -> Source:
        # A call that the breaker refuses is none of the server's.
        return self.breakers.guard(self.capacities.measured(source))

    def _room(self, provider: str) -> float:
        """How much of a provider is free, by its server and by its pace."""
        server = self.capacities.servers.get(provider)
        return min(1.0 if server is None else server.room, self.breakers.pacing.room(provider))

    async def take(self, settings: Settings, handlers: PoolHandlers) -> None:
        """Go by these settings from the next turn on."""
        configuration = settings.configuration
        self.capacities.configure(settings)
        self.places.configure(configuration)
        self.breakers.configure(
            configuration.breakers,
            {pool: configuration.providers_of(pool) for pool in configuration.pools},
            configuration.paces,
        )
        self._toolbox.configure(configuration.tools)
        await handlers.replace(await self.generation(settings))


async def main(service: Service) -> None:
    """Run turns until told to stop."""
    settings, valves, worker = service.settings, service.valves, Worker(service)
    handlers = PoolHandlers(await worker.generation(settings))
    loop = WorkLoop(
        service.connection,
        settings,
        lanes(settings, worker.breakers, valves),
        handlers,
        service.worker,
        puts_off=AnyPutsOff(PausedTenants(valves), BudgetGate(worker.spending)),
        places=worker.places,
    )
    metrics.watch_capacity(lambda: {name: server.limit for name, server in worker.capacities.servers.items()})
    # Before anything is pulled: nothing is begun that was paused meanwhile.
    await valves.open()
    service.reloading.add(check_places_of, lambda settings: worker.take(settings, handlers))
    try:
        async with (
            background(
                worker.reporter.run(),
                worker.speeds.run(),
                worker.breakers.run(service.stopping),
                worker.breakers.pacing.run(),
                worker.capacities.run(),
                watch_backlog(service.requests, settings.pools),
                worker.budgets(),
                valves.run(),
            ),
            heartbeats(
                service,
                lambda: loop.steps_running,
                concurrency=settings.worker_concurrency,
                pools=settings.pools,
                places=lambda: PlacesTold(worker.places.places(), worker.places.capacity()),
            ),
        ):
            await service.ready()
            await loop.run(service.stopping, service.hurrying, service.patient)
    finally:
        await worker.spending.close()
        await handlers.close()


if __name__ == "__main__":
    run("inference_worker", main)
