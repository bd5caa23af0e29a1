"""A measured figure beside its limit, and how a table of them is printed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Figure:
    """One line of the table. `ratio` is what `target` speaks of, unless the target is in the figure's own unit."""

    name: str
    unit: str
    value: float
    limit_name: str = ""
    limit: float | None = None
    target: str = ""
    met: bool | None = None
    note: str = ""
    rounds: dict[str, list[float]] = field(default_factory=dict)
    """What each round measured, subject and limit: for whoever doubts a median."""

    @property
    def ratio(self) -> float | None:
        """Subject over limit."""
        return self.value / self.limit if self.limit else None


def at_least(ratio: float | None, bound: float) -> bool:
    """Whether a ratio reaches its target."""
    return ratio is not None and ratio >= bound


def percentile(values: Sequence[float], of_hundred: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(of_hundred / 100 * len(ordered)) - 1)]


async def interleaved(
    rounds: int, *measures: Callable[[], Awaitable[float]], warm_up: bool = True
) -> list[list[float]]:
    """Run A B C, A B C, …, so that what else the machine does falls on all alike. One list for each measure."""
    if warm_up:
        for measure in measures:
            await measure()
    results: list[list[float]] = [[] for _ in measures]
    for _ in range(rounds):
        for measure, result in zip(measures, results, strict=True):
            result.append(await measure())
    return results


def beside(
    name: str, unit: str, subject: list[float], limit_name: str, limit: list[float], target: str = "", note: str = ""
) -> Figure:
    """A figure from the medians of interleaved rounds."""
    return Figure(
        name,
        unit,
        statistics.median(subject),
        limit_name,
        statistics.median(limit),
        target,
        note=note,
        rounds={"subject": subject, "limit": limit},
    )


def table(figures: Sequence[Figure]) -> str:
    """A plain table, and the notes below it."""
    rows = [("figure", "measured", "limit", "ratio", "target", "met?")]
    for figure in figures:
        limit = f"{_number(figure.limit)} {figure.limit_name}" if figure.limit is not None else "-"
        ratio = f"{figure.ratio:.2f}" if figure.ratio is not None else "-"
        met = {True: "yes", False: "NO", None: "-"}[figure.met]
        rows.append((figure.name, f"{_number(figure.value)} {figure.unit}", limit, ratio, figure.target or "-", met))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    notes = [f"  {figure.name}: {figure.note}" for figure in figures if figure.note]
    return "\n".join([*lines, *(["", "Notes", *notes] if notes else [])])


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
