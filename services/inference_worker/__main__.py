"""`python -m inference_worker`"""

from __future__ import annotations

from contracts.streams import lane_consumer
from contracts.subjects import PRIORITIES
from inference_worker.lane_reports import LaneReporter
from inference_worker.models.breakers import Breakers
from inference_worker.pools import PoolHandlers
from inference_worker.providers import open_providers
from inference_worker.turn.history import History
from inference_worker.turn.offers import DeclaredTools
from inference_worker.turn.turns import TurnHandler
from mesh.background import background
from mesh.broker.lanes import ConsumerSpec
from mesh.broker.shares import Share
from mesh.configuration.settings import Settings
from mesh.serving.heartbeats import heartbeats
from mesh.serving.service import Service, run
from mesh.steps.work_loop import WorkLoop
from mesh.tools.toolbox import Toolbox

WEIGHTS = {"high": 16, "normal": 8, "low": 2}
"""Shares of a pool's places while all of its lanes are backed up. Pools share alike."""


def lanes(settings: Settings, breakers: Breakers) -> list[ConsumerSpec]:
    """Every lane of every pool, started work first, behind the gate of the pool's providers."""
    specs: list[ConsumerSpec] = []
    for pool in settings.pools:
        consumers = tuple(
            (stream, lane_consumer(stream, pool, priority)) for stream in ("TURNS", "TASKS") for priority in PRIORITIES
        )
        gate = breakers.gate(settings.configuration.providers_of(pool), consumers)
        for priority in PRIORITIES:
            share = Share(pool, priority, WEIGHTS[priority])
            for stream in ("TURNS", "TASKS"):
                specs.append(ConsumerSpec(stream, lane_consumer(stream, pool, priority), share, gate))
    return specs


async def main(service: Service) -> None:
    """Run turns until told to stop."""
    settings = service.settings
    tools, history = DeclaredTools(Toolbox(service.requests, settings.configuration.tools)), History(service.requests)
    reporter = LaneReporter(service.connection, service.worker)
    breakers = Breakers(service.requests, settings.configuration.breakers, service.worker)
    async with (
        open_providers(settings, guard=breakers.guard, requests=service.requests) as providers,
        background(reporter.run(), breakers.run(service.stopping)),
    ):
        handlers = {
            pool: TurnHandler(
                candidates,
                tools,
                history,
                pool=settings.configuration.pools[pool],
                available=breakers.available,
                waiting_seconds=settings.waiting_seconds,
                on_claimed=reporter.claimed,
                on_finished=reporter.finished,
            )
            for pool, candidates in providers.items()
        }
        loop = WorkLoop(service.connection, settings, lanes(settings, breakers), PoolHandlers(handlers), service.worker)
        async with heartbeats(
            service,
            lambda: loop.steps_running,
            concurrency=settings.worker_concurrency,
            pools=settings.pools,
        ):
            await service.ready()
            await loop.run(service.stopping, service.hurrying, service.patient)


if __name__ == "__main__":
    run("inference_worker", main)
