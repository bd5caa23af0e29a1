"""What an ingress measures of the mesh as a whole, while metrics are on: tasks, by its index."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final

import structlog

from ingress.listing.lists import Lists
from mesh.background import repeatedly
from mesh.loop_health import LoopHealth
from mesh.telemetry import figures, traces

log = structlog.get_logger("ingress.figures")

ROUND_SECONDS: Final = 10.0
"""As often as metrics are sent."""


def figure_rounds(lists: Lists) -> list[Coroutine[Any, Any, None]]:
    """The endless jobs that tell the figures; none while metrics are off."""
    if not traces.enabled():
        return []

    async def tell() -> None:
        figures.tasks_listed.tell({(status,): count for status, count in (await lists.counts_of_all()).items()})

    return [repeatedly(tell, ROUND_SECONDS, LoopHealth(log, "figures.unavailable", figure="tasks"))]
