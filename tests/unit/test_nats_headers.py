"""Headers as the client writes and reads them, held against nats-py's own, which it replaces."""

from __future__ import annotations

import pytest
from nats.aio.client import Client

from mesh.broker.nats_client import header_block, parsed_headers


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\r\n",
        b"Nats-Msg-Id: 01.1.g0\r\n\r\n",
        b"Nats-Stream: EVENTS\r\nNats-Subject: events.acme.01.log\r\nNats-Sequence: 7\r\n\r\n",
        b"Name:value\r\nOther:\tvalue \r\nEmpty:\r\nSpaces:   \r\n\r\n",
        b"time: 2026-11-28T03:00:00Z\r\nurl: http://host:1/a:b\r\n\r\n",
        b"no colon\r\ntwo words: no\r\n\xff: no\r\nvalue: \xff\xc3\xa9\r\n\r\n",
        b" Led: by a space\r\nSame: one\r\nSame: other\r\n\r\n",
    ],
)
def test_headers_are_read_as_nats_py_reads_them(block: bytes) -> None:
    assert parsed_headers(block) == Client._parse_header_lines(block)


def test_headers_that_are_written_are_read_again() -> None:
    headers = {"Nats-Msg-Id": "01.1.g0", "traceparent": "00-1-2-00", "name": "Zoë: a, b"}
    block = header_block(headers)
    assert block is not None
    version, _, rest = block.partition(b"\r\n")
    assert (version, block[-4:]) == (b"NATS/1.0", b"\r\n\r\n")
    assert parsed_headers(rest) == headers
    assert header_block({}) == b""


@pytest.mark.parametrize("value", ["a\r\nNats-Msg-Id: mine", "a\nb", "a\rb"])
def test_a_value_with_a_lines_end_becomes_no_other_header(value: str) -> None:
    """It is left to nats-py, which makes spaces of it."""
    assert header_block({"name": value}) is None
