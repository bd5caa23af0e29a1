"""Exporting spans and metrics by OTLP over HTTP, and metrics for Prometheus. Imported only where either is asked for.

The standard `OTEL_*` variables hold: `variables` lists those that matter here. A collector that is
away or hangs costs a bounded queue, one log line for each process, and `FLUSH_SECONDS_MAX` at the end; no task waits.
"""

from __future__ import annotations

import logging
import os
import threading
import time

import structlog
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from contracts import VERSION
from contracts.build import BUILD
from mesh.configuration.settings import worker_name
from mesh.telemetry import variables
from mesh.telemetry.variables import METRIC_INTERVAL_SECONDS, SPAN_DELAY_SECONDS

log = structlog.get_logger("mesh.telemetry.exporting")

FLUSH_SECONDS_MAX = 2.0
"""How long a process that ends waits for its last spans and metrics to be taken."""


class Exporting:
    """The exporters of this process, made OpenTelemetry's global ones."""

    def __init__(self, service: str, *, otlp: bool, prometheus: bool) -> None:
        """`otlp`: push both to the endpoint. `prometheus`: keep metrics for whoever fetches them."""
        _hush()
        # What the operator says of the resource, by the standard variables, outranks what the service knows.
        resource = Resource.create(
            {
                "service.name": f"taskmesh-{service}",
                "service.version": VERSION,
                "taskmesh.build": BUILD,
                # Two workers' counters must not be taken for one.
                "service.instance.id": worker_name(service),
            }
        ).merge(OTELResourceDetector().detect())
        self._tracers: TracerProvider | None = None
        self._meters: MeterProvider | None = None
        if otlp and _is_wanted(variables.TRACES_EXPORTER):
            # Neither ends at the exit of the interpreter: their own ends wait half a minute for a collector that hangs.
            self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
            self._tracers.add_span_processor(
                BatchSpanProcessor(
                    OTLPSpanExporter(), schedule_delay_millis=_unless_set(variables.SPAN_DELAY, SPAN_DELAY_SECONDS)
                )
            )
            trace.set_tracer_provider(self._tracers)
        readers: list[MetricReader] = []
        if otlp and _is_wanted(variables.METRICS_EXPORTER):
            readers.append(
                PeriodicExportingMetricReader(
                    OTLPMetricExporter(),
                    export_interval_millis=_unless_set(variables.METRIC_INTERVAL, METRIC_INTERVAL_SECONDS),
                )
            )
        if prometheus:
            from mesh.telemetry.prometheus import reader  # noqa: PLC0415 - not loaded where nobody fetches

            readers.append(reader())
        if readers:
            self._meters = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
            metrics.set_meter_provider(self._meters)

    def shut_down(self) -> None:
        """Send what is left, for at most `FLUSH_SECONDS_MAX`; what has not gone then is dropped."""
        ends = [
            threading.Thread(target=provider.shutdown, name="telemetry-end", daemon=True)
            for provider in (self._tracers, self._meters)
            if provider is not None
        ]
        for end in ends:
            end.start()
        give_up_at = time.monotonic() + FLUSH_SECONDS_MAX
        for end in ends:
            end.join(max(0.0, give_up_at - time.monotonic()))


def _is_wanted(variable: str) -> bool:
    """Whether one of the signals is exported: `none` in its standard variable says no."""
    return os.environ.get(variable, "otlp").strip().lower() != "none"


def _unless_set(variable: str, seconds: float) -> float | None:
    """Milliseconds; None, which is the SDK's word for reading its variable, where that is set."""
    return None if os.environ.get(variable) else seconds * 1000


class _SaidOnce(logging.Handler):
    """Says the first complaint, and no other: a collector that is away would give several for each export."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._said.is_set():
            return
        self._said.set()
        log.warning("telemetry.export_failed", reason=record.getMessage(), more="not said again by this process")


def _hush() -> None:
    library = logging.getLogger("opentelemetry")
    library.handlers = [_SaidOnce()]
    library.propagate = False
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)
