"""The rounds in which a steward reads the figures of the mesh from the broker, each for itself.

Every steward does: what one tells is not lost with it. None of it runs unless somebody fetches metrics, or gets them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import structlog

from contracts.valve_keys import VALVE_KINDS
from mesh.broker.connection import Connection
from mesh.clock import MESH_CLOCK, now
from mesh.configuration.settings import Settings
from mesh.loop_health import LoopHealth
from mesh.telemetry import figures, traces
from mesh.valves.watched import Valves
from steward.figures import queues, storage
from steward.figures.fleet import FleetFigures

log = structlog.get_logger("steward.figures")

Lags = Callable[[datetime], Awaitable[Mapping[str, timedelta]]]
"""How far each walk of retention is behind at a time."""

ROUND_SECONDS: Final = 10.0
"""As often as metrics are sent. Each round costs a few dozen requests, and one more for each lane with work."""
COUNT_SECONDS: Final = 120.0
"""The broker goes through all timers to count them: 0.2 µs each (ADR-19), in which nobody sets one."""


def figure_rounds(
    connection: Connection, settings: Settings, retention_lags: Lags, valves: Valves
) -> list[Coroutine[Any, Any, None]]:
    """The endless jobs that tell the figures; none while metrics are off."""
    if not traces.enabled():
        return []
    requests = connection.requests
    breakers = [name for name, breaker in settings.configuration.breakers.items() if breaker.enabled]
    fleet = FleetFigures(connection, settings.pools, breakers)

    async def tell_valves() -> None:
        shut = Counter(valve.kind for valve in valves.shut())
        figures.valves_shut.tell({(kind,): shut[kind] for kind in VALVE_KINDS})
        figures.tenants_limited.tell({(): len(valves.limits())})

    async def tell_retention() -> None:
        if MESH_CLOCK.is_learnt:
            lags = await retention_lags(now())
            figures.retention_lag.tell({(walk,): lag.total_seconds() for walk, lag in lags.items()})

    def job(act: Callable[[], Awaitable[None]], what: str, seconds: float = ROUND_SECONDS) -> Coroutine[Any, Any, None]:
        return _rounds(act, seconds, LoopHealth(log, "figures.unavailable", figure=what))

    return [
        job(lambda: queues.tell(requests), "queues"),
        job(fleet.tell, "fleet"),
        job(tell_retention, "retention"),
        job(tell_valves, "valves"),
        job(lambda: storage.tell(requests), "storage"),
        job(lambda: storage.tell_timers(requests), "timers", COUNT_SECONDS),
    ]


async def _rounds(act: Callable[[], Awaitable[None]], seconds: float, health: LoopHealth) -> None:
    """Act again and again until cancelled, whatever comes of it: no figure is worth a steward."""
    while True:
        try:
            await act()
            health.succeeded()
        except Exception as error:
            health.failed(error)
        await asyncio.sleep(seconds)
