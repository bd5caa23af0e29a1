"""Logs and traces. Logs are events with fields; traces go from HTTP through NATS headers into each step.

Spans and metrics are exported when an OTLP endpoint is set (`exporting`, imported only then). MESH_OPS_ADDRESS alone
switches metrics on, for Prometheus to fetch. Otherwise no span is made and nothing is measured: only the `traceparent`
of a request travels, from message to message.

What a message carries is the context of a span that has ended or is about to: the publish of a submission, the claim
of a step. A killed process takes its open spans with it, so nothing that another process does may hang under one.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

import msgspec
import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagate import extract, inject
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from contracts import VERSION, headers
from mesh.configuration.settings import Settings
from mesh.masking import hide
from mesh.telemetry import levels, variables
from mesh.telemetry.log_output import LibraryNoise, MaskedFormatter, bounded, lossy, masked

if TYPE_CHECKING:
    from mesh.telemetry.exporting import Exporting

Attributes = Mapping[str, str | int | float]

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_LIBRARY_NOISE = LibraryNoise()
"""One: a logger takes the same filter once, however often it is given."""
NO_SPAN = trace.INVALID_SPAN
"""What stands for a span while none is made: it takes attributes, and forgets them."""
_tracer = trace.get_tracer("taskmesh", VERSION)
_exporting: Exporting | None = None
_spans_on = False
COMMAND = "meshctl"
"""Nobody fetches the metrics of a command."""
_carried: ContextVar[str | None] = ContextVar("carried_traceparent", default=None)


def configure(settings: Settings, service: str, least: str | None = None) -> None:
    """Set up logging to standard error, and telemetry where it is asked for. Once, at the start.

    `least`: the level from which on is logged, whatever the settings say.
    """
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor
    factory: structlog.BytesLoggerFactory | structlog.PrintLoggerFactory
    if console:
        renderer, factory = structlog.dev.ConsoleRenderer(), structlog.PrintLoggerFactory(file=lossy(sys.stderr))
    else:
        # In bytes, by msgspec: a line costs a quarter of what it does with the standard library's encoder.
        renderer = structlog.processors.JSONRenderer(serializer=_log_line)
        factory = structlog.BytesLoggerFactory(file=lossy(sys.stderr.buffer))
    levels.set_least(least or settings.logged_level)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            bounded,
            renderer,
            masked,
        ],
        wrapper_class=levels.BoundLogger,
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    hide((*settings.secret_texts, *variables.header_values(os.environ)))
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(MaskedFormatter("%(name)s: %(message)s"))
    logging.getLogger("asyncio").addFilter(_LIBRARY_NOISE)
    # nats-py reports through its callbacks too; one line for each event is enough.
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    otlp, prometheus = is_asked_for(os.environ), settings.ops_address is not None and service != COMMAND
    if otlp or prometheus:
        _start_exporting(service, otlp=otlp, prometheus=prometheus)


def set_level(level: str) -> None:
    """Log from this level on: debug, info, warning or error."""
    levels.set_least(level)


def _log_line(event: structlog.typing.EventDict, **_: object) -> bytes:
    return msgspec.json.encode(event, enc_hook=repr)


def is_asked_for(environment: Mapping[str, str]) -> bool:
    """Whether the standard variables name an OTLP endpoint, and don't switch the SDK off."""
    if environment.get(variables.SDK_DISABLED, "").strip().lower() == "true":
        return False
    return any(environment.get(variable) for variable in variables.ENDPOINTS)


def _start_exporting(service: str, *, otlp: bool, prometheus: bool) -> None:
    global _exporting, _spans_on  # noqa: PLW0603 - one for each process, as OpenTelemetry's own providers are
    # Imported here: without an endpoint a service need not pay for the exporters' start.
    from mesh.telemetry.exporting import Exporting  # noqa: PLC0415 - see above

    _exporting = Exporting(service, otlp=otlp, prometheus=prometheus)
    _spans_on = otlp


def enabled() -> bool:
    """Whether anything is measured or exported. Where telemetry costs something, ask first."""
    return _exporting is not None


def spans_enabled() -> bool:
    """Whether spans are made. Where a span alone costs something, ask first."""
    return _spans_on


def shut_down() -> None:
    """Send what is left, within a bound."""
    if _exporting is not None:
        _exporting.shut_down()


def span(
    name: str,
    traceparent: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes | None = None,
    linked_to: str | None = None,
) -> AbstractContextManager[trace.Span]:
    """A span, continuing the trace of a `traceparent` header if there is one, else under the current span.

    `linked_to` is the traceparent of a span in another trace that belongs to it. What leaves the body as an exception
    marks the span as failed, by its code: an exception's text may quote a payload.
    """
    if not _spans_on:
        # No span, but messages carry on what came: the next process may export.
        return carrying(traceparent or _carried.get())
    return _made_span(name, traceparent, kind, attributes, linked_to)


@contextmanager
def _made_span(
    name: str, traceparent: str | None, kind: SpanKind, attributes: Attributes | None, linked_to: str | None
) -> Iterator[trace.Span]:
    links = [Link(trace.get_current_span(_context(linked_to)).get_span_context())] if linked_to else None
    with _tracer.start_as_current_span(
        name,
        context=_context(traceparent) if traceparent else None,
        kind=kind,
        attributes=attributes,
        links=links,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except Exception as error:
            fail(current, getattr(error, "code", type(error).__name__))
            raise


def fail(failed: trace.Span, code: str) -> None:
    """Mark a span as failed, by a stable code."""
    failed.set_status(Status(StatusCode.ERROR))
    failed.set_attribute("error.type", code)


def add_past_span(
    name: str,
    started_ns: int,
    attributes: Attributes,
    *,
    traceparent: str | None = None,
    ended_ns: int | None = None,
    error: str | None = None,
) -> None:
    """A span under the current one, or that of `traceparent`. It began at `started_ns` (Unix time).

    It ends now, unless `ended_ns` says when; `error` is the code of its failure.
    """
    if not _spans_on:
        return
    context = _context(traceparent) if traceparent else None
    past = _tracer.start_span(name, context=context, start_time=started_ns, attributes=attributes)
    if error is not None:
        fail(past, error)
    past.end(time.time_ns() if ended_ns is None else ended_ns)


class carrying:  # noqa: N801 - it stands where a function with `contextmanager` would, at a quarter of its cost
    """Let all messages of the body carry this `traceparent`, whatever span is open when they are sent."""

    __slots__ = ("_before", "_traceparent")

    def __init__(self, traceparent: str | None) -> None:
        self._traceparent = traceparent

    def __enter__(self) -> trace.Span:
        self._before: Token[str | None] = _carried.set(self._traceparent)
        return NO_SPAN

    def __exit__(self, *_: object) -> None:
        _carried.reset(self._before)


def current_traceparent() -> str | None:
    """The `traceparent` header for a message that is sent now; None outside of any trace."""
    carried = _carried.get()
    if carried is not None or not _spans_on:
        return carried
    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier.get(headers.TRACEPARENT)


def _context(traceparent: str) -> Context:
    return extract({headers.TRACEPARENT: traceparent})


def parse_traceparent(value: str | None) -> str | None:
    """A valid W3C traceparent, else None: a broken one starts a new trace, by the standard."""
    return value if value is not None and _TRACEPARENT.fullmatch(value) else None


def new_traceparent() -> str:
    """A fresh trace id for a request that brings none, so that its logs and records can be tied together."""
    random_hex = os.urandom(24).hex()
    return f"00-{random_hex[:32]}-{random_hex[32:]}-00"
