"""What Prometheus calls the metrics of the registry, and its text taken apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mesh.telemetry.instruments import Instrument
from mesh.telemetry.metrics import REGISTRY

PROCESS = (
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
)
"""Prometheus' own figures of a process."""


class Sample(NamedTuple):
    """A line of the text."""

    name: str
    labels: dict[str, str]
    value: float


def samples(text: str) -> list[Sample]:
    """All lines, read by Prometheus' own client."""
    return [
        Sample(sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def values(text: str, name: str) -> dict[tuple[str, ...], float]:
    """The values of one metric, by those of its labels."""
    return {tuple(sample.labels.values()): sample.value for sample in samples(text) if sample.name == name}


def series() -> dict[str, set[str]]:
    """Each name that a metric of the registry has in Prometheus, with its labels, as the exporter translates it."""
    registry = CollectorRegistry()
    provider = MeterProvider(
        [PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=registry)],
        shutdown_on_exit=False,
    )
    meter = provider.get_meter("names")
    for instrument in REGISTRY.values():
        _measure(meter, instrument)
    found: dict[str, set[str]] = {name: set() for name in PROCESS}
    for sample in samples(generate_latest(registry).decode()):
        found.setdefault(sample.name, set()).update(sample.labels)
    provider.shutdown()
    return found


def _measure(meter: Meter, instrument: Instrument) -> None:
    """A point of the instrument, with all its attributes."""
    point = dict.fromkeys(instrument.attributes, "x")
    match instrument.kind:
        case "counter":
            meter.create_counter(instrument.name, instrument.unit).add(1, point)
        case "up-down counter":
            meter.create_up_down_counter(instrument.name, instrument.unit).add(1, point)
        case "histogram":
            meter.create_histogram(instrument.name, instrument.unit).record(1, point)
        case _:

            def observe(_: CallbackOptions) -> Iterator[Observation]:
                yield Observation(1, point)

            meter.create_observable_gauge(instrument.name, [observe], instrument.unit)
