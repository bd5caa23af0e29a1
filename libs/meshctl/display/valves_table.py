"""What is paused, or limited for a while, as a table for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from contracts.api.valves import ValveList
from contracts.codec import encode
from meshctl.display.rendering import time_text
from meshctl.display.tables import cell, plain_table


def valves_table(found: ValveList) -> Table:
    """One on each line: what is paused, then whose limits are others."""
    table = plain_table("WHAT", "NAME", "LIMITS", "SINCE", "UNTIL", "BY", "REASON")
    for valve in found.valves:
        until = time_text(valve.until) if valve.until is not None else "resumed"
        row = (valve.kind, valve.name, "paused", time_text(valve.since), until, valve.by, valve.reason or "")
        table.add_row(*(cell(each, "red" if each == "paused" else "") for each in row))
    for limits in found.limits:
        told = limits_text(limits.limits)
        times = (time_text(limits.since), time_text(limits.until))
        table.add_row(*map(cell, ("tenant", limits.tenant, told, *times, limits.by, limits.reason or "")))
    return table


def limits_text(limits: Mapping[str, Any]) -> str:
    """Limits as they are written: `running=2, weight=0.5`."""
    return ", ".join(f"{key}={encode(value).decode()}" for key, value in limits.items())
