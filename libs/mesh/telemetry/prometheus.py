"""Prometheus' text of what this process measures. Imported only where MESH_OPS_ADDRESS is set.

Names are as OpenTelemetry translates them: `taskmesh.queue.wait` in seconds is `taskmesh_queue_wait_seconds`, a
counter ends in `_total`, and an attribute `taskmesh.pool` is the label `taskmesh_pool`. Beside them are Prometheus' own
figures of a process (`process_resident_memory_bytes`, `process_open_fds`, `process_start_time_seconds` ...).

https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/ is the translation.
"""

from __future__ import annotations

import threading
from typing import Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `exposition` gives."""

_registry = CollectorRegistry()
_one_at_a_time = threading.Lock()


def reader() -> PrometheusMetricReader:
    """The reader that makes `exposition` tell what its provider measures. Once for each process."""
    ProcessCollector(registry=_registry)
    # The instruments are of one scope: its name and version on each line would tell nobody anything.
    return PrometheusMetricReader(scope_info_enabled=False, registry=_registry)


def exposition() -> bytes:
    """What this process has measured, as Prometheus' text format 0.0.4. For any thread, and best for one of its own.

    Without I/O; a few milliseconds, and for a steward with as many lanes and tools as are told about half a second.
    """
    # The exporter hands what it has collected to whichever call comes next.
    with _one_at_a_time:
        return generate_latest(_registry)
