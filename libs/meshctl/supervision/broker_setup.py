"""What meshctl needs of the broker: a connection soon or never, and the streams created."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog

from mesh.broker.connection import Connection, connect
from mesh.broker.other_meshes import check_alone
from mesh.broker.provisioning import apply, compare, find_declared
from mesh.broker.suitability import check_start
from mesh.configuration.broker_urls import without_password
from mesh.configuration.settings import Settings
from mesh.errors import BrokerUnavailable

log = structlog.get_logger("meshctl.streams")

CONNECT_SECONDS_MAX: Final = 10.0


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Connection]:
    """A connection to the broker. Raises `BrokerUnavailable` if none answers soon: a person waits."""
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                connection = await stack.enter_async_context(connect(settings, "meshctl"))
        except TimeoutError:
            raise BrokerUnavailable(f"no broker answers at {without_password(settings.broker_url)}") from None
        yield connection


async def provision(settings: Settings, *, ours: bool) -> None:
    """Create what is missing. What differs stays, and is only said: a running mesh, or its operator, may need it so.

    `ours`: the broker serves this mesh alone. Then its consumers follow the settings, since workers do: a lease that
    only one of the two sides knows of is none. And its streams grow to the sizes that there is room for.
    """
    async with connected(settings) as connection:
        await check_start(connection)
        await check_alone(connection)
        wanted = await find_declared(connection.requests, settings)
        for difference in await apply(connection.requests, wanted, update=False, grow=ours):
            if not difference.missing:
                log.info("stream.grown", difference=str(difference))
        if ours:
            await apply(connection.requests, wanted._replace(streams=[]), update=True)
        for difference in await compare(connection.requests, wanted):
            log.warning("stream.differs", difference=str(difference), remedy="meshctl streams apply")
