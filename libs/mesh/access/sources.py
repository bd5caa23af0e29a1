"""Where a request comes from: the address of its client, behind front doors that are trusted and those alone. Pure.

A front door writes down whom it serves, in `X-Forwarded-For` or in `Forwarded` (RFC 7239). Anybody can send these, so
what counts is what trusted front doors have added: they append, and the list is read from its end.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterator, Sequence
from typing import Final

from litestar.types import HTTPScope

from mesh.configuration.access_tables import SourceHeader

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LOCAL: Final = "local"
"""The source of what comes over a socket without addresses, a Unix one."""
HOPS_MAX: Final = 32
"""So many front doors in a row are looked at: no path is longer."""
SHARED_PREFIX: Final = 64
"""An IPv6 network of so many bits is one source: it is what one site, or one customer, has at least (RFC 6177)."""
_CHARACTERS_MAX: Final = 4096
"""How much of the list is looked at: its end, which the nearest have written."""
_PORT: Final = re.compile(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([0-9.]+))(?::[0-9]{1,5})?")
_FORWARDED_FOR: Final = re.compile(r'(?:^|;)\s*for=("[^"\\]*"|[^;,\s"]*)\s*(?=;|$)', re.IGNORECASE)
_MAPPED: Final = ipaddress.ip_network("::ffff:0:0/96")


def source_of(scope: HTTPScope, proxies: Sequence[Network], header: SourceHeader = "x-forwarded-for") -> str:
    """The address of a request's client, as text; `local` where there is none.

    It is that of who holds the connection's other end, unless that is one of `proxies`: then it is the last in `header`
    that is none of them. Where all are, it is the first; where one is no address, the front door that has passed it on.
    """
    peer = _peer_of(scope)
    if peer is None:
        return LOCAL
    if not proxies or not _is_among(peer, proxies):
        return str(peer)
    for hop in _hops(scope, header):
        if hop is None:
            break
        peer = hop
        if not _is_among(hop, proxies):
            break
    return str(peer)


def is_from(scope: HTTPScope, networks: Sequence[Network]) -> bool:
    """Whether whoever holds the other end of a request's connection is in one of these networks."""
    peer = _peer_of(scope)
    return peer is not None and _is_among(peer, networks)


def counted_as(source: str) -> str:
    """What a source is counted as: an IPv4 address by itself, and IPv6 by its network of 64 bits."""
    return source if ":" not in source else _network_of(source)


def unmapped(network: Network) -> Network:
    """A network as addresses are compared with it: an IPv4 one that is written as IPv6 as itself (RFC 4291)."""
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED.prefixlen:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED.prefixlen))
    return network


def _peer_of(scope: HTTPScope) -> Address | None:
    """Who holds the other end of a request's connection; None where that has no address."""
    client = scope.get("client")
    return _of_peer(client[0]) if client else None


@functools.lru_cache(maxsize=4096)
def _of_peer(text: str) -> Address | None:
    return _address(text)


@functools.lru_cache(maxsize=4096)
def _network_of(source: str) -> str:
    return str(ipaddress.ip_network((source, SHARED_PREFIX), strict=False))


def _is_among(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def _hops(scope: HTTPScope, header: SourceHeader) -> Iterator[Address | None]:
    """The addresses of a list, the nearest first; None where something is no address."""
    wanted = header.encode()
    values = [value for name, value in scope["headers"] if name == wanted]
    # Several lines are one list (RFC 9110, 5.3).
    text = b",".join(values)[-_CHARACTERS_MAX:].decode("latin-1")
    for count, element in enumerate(reversed(text.split(","))):
        if count == HOPS_MAX:
            return
        yield _of_forwarded(element) if header == "forwarded" else _address_with_port(element)


def _of_forwarded(element: str) -> Address | None:
    found = _FORWARDED_FOR.findall(element.strip())
    return _address_with_port(found[0].strip('"')) if len(found) == 1 else None


def _address_with_port(text: str) -> Address | None:
    text = text.strip()
    match = _PORT.fullmatch(text)
    return _address((match[1] or match[2]) if match is not None else text)


def _address(text: str) -> Address | None:
    """An address without its zone, and an IPv4 one as itself where a socket for both families shows it as IPv6."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
