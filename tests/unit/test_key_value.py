"""Records of buckets, as they are read."""

from __future__ import annotations

import pytest
import structlog
from structlog.testing import capture_logs

from contracts.codec import encode
from contracts.records.pace import PaceRecord
from mesh.broker.key_value import KeyValueEntry, record_of
from mesh.clock import now

log = structlog.get_logger("test")


def test_a_record_is_read() -> None:
    record = PaceRecord(provider="main", time=now())
    with capture_logs() as lines:
        found = record_of(KeyValueEntry(encode(record), 7), PaceRecord, log, "pace.unreadable", provider="main")
    assert (found, lines) == (record, [])


@pytest.mark.parametrize("entry", [None, KeyValueEntry(None, 7), KeyValueEntry(b"", 7)])
def test_where_there_is_none_nothing_is_said(entry: KeyValueEntry | None) -> None:
    with capture_logs() as lines:
        found = record_of(entry, PaceRecord, log, "pace.unreadable", provider="main")
    assert (found, lines) == (None, [])


@pytest.mark.parametrize(
    "value", [b"{", b"null", b"\xff", b'{"provider":"main"}', b'{"provider":7,"time":"2026-11-27"}']
)
def test_one_that_can_not_be_read_counts_as_none_and_the_log_says_whose_it_is(value: bytes) -> None:
    with capture_logs() as lines:
        found = record_of(KeyValueEntry(value, 7), PaceRecord, log, "pace.unreadable", provider="main")
    assert found is None
    [line] = lines
    assert (line["event"], line["log_level"], line["provider"]) == ("pace.unreadable", "warning", "main")
    assert line["error"]
