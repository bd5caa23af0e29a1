"""Figures of the mesh as a whole, which one process reads from the broker: a steward, or an ingress.

Each steward tells the same, so that they are still told when one of them is gone: of several, take the greatest, and
never the sum. A figure that nobody has told for a while is not exported: an old one would be taken for the truth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from mesh.telemetry.instruments import observable_gauge

FRESH_SECONDS: Final = 60.0
"""How long a figure is told again as it was: a few rounds of whoever tells it. Timers are counted less often."""
OTHER: Final = "other"
"""What stands for all the names that are beyond a figure's bound."""
TOOLS_MAX: Final = 200
LANES_MAX: Final = 1_200
"""Two hundred pools: of three lanes on two streams each."""
NAMES_MAX: Final = 200


class Figure:
    """A gauge whose points are told all at once. `attributes` are those of each point, in the order of its key."""

    def __init__(
        self,
        name: str,
        unit: str,
        description: str,
        *attributes: str,
        points_max: int = NAMES_MAX,
        together: Callable[[Iterable[float]], float] = sum,
        fresh_seconds: float = FRESH_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`points_max` bounds the points; the rest is told as one, whose value `together` makes of theirs."""
        self.name = name
        self._attributes = attributes
        self._points_max = points_max
        self._together = together
        self._fresh_seconds = fresh_seconds
        self._clock = clock
        self._told_at = float("-inf")
        self._points: list[tuple[float, dict[str, str]]] = []
        observable_gauge(name, unit, description, attributes, self.points)

    def tell(self, values: Mapping[tuple[str, ...], float]) -> None:
        """The figure as it stands: what is not in it any more is gone."""
        # By name, so that the same ones are told each time, whatever their values.
        keys = sorted(values)
        rest = [values[key] for key in keys[self._points_max :]]
        points = [(values[key], dict(zip(self._attributes, key, strict=True))) for key in keys[: self._points_max]]
        if rest:
            points.append((self._together(rest), dict.fromkeys(self._attributes, OTHER)))
        self._points, self._told_at = points, self._clock()

    def points(self) -> list[tuple[float, dict[str, str]]]:
        """Values with their attributes; none once they are old."""
        return self._points if self._clock() - self._told_at <= self._fresh_seconds else []


_LANE: Final = ("taskmesh.stream", "taskmesh.pool", "taskmesh.priority")

lane_depth = Figure(
    "taskmesh.lane.depth", "{turn}", "Turns that wait in a lane for a worker.", *_LANE, points_max=LANES_MAX
)
lane_running = Figure(
    "taskmesh.lane.running",
    "{turn}",
    "Turns of a lane that workers have, and those that wait for a later try.",
    *_LANE,
    points_max=LANES_MAX,
)
lane_oldest = Figure(
    "taskmesh.lane.oldest_age",
    "s",
    "How long the oldest turn that no worker has had yet has waited; 0 where none waits.",
    *_LANE,
    points_max=LANES_MAX,
    together=max,
)
pool_workers = Figure(
    "taskmesh.pool.workers", "{process}", "Workers that answer, by the pools that they serve.", "taskmesh.pool"
)
tool_depth = Figure(
    "taskmesh.tool.depth", "{call}", "Calls that wait for a runner.", "taskmesh.tool", points_max=TOOLS_MAX
)
tool_running = Figure(
    "taskmesh.tool.running",
    "{call}",
    "Calls that runners have, and those that wait for a later try.",
    "taskmesh.tool",
    points_max=TOOLS_MAX,
)
tool_oldest = Figure(
    "taskmesh.tool.oldest_age",
    "s",
    "How long the oldest call that no runner has had yet has waited; 0 where none waits.",
    "taskmesh.tool",
    points_max=TOOLS_MAX,
    together=max,
)
tool_runners = Figure(
    "taskmesh.tool.runners",
    "{process}",
    "Tool runners that answer, by the tools that they serve.",
    "taskmesh.tool",
    points_max=TOOLS_MAX,
)
consumer_depth = Figure(
    "taskmesh.consumer.depth",
    "{message}",
    "Messages that wait for a steward: commands, timers, signals, webhooks, the critic's.",
    "taskmesh.stream",
    "taskmesh.consumer",
)
consumer_running = Figure(
    "taskmesh.consumer.running",
    "{message}",
    "Messages that a steward has, and those that wait for a later try.",
    "taskmesh.stream",
    "taskmesh.consumer",
)
consumers_paused = Figure(
    "taskmesh.consumers.paused", "{consumer}", "Consumers that somebody has paused.", "taskmesh.stream"
)
valves_shut = Figure(
    "taskmesh.valves.shut",
    "{valve}",
    "Pools, lanes, tenants and providers that people have paused.",
    "taskmesh.valve",
)
tenants_limited = Figure("taskmesh.tenants.limited", "{tenant}", "Tenants that have other limits for a while.")
timers_waiting = Figure(
    "taskmesh.timers.waiting",
    "{timer}",
    "Timers that are not due yet: of approvals and questions, later tries, deadlines, rules, and room.",
    "taskmesh.kind",
    fresh_seconds=5 * FRESH_SECONDS,
)
timers_due = Figure("taskmesh.timers.due", "{timer}", "Timers that have fired and are not carried out.")
workers_alive = Figure(
    "taskmesh.workers.alive", "{process}", "Processes that answer the broker's roll call.", "taskmesh.service"
)
workers_silent = Figure(
    "taskmesh.workers.silent",
    "{process}",
    "Processes with a record in the bucket `workers` that do not answer: frozen, or gone a moment ago.",
    "taskmesh.service",
)
checks_failing = Figure(
    "taskmesh.checks.failing",
    "{process}",
    "Processes that say in their record that a check of theirs fails.",
    "taskmesh.service",
    "taskmesh.check",
)
builds = Figure("taskmesh.fleet.builds", "{build}", "Different builds that run at the same time.")
configurations = Figure(
    "taskmesh.fleet.configurations", "{configuration}", "Different configurations that run at the same time."
)
findings = Figure(
    "taskmesh.fleet.findings",
    "{finding}",
    "1 while a check of the mesh is not well, as `meshctl doctor` would say it, else 0; by each ingress.",
    "taskmesh.check",
)
statistics_age = Figure(
    "taskmesh.statistics.age",
    "s",
    "How old the statistics of lanes are that an ingress estimates waits by.",
)
breakers_open = Figure(
    "taskmesh.breaker.open", "1", "1 while a provider is not called, or only tried; else 0.", "taskmesh.provider"
)
mcp_away = Figure(
    "taskmesh.mcp.away", "{process}", "Tool runners that can't reach an MCP server.", "taskmesh.mcp_server"
)
storage_used = Figure(
    "taskmesh.storage.used", "By", "Bytes of streams and buckets, the account, and the disk.", "taskmesh.stream"
)
storage_limit = Figure(
    "taskmesh.storage.limit", "By", "Bytes that they may have; none is told where there is no limit.", "taskmesh.stream"
)
storage_messages = Figure(
    "taskmesh.storage.messages", "{message}", "Messages of streams and buckets.", "taskmesh.stream"
)
retention_lag = Figure(
    "taskmesh.retention.lag",
    "s",
    "How far retention is behind: how long ago the oldest thing that it has not looked at has become due.",
    "taskmesh.walk",
)
tasks_listed = Figure(
    "taskmesh.tasks.listed", "{task}", "Tasks that the ingress lists, packed ones as well.", "taskmesh.status"
)
