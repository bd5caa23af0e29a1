"""The registry of metrics, and how an instrument comes into it: each is made here, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from opentelemetry import metrics
from opentelemetry.metrics import (
    CallbackOptions,
    Counter,
    Histogram,
    ObservableGauge,
    Observation,
    UpDownCounter,
)

from contracts import VERSION

_meter = metrics.get_meter("taskmesh", VERSION)


class Instrument(NamedTuple):
    """An entry of the registry. `attributes` are the names of all that a point may carry."""

    name: str
    kind: str
    unit: str
    description: str
    attributes: tuple[str, ...]


REGISTRY: dict[str, Instrument] = {}
"""Metric name → what it is. docs/metrics.md has the same as tables."""


def _enter(name: str, kind: str, unit: str, description: str, attributes: tuple[str, ...]) -> None:
    REGISTRY[name] = Instrument(name, kind, unit, description, attributes)


def histogram(
    name: str, unit: str, description: str, attributes: tuple[str, ...], boundaries: tuple[float, ...]
) -> Histogram:
    """How often values of each size came."""
    _enter(name, "histogram", unit, description, attributes)
    return _meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=boundaries)


def counter(name: str, unit: str, description: str, attributes: tuple[str, ...]) -> Counter:
    """A sum that only grows."""
    _enter(name, "counter", unit, description, attributes)
    return _meter.create_counter(name, unit, description)


def up_down_counter(name: str, unit: str, description: str, attributes: tuple[str, ...]) -> UpDownCounter:
    """A sum that may shrink."""
    _enter(name, "up-down counter", unit, description, attributes)
    return _meter.create_up_down_counter(name, unit, description)


def observable_gauge(
    name: str,
    unit: str,
    description: str,
    attributes: tuple[str, ...],
    observe: Callable[[], list[tuple[float, dict[str, str]]]],
) -> ObservableGauge:
    """A figure that is asked for when it is exported, maybe in another thread."""
    _enter(name, "observable gauge", unit, description, attributes)

    def observations(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, point) for value, point in observe()]

    return _meter.create_observable_gauge(name, [observations], unit, description)
