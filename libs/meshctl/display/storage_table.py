"""What `meshctl storage` shows people: a line for each stream, and what follows for tasks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from rich.table import Table
from rich.text import Text

from contracts.sizes import text
from mesh.broker.levels import Level
from meshctl.diagnosis.capacity import DAY_SECONDS, Growth, Kept, TaskBytes, TasksADay
from meshctl.display.tables import cell, plain_table

_STYLES: Final = {"ok": "", "filling": "yellow", "full": "bold red"}
_DAYS_SHOWN_MAX: Final = 9_999
"""More than that is no forecast."""
_DAYS_ROUNDED_FROM: Final = 10


class Shown(NamedTuple):
    """A line: a stream, a bucket, the account or the disk. `state` is ok, filling or full."""

    level: Level
    state: str
    growth: Growth | None
    days_left: float | None


def storage_table(lines: Sequence[Shown]) -> Table:
    """One line for each, in the order given."""
    table = plain_table()
    for head in ("", "USED", "LIMIT", "FULL", "MESSAGES", "SUBJECTS", "A DAY", "DAYS LEFT"):
        table.add_column(head, no_wrap=True, justify="left" if not head else "right")
    table.show_header = True
    for line in lines:
        level = line.level
        table.add_row(
            cell(level.name, _STYLES[line.state]),
            text(level.used_bytes),
            text(level.limit_bytes) if level.limit_bytes > 0 else "-",
            cell(f"{level.percent:.0f} %" if level.limit_bytes > 0 else "-", _STYLES[line.state]),
            f"{level.messages:,}" if level.messages else "-",
            f"{level.subjects:,}" if level.subjects else "-",
            _growth(line.growth),
            _days(line.days_left),
        )
    return table


def capacity_lines(fits: TasksADay | None, each: TaskBytes, keeps: Kept, lines: Sequence[Shown]) -> list[Text]:
    """What is said below the table."""
    said: list[str] = []
    guessed = [line for line in lines if line.growth is not None and line.growth.is_extrapolated]
    if guessed and guessed[0].growth is not None:
        hours = guessed[0].growth.over_seconds / 3600
        said.append(f"~ is worked out from {hours:.1f} h: the first day is not over.")
    days = f"{keeps.unpacked_days:g} d unpacked and {keeps.packed_days:g} d packed"
    if fits is not None:
        a_second = fits.tasks / DAY_SECONDS
        said.append(
            f"About {fits.tasks:,.0f} tasks a day fit, {a_second:,.2f} a second, kept {days}: {fits.bound_by} is full"
            " first."
        )
    unpacked = f"{each.journal + each.record:,.0f} bytes unpacked{'' if each.is_measured else ' (assumed)'}"
    packed = f"{each.packed + each.place:,.0f} packed{'' if each.is_packed_measured else ' (assumed)'}"
    said.append(f"A task takes {unpacked}, {packed}.")
    return [cell(line) for line in said]


def _growth(growth: Growth | None) -> str:
    if growth is None:
        return "-"
    sign = "-" if growth.bytes_a_day < 0 else ""
    return f"{'~' if growth.is_extrapolated else ''}{sign}{text(abs(growth.bytes_a_day))}"


def _days(days: float | None) -> str:
    if days is None or days > _DAYS_SHOWN_MAX:
        return "-"
    return f"{days:.1f}" if days < _DAYS_ROUNDED_FROM else f"{days:.0f}"
