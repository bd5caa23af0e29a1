"""Requests to addresses that were checked: what a name means is asked once."""

from __future__ import annotations

import asyncio
import itertools
import socket
from typing import Any

import pytest

from mesh.serving import pinned_http
from mesh.serving.pinned_http import AddressForbidden
from tests.support.web_server import web_server

pytestmark = pytest.mark.integration

PUBLIC, PRIVATE = "93.184.216.34", "127.0.0.1"


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let names have these addresses, another time others; returns what is asked for."""
    asked: list[str] = []
    left = itertools.chain(answers, itertools.repeat([PUBLIC]))

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in next(left)]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    return asked


async def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that would mean something else a moment later gains nothing: nobody asks again."""
    async with web_server() as web, pinned_http.open_client(5) as client:
        web.answer("/a", b"here")
        asked = resolve_to(monkeypatch, [PRIVATE])
        target = pinned_http.parse_target(f"http://hooks.example:{web.port}/a")
        response = await pinned_http.send(client, "GET", target, allow_private=True)
        assert await response.aread() == b"here"
        await response.aclose()
    assert asked.count("hooks.example") == len(asked) == 1
    assert f"host: hooks.example:{web.port}" in web.requests[0].lower()


@pytest.mark.parametrize("addresses", [[PRIVATE], [PUBLIC, PRIVATE], [PRIVATE, PUBLIC], []])
async def test_one_address_that_is_not_public_is_enough_to_refuse(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    resolve_to(monkeypatch, addresses)
    async with pinned_http.open_client(5) as client:
        with pytest.raises(AddressForbidden):
            await pinned_http.send(
                client, "GET", pinned_http.parse_target("http://hooks.example/"), allow_private=False
            )
