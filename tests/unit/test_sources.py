"""A request's source is what trusted front doors have written down, and nothing that anybody else could write."""

from __future__ import annotations

import ipaddress
from typing import Any, cast

import pytest
from litestar.types import HTTPScope

from mesh.access.sources import HOPS_MAX, LOCAL, counted_as, source_of, unmapped
from mesh.configuration.access_tables import SourceHeader

PROXIES = [unmapped(ipaddress.ip_network(each)) for each in ("10.0.0.0/8", "127.0.0.1/32", "fd00::/8")]


def asked(client: tuple[str, int] | None, *lines: bytes, header: bytes = b"x-forwarded-for") -> HTTPScope:
    """The head of a request from a peer, with these lines of a header."""
    scope: dict[str, Any] = {"client": client, "headers": [(header, line) for line in lines]}
    return cast("HTTPScope", scope)


@pytest.mark.parametrize(
    ("peer", "lines", "source"),
    [
        ("203.0.113.7", [], "203.0.113.7"),
        # Whoever is not trusted may write what they like.
        ("203.0.113.7", [b"198.51.100.1"], "203.0.113.7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", [b"198.51.100.1, 10.0.0.2, 10.9.9.9"], "198.51.100.1"),
        # A client's own list stands before what the front door has added.
        ("10.0.0.1", [b"1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"10.0.0.9, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"1.1.1.1", b"198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"1.1.1.1, garbage, 198.51.100.1"], "198.51.100.1"),
        # All are front doors: it was the first who asked.
        ("10.0.0.1", [b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        # What is no address was passed on by the one behind it.
        ("10.0.0.1", [b"garbage"], "10.0.0.1"),
        ("10.0.0.1", [b""], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.1, "], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.1, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [b"198.51.100.1 198.51.100.2"], "10.0.0.1"),
        ("10.0.0.1", [b"999.1.1.1"], "10.0.0.1"),
        ("10.0.0.1", [b"0x7f.1"], "10.0.0.1"),
        ("10.0.0.1", [b"\xff\xfe"], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.1\0"], "10.0.0.1"),
        # Ports, brackets, zones, and one family within the other.
        ("10.0.0.1", [b"198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", [b"[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", [b"[2001:db8::1]"], "2001:db8::1"),
        ("10.0.0.1", [b"2001:DB8:0::1"], "2001:db8::1"),
        ("10.0.0.1", [b"fe80::1%eth0"], "fe80::1"),
        ("10.0.0.1", [b"::ffff:198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"198.51.100.1, ::ffff:10.0.0.2"], "198.51.100.1"),
        ("::ffff:10.0.0.1", [b"198.51.100.1"], "198.51.100.1"),
        ("::ffff:203.0.113.7", [], "203.0.113.7"),
        ("fd00::1", [b"198.51.100.1"], "198.51.100.1"),
        ("2001:db8::7", [b"198.51.100.1"], "2001:db8::7"),
    ],
)
def test_the_source_is_the_last_that_is_no_front_door(peer: str, lines: list[bytes], source: str) -> None:
    assert source_of(asked((peer, 1), *lines), PROXIES) == source


@pytest.mark.parametrize(
    ("line", "source"),
    [
        (b"for=198.51.100.1", "198.51.100.1"),
        (b"For=198.51.100.1;proto=https;by=10.0.0.1", "198.51.100.1"),
        (b"proto=https;for=198.51.100.1", "198.51.100.1"),
        (b'for="198.51.100.1:4711"', "198.51.100.1"),
        (b'for="[2001:db8::1]:4711"', "2001:db8::1"),
        (b"for=1.1.1.1, for=198.51.100.1", "198.51.100.1"),
        (b"for=198.51.100.1, for=10.0.0.2", "198.51.100.1"),
        (b"for=_hidden", "10.0.0.1"),
        (b"for=unknown", "10.0.0.1"),
        (b"for=198.51.100.1;for=1.1.1.1", "10.0.0.1"),
        (b'for="198.51.100.1', "10.0.0.1"),
        (b"by=198.51.100.1", "10.0.0.1"),
        (b"xfor=198.51.100.1", "10.0.0.1"),
        (b"198.51.100.1", "10.0.0.1"),
        (b"for=", "10.0.0.1"),
    ],
)
def test_forwarded_is_read_as_its_rfc_has_it(line: bytes, source: str) -> None:
    scope = asked(("10.0.0.1", 1), line, header=b"forwarded")
    assert source_of(scope, PROXIES, "forwarded") == source


@pytest.mark.parametrize(("named", "other"), [("x-forwarded-for", b"forwarded"), ("forwarded", b"x-forwarded-for")])
def test_the_header_that_front_doors_do_not_write_means_nothing(named: SourceHeader, other: bytes) -> None:
    scope = asked(("10.0.0.1", 1), b"for=198.51.100.1", b"198.51.100.1", header=other)
    assert source_of(scope, PROXIES, named) == "10.0.0.1"


def test_a_socket_without_addresses_has_one_source() -> None:
    assert source_of(asked(None, b"198.51.100.1"), PROXIES) == LOCAL


def test_a_list_without_end_is_read_from_its_end_and_within_bounds() -> None:
    many = b", ".join([b"198.51.100.1", *[b"10.0.0.2"] * 100_000])
    assert source_of(asked(("10.0.0.1", 1), many), PROXIES) == "10.0.0.2"
    few = b", ".join([b"198.51.100.1", *[b"10.0.0.2"] * (HOPS_MAX - 1)])
    assert source_of(asked(("10.0.0.1", 1), few), PROXIES) == "198.51.100.1"


@pytest.mark.parametrize(
    ("source", "counted"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        (LOCAL, LOCAL),
    ],
)
def test_a_network_of_ipv6_is_one_source(source: str, counted: str) -> None:
    assert counted_as(source) == counted


def test_a_trusted_network_may_be_written_as_ipv6() -> None:
    trusted = [unmapped(ipaddress.ip_network("::ffff:10.0.0.0/104"))]
    assert source_of(asked(("10.0.0.1", 1), b"198.51.100.1"), trusted) == "198.51.100.1"
    assert unmapped(ipaddress.ip_network("2001:db8::/32")) == ipaddress.ip_network("2001:db8::/32")
