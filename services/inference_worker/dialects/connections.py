"""The connections to one model server: several clients of a few connections each, opened as they are needed.

With each request httpx's pool looks at all of its connections for each one that is idle: with 64 of them that costs as
much as all the rest of a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import httpx

CONNECTIONS_OF_CLIENT = 8


class Connections:
    """At most `connections_max` connections, closed with the context. `open_client`: a client of at most so many."""

    def __init__(self, open_client: Callable[[int], httpx.AsyncClient], connections_max: int) -> None:
        self._open_client = open_client
        self._left = connections_max
        self._clients: list[_Client] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for each in self._clients:
            await each.client.aclose()

    @contextmanager
    def one(self) -> Iterator[httpx.AsyncClient]:
        """A client for one request, until its answer is closed: the first that has a connection to spare."""
        chosen = next((each for each in self._clients if each.in_use < each.most), None) or self._another()
        chosen.in_use += 1
        try:
            yield chosen.client
        finally:
            chosen.in_use -= 1

    def _another(self) -> _Client:
        """One more; where there are as many connections as may be, the one of which fewest wait."""
        most = min(CONNECTIONS_OF_CLIENT, self._left)
        if most <= 0:
            return min(self._clients, key=lambda each: each.in_use)
        self._left -= most
        self._clients.append(_Client(self._open_client(most), most))
        return self._clients[-1]


class _Client:
    def __init__(self, client: httpx.AsyncClient, most: int) -> None:
        self.client = client
        self.most = most
        self.in_use = 0
