"""The doctor's lines about processes, queues and models: what was found, and what is well where nothing was."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mesh.configuration.settings import SERVICES
from mesh.fleet.findings import Fleet, clock_ahead, findings
from mesh.fleet.statistics import age_seconds
from meshctl.diagnosis.check import Check

_LINES: Final = (
    ("services", "versions"),
    ("answers",),
    ("builds", "configurations"),
    ("variables",),
    ("clocks",),
    ("processes",),
    ("statistics",),
    ("queues", "lanes"),
    ("valves",),
    ("providers",),
    ("mcp_servers",),
)
"""What one line says where all of these are well. What is not well has a line of its own each. Whether streams are as
declared the doctor looks at itself."""


def check_fleet(fleet: Fleet | str) -> list[Check]:
    """A line for each finding, and for what is well; an error's text if the fleet could not be looked at."""
    if isinstance(fleet, str):
        return [Check("services", "fail", f"can't be looked at: {fleet}", "see the lines above")]
    found = {each.check: each for each in findings(fleet)}
    if not fleet.members:
        # There is nobody whose queues, clocks and statistics were worth a line.
        found = {name: each for name, each in found.items() if name in ("services", "queues", "lanes")}
    lines: list[Check] = []
    for group in _LINES:
        told = [found[name] for name in group if name in found]
        lines += [Check(each.check, "fail" if each.grave else "warn", each.detail, each.remedy) for each in told]
        well = "" if told or not fleet.alive else _well(fleet, group[0])
        if well:
            lines.append(Check(group[0], "ok", well))
    return lines


def _well(fleet: Fleet, group: str) -> str:
    """What to say of a group of checks that found nothing; empty: nothing."""
    if group == "services":
        counts = {service: sum(member.service == service for member in fleet.alive) for service in SERVICES}
        seen = ", ".join(f"{count} {service}" for service, count in counts.items())
        return f"{seen}, all {_one(member.version for member in fleet.alive)}"
    if group == "builds":
        return _alike(fleet)
    if group == "clocks":
        return f"of all processes within {max(0.01, *(abs(clock_ahead(each)) for each in fleet.alive)):.2f} s"
    if group == "statistics":
        return f"those of lanes are at most {age_seconds(fleet.statistics, fleet.at) or 0.0:.0f} s old"
    if group == "queues":
        return f"none of {len(fleet.queues)} waits for somebody who is not there, is paused or full"
    if group == "providers" and fleet.providers:
        return f"{', '.join(sorted(each.provider for each in fleet.providers))}: the breaker is closed"
    if group == "mcp_servers":
        servers = {name for each in fleet.alive if each.record is not None for name in each.record.mcp_servers}
        return f"{', '.join(sorted(servers))} answer" if servers else ""
    return ""


def _alike(fleet: Fleet) -> str:
    records = [member.record for member in fleet.alive if member.record is not None]
    build, configuration = _one(each.build for each in records), _one(each.configuration for each in records)
    return f"all of build {build}, with configuration {configuration}" if build and configuration else ""


def _one(values: Iterable[str | None]) -> str:
    return next((value for value in values if value), "")
