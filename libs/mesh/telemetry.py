"""Logs and traces. Logs are events with fields; traces go from HTTP through NATS headers into each step.

Spans are exported when `OTEL_EXPORTER_OTLP_ENDPOINT` is set; otherwise the OpenTelemetry API's no-op tracer
is used, and only the context travels.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagate import extract, inject
from opentelemetry.trace import SpanKind

from contracts import VERSION, headers
from mesh.settings import Settings

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_tracer = trace.get_tracer("taskmesh", VERSION)


def configure(settings: Settings, service: str) -> None:
    """Set up logging to standard error, and tracing where an endpoint is set. Once, at the start."""
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.log_level]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s")
    # nats-py reports through its callbacks too; one line for each event is enough.
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        _export_spans(service)


def _export_spans(service: str) -> None:
    # Imported here: without an endpoint a service need not pay for the exporter's start.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - see above
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - see above
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - see above
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - see above

    provider = TracerProvider(
        resource=Resource.create({"service.name": f"taskmesh-{service}", "service.version": VERSION})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def shut_down() -> None:
    """Send what is left of the spans."""
    provider = trace.get_tracer_provider()
    stop = getattr(provider, "shutdown", None)
    if stop is not None:
        stop()


@contextmanager
def span(name: str, traceparent: str | None = None, kind: SpanKind = SpanKind.CONSUMER) -> Iterator[trace.Span]:
    """A span, continuing the trace of a `traceparent` header if there is one."""
    context: Context | None = extract({headers.TRACEPARENT: traceparent}) if traceparent else None
    with _tracer.start_as_current_span(name, context=context, kind=kind) as current:
        yield current


def current_traceparent() -> str | None:
    """The `traceparent` header that continues the current span; None outside of any trace."""
    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier.get(headers.TRACEPARENT)


def new_traceparent() -> str:
    """A fresh trace id for a request that brings none, so that its logs and records can be tied together."""
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-00"
