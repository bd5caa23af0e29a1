"""What a mesh holds, sampled while it works, and whether that grows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Bound(NamedTuple):
    """How much a level may grow from the second quarter to the last: a share of it, and so much besides."""

    share: float
    besides: float
    unit: str


BOUNDS: Mapping[str, Bound] = {
    "memory of nats-server": Bound(0.30, 40, "MiB"),
    "memory of services": Bound(0.20, 40, "MiB"),
    "disk": Bound(0.30, 24, "MiB"),
    "descriptors": Bound(0.15, 24, ""),
    "consumers": Bound(0.0, 2, ""),
}
"""What is bounded. Memory and disk are garbage as well, and are collected in their own time; consumers never grow."""


@dataclass
class Levels:
    """Samples of each level, in the order that they were taken: when, and how much."""

    samples: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, name: str, at: float, level: float) -> None:
        """Take note of one."""
        self.samples.setdefault(name, []).append((at, level))

    def quarters(self, name: str, seconds: float) -> tuple[float, float]:
        """The medians of the second and of the last quarter of a run of so many seconds."""
        samples = self.samples.get(name, [])
        return (
            _median([level for at, level in samples if 0.25 <= at / seconds < 0.5]),
            _median([level for at, level in samples if at / seconds >= 0.75]),
        )

    def growing(self, seconds: float) -> list[str]:
        """What grows. A level of which there are no samples is as bad."""
        found: list[str] = []
        for name, bound in BOUNDS.items():
            before, after = self.quarters(name, seconds)
            # A comparison with nan is never true.
            if not after <= before * (1 + bound.share) + bound.besides:
                unit = f" {bound.unit}" if bound.unit else ""
                found.append(f"{name}: {before:,.0f}{unit} in the second quarter, {after:,.0f}{unit} in the last")
        return found


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")
