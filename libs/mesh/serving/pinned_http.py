"""HTTP requests to addresses that were checked: nothing that a user or a name can say leads to a private one.

A name is resolved here, its addresses are checked, and the connection goes to the address that was checked: a name that
resolves differently a moment later (DNS rebinding) gains nothing. No redirect is followed: each would be a new request.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import Mapping
from typing import NamedTuple

import httpx

from contracts import VERSION
from contracts.errors import TaskmeshError
from mesh.configuration.addresses import is_public

CONNECT_SECONDS = 5.0
_PORTS = {"http": 80, "https": 443}


class HostUnresolved(TaskmeshError):
    """A host has no address, or nobody said so in time."""

    code = "http-failed"
    retryable = True


class AddressForbidden(TaskmeshError):
    """A host has an address that is not public."""

    code = "http-forbidden"


class Target(NamedTuple):
    """A URL, and the host (in lower case, an IPv6 address without brackets) and port that it names."""

    url: httpx.URL
    host: str
    port: int


def parse_target(text: str) -> Target:
    """Take a URL apart. Raises `ValueError` for what is not `http(s)://<host>…` without a user."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from None
    host = url.raw_host.decode("ascii").lower().rstrip(".")
    if url.scheme not in _PORTS or not host or url.userinfo:
        raise ValueError("takes http(s)://<host>/… without a user")
    return Target(url, host, url.port or _PORTS[url.scheme])


def open_client(timeout_seconds: float) -> httpx.AsyncClient:
    """A client for `send`. It takes no proxy from the environment: what that connects to can't be checked here."""
    timeout = httpx.Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds))
    return httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=timeout, verify=_trusted())


@functools.cache
def _trusted() -> ssl.SSLContext:
    """The public authorities, and those that this machine trusts (or `SSL_CERT_FILE` names): an intranet's own."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context


async def send(
    client: httpx.AsyncClient,
    method: str,
    target: Target,
    *,
    allow_private: bool,
    headers: Mapping[str, str] | None = None,
    content: bytes | None = None,
) -> httpx.Response:
    """Send a request to a checked address; the response's body is not read, and the caller closes it.

    Raises `HostUnresolved`, `AddressForbidden`, or `httpx.HTTPError`.
    """
    address = await _checked_address(target.host, target.port, allow_private=allow_private)
    request = client.build_request(
        method,
        target.url.copy_with(host=address, fragment=None),
        headers={
            "Host": target.url.netloc.decode("ascii"),
            "User-Agent": f"taskmesh/{VERSION}",
            # What is compressed has no bound until it is unpacked.
            "Accept-Encoding": "identity",
            **(headers or {}),
        },
        content=content,
        # The certificate is held against the name, not against the address.
        extensions={"sni_hostname": target.host},
    )
    return await client.send(request, stream=True)


async def _checked_address(host: str, port: int, *, allow_private: bool) -> str:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError):
        raise HostUnresolved(f"{host} has no address") from None
    addresses = [str(each[4][0]) for each in found]
    if not addresses or (not allow_private and not all(is_public(address) for address in addresses)):
        # One private address among public ones is no accident.
        raise AddressForbidden(f"{host} has an address that is not public")
    return addresses[0]
