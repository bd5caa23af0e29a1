"""Headers are taken apart as nats-py does it, in less time."""

from __future__ import annotations

import pytest
from nats.aio.client import Client

from mesh.broker.client import HeaderClient

BLOCKS = [
    b"Nats-Stream: EVENTS\r\nNats-Subject: events.a.b.log\r\nNats-Sequence: 12\r\n\r\n",
    b"Nats-Time-Stamp: 2026-11-27T06:00:00.123456789Z\r\n",
    b"traceparent:00-1-2-01\r\nother:\tx  \r\n",
    b"empty:\r\nno header\r\n:no name\r\n",
    b"a name: x\r\nb\tc: y\r\nb: z\r\nb: last\r\n",
    "ünicode: x\r\nvalue: grün ✓\r\n".encode(),
    b"bad: \xff\xfe\r\n\xff: x\r\n",
    b"",
]


@pytest.mark.parametrize("block", BLOCKS)
def test_headers_are_those_of_the_client_it_stands_for(block: bytes) -> None:
    assert HeaderClient._parse_header_lines(block) == Client._parse_header_lines(block)
