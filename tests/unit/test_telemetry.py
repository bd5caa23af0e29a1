"""Telemetry without an exporter: nothing is made or measured, and the trace of a request travels all the same."""

from __future__ import annotations

import contextlib
import timeit
from pathlib import Path

import pytest
import structlog

from mesh.telemetry import metrics, traces
from mesh.telemetry.log_output import FIELD_CHARACTERS_MAX, bounded, lossy
from mesh.telemetry.metrics import REGISTRY

INCOMING = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-1bf7651916cd43dd8448eb211c80319c-c7ad6b7169203331-01"
OFF_SECONDS_MAX = 10e-6
"""Far above what it takes (about a tenth of a microsecond), and a hundredth of the fastest append."""


@pytest.mark.parametrize(
    ("environment", "asked_for"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector:4318/v1/metrics"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_an_endpoint_asks_for_telemetry_unless_the_sdk_is_switched_off(
    environment: dict[str, str], *, asked_for: bool
) -> None:
    assert traces.is_asked_for(environment) is asked_for


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        (INCOMING, INCOMING),
        (None, None),
        ("rubbish", None),
        (INCOMING + "-more", None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01", None),
    ],
)
def test_a_broken_traceparent_is_none(value: str | None, parsed: str | None) -> None:
    assert traces.parse_traceparent(value) == parsed


def test_a_new_traceparent_is_a_valid_one() -> None:
    made = traces.new_traceparent()
    assert traces.parse_traceparent(made) == made


def test_without_an_exporter_messages_carry_on_what_came() -> None:
    assert traces.current_traceparent() is None
    with traces.span("claim", INCOMING):
        assert traces.current_traceparent() == INCOMING
        with traces.span("inner"):
            assert traces.current_traceparent() == INCOMING
        with traces.carrying(OTHER):
            assert traces.current_traceparent() == OTHER
    assert traces.current_traceparent() is None


def test_without_an_exporter_there_are_no_spans_and_errors_pass_through() -> None:
    def fail() -> None:
        with traces.span("failing", INCOMING) as span:
            traces.fail(span, "code")
            assert not span.is_recording()
            raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was"):
        fail()


def test_every_metric_has_a_name_of_the_conventions_or_of_ours_and_says_what_it_is() -> None:
    for name, instrument in REGISTRY.items():
        assert name == instrument.name
        # What a model server measures of itself, `gen_ai.server`, nobody here can know.
        assert name.startswith(("taskmesh.", "gen_ai.client."))
        assert instrument.unit
        assert instrument.description.endswith(".")


def test_what_is_asked_for_each_token_costs_nothing_while_telemetry_is_off() -> None:
    def measure() -> None:
        metrics.appended(delta=True, seconds=0.0)

    calls = 10_000
    assert min(timeit.repeat(measure, number=calls, repeat=5)) / calls < OFF_SECONDS_MAX


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("buffering", [0, -1])
def test_a_line_that_can_not_be_written_stops_nobody(buffering: int) -> None:
    file = Path("/dev/full").open("wb", buffering=buffering)  # noqa: SIM115 - closing it fails as well
    logger = structlog.BytesLoggerFactory(file=lossy(file))()
    for _ in range(1_000):
        logger.msg(b"x" * 100)
    with pytest.raises(OSError, match="No space"):
        file.write(b"x" * 100_000)
    with contextlib.suppress(OSError):
        file.close()


def test_a_long_field_of_a_log_line_keeps_its_beginning_and_its_end() -> None:
    fields = {
        "event": "tool.failed",
        "exception": "Traceback" + "x" * 1_000_000 + "RecursionError",
        "n": 1,
        "many": [0] * 9999,
    }
    event = bounded(None, "error", dict(fields))
    assert (event["event"], event["n"]) == ("tool.failed", 1)
    assert event["exception"].startswith("Traceback")
    assert event["exception"].endswith("RecursionError")
    assert "characters left out" in event["many"]
    assert all(len(str(value)) < FIELD_CHARACTERS_MAX + 100 for value in event.values())
