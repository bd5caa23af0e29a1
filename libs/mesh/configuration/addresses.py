"""Which hosts and addresses may be talked to: pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

DEFAULT_PORTS = (80, 443)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Not for hosts of the Internet, whatever `is_global` says: Python 3.11 does not know all of the IANA's registries.
_SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "100.64.0.0/10",
        "192.0.0.0/24",
        "192.88.99.0/24",  # 6to4 relays, given up (RFC 7526)
        "::/96",  # IPv4-compatible, given up (RFC 4291)
        "64:ff9b:1::/48",  # translation in a network of one's own (RFC 8215)
        "100::/64",
        "100:0:0:1::/64",
        "2001:2::/48",
        "2001:db8::/32",
        "3fff::/20",  # documentation (RFC 9637)
        "5f00::/16",  # SRv6 (RFC 9602)
        "fec0::/10",  # site-local, given up (RFC 3879)
    )
)
# The one metadata service whose address is a public one (Azure's WireServer); all others are link-local or private.
_METADATA = frozenset({ipaddress.ip_address("168.63.129.16")})
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_HOST_CHARACTERS_MAX = 253


def is_host(host: str) -> bool:
    """Whether it is an IP address or a DNS name. A last label of digits can only be part of an address (WHATWG URL)."""
    if ":" in host or host.rpartition(".")[2].isdigit():
        return is_ip_address(host)
    return len(host) <= _HOST_CHARACTERS_MAX and all(_LABEL.fullmatch(label) for label in host.split("."))


def is_ip_address(host: str) -> bool:
    """Whether it is an IP address, an IPv6 one without brackets."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, to itself alone."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return is_ip_address(name) and ipaddress.ip_address(name).is_loopback


def is_near(host: str) -> bool:
    """Whether a host is one's own, or one's neighbour: of this machine, at a private address, or a name without a dot.

    Such names are those of containers, of services of a cluster, and of machines of the same domain.
    """
    name = host.lower().rstrip(".")
    if is_ip_address(name):
        address = ipaddress.ip_address(name)
        return address.is_private and not address.is_link_local and not address.is_unspecified
    return is_loopback(name) or (bool(name) and "." not in name)


def is_allowed(host: str, port: int, patterns: Sequence[str]) -> bool:
    """Whether a host, in lower case and an IPv6 address without brackets, is on the operator's list."""
    return any(_matches(host, port, pattern) for pattern in patterns)


def _matches(host: str, port: int, pattern: str) -> bool:
    name, colon, number = pattern.rpartition(":")
    if not colon or pattern.endswith("]"):
        name, number = pattern, ""
    ports = (int(number),) if number else DEFAULT_PORTS
    name = name.removeprefix("[").removesuffix("]")
    matched = host.endswith(name[1:]) if name.startswith("*.") else host == name
    return matched and port in ports


def is_public(text: str) -> bool:
    """Whether an address is a public one, however it is wrapped: no loopback, private, link-local, metadata address."""
    try:
        address: Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return _is_public(address)
    inside = _inside(address)
    # Of those two kinds only the address inside counts: the wrapping is never a host's own.
    wrapped = address.ipv4_mapped is not None or address in _NAT64
    return all(_is_public(each) for each in inside) and (wrapped or _is_public(address))


def _is_public(address: Address) -> bool:
    special = address in _METADATA or any(
        address in network for network in _SPECIAL if network.version == address.version
    )
    return address.is_global and not address.is_multicast and not address.is_reserved and not special


def _inside(address: ipaddress.IPv6Address) -> list[Address]:
    """The IPv4 addresses that an IPv6 address stands for."""
    found: list[Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in found if each is not None]
