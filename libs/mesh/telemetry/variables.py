"""The standard `OTEL_*` variables that matter here, each with its default and meaning.

This code reads those with a name of their own below. OpenTelemetry's SDK reads the rest, and others of the standard.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
METRICS_ENDPOINT = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"
ENDPOINTS = (ENDPOINT, TRACES_ENDPOINT, METRICS_ENDPOINT)
"""One of them switches telemetry on."""
SDK_DISABLED = "OTEL_SDK_DISABLED"
TRACES_EXPORTER = "OTEL_TRACES_EXPORTER"
METRICS_EXPORTER = "OTEL_METRICS_EXPORTER"
HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
TRACES_HEADERS = "OTEL_EXPORTER_OTLP_TRACES_HEADERS"
METRICS_HEADERS = "OTEL_EXPORTER_OTLP_METRICS_HEADERS"
SPAN_DELAY = "OTEL_BSP_SCHEDULE_DELAY"
METRIC_INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"

SPAN_DELAY_SECONDS = 0.5
"""How long an ended span waits for others. Short, since a killed process takes with it what still waits."""
METRIC_INTERVAL_SECONDS = 10.0


class StandardVariable(NamedTuple):
    """A variable of the OpenTelemetry standard. `value` says what it holds, and its unit."""

    name: str
    value: str
    default: str
    description: str


STANDARD_VARIABLES = (
    StandardVariable(
        ENDPOINT,
        "URL",
        "unset",
        "The collector, which takes OTLP over HTTP. Spans go to `/v1/traces` below it, metrics to `/v1/metrics`.",
    ),
    StandardVariable(TRACES_ENDPOINT, "URL", "unset", "Where spans go instead, as a whole URL."),
    StandardVariable(METRICS_ENDPOINT, "URL", "unset", "Where metrics go instead, as a whole URL."),
    StandardVariable(SDK_DISABLED, "`true` or `false`", "false", "`true` switches all of it off."),
    StandardVariable(TRACES_EXPORTER, "`otlp` or `none`", "otlp", "`none` sends no spans."),
    StandardVariable(METRICS_EXPORTER, "`otlp` or `none`", "otlp", "`none` sends no metrics."),
    StandardVariable(
        SPAN_DELAY, "milliseconds", f"{SPAN_DELAY_SECONDS * 1000:.0f}", "How long an ended span waits for others."
    ),
    StandardVariable(
        METRIC_INTERVAL, "milliseconds", f"{METRIC_INTERVAL_SECONDS * 1000:.0f}", "How often metrics are sent."
    ),
    StandardVariable(HEADERS, "`name=value`, by commas", "unset", "Headers of each request, such as a key."),
    StandardVariable(TRACES_HEADERS, "`name=value`, by commas", "unset", "Those of spans, in their place."),
    StandardVariable(METRICS_HEADERS, "`name=value`, by commas", "unset", "Those of metrics, in their place."),
    StandardVariable("OTEL_EXPORTER_OTLP_TIMEOUT", "seconds", "10", "How long one request may take."),
    StandardVariable(
        "OTEL_EXPORTER_OTLP_CERTIFICATE", "path", "unset", "The certificates that the collector is checked by."
    ),
    StandardVariable("OTEL_EXPORTER_OTLP_COMPRESSION", "`gzip` or `none`", "none", "How requests are compressed."),
    StandardVariable("OTEL_TRACES_SAMPLER", "name of a sampler", "parentbased_always_on", "Which traces are recorded."),
    StandardVariable("OTEL_TRACES_SAMPLER_ARG", "text", "unset", "The sampler's argument, such as a ratio."),
    StandardVariable("OTEL_SERVICE_NAME", "text", "taskmesh-<service>", "The name that each service goes by."),
    StandardVariable(
        "OTEL_RESOURCE_ATTRIBUTES", "`name=value`, by commas", "unset", "Further attributes of each process."
    ),
)


def header_values(environment: Mapping[str, str]) -> list[str]:
    """The values of the headers that a collector is sent, which may be keys."""
    given = ",".join(environment.get(name, "") for name in (HEADERS, TRACES_HEADERS, METRICS_HEADERS))
    return [unquote(value).strip() for _, equals, value in (each.partition("=") for each in given.split(",")) if equals]
