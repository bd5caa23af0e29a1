"""What meshctl needs of the broker: a connection soon or never, and the streams created."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog

from mesh.broker.connection import Connection, connect
from mesh.broker.embedded import SUPERVISOR
from mesh.broker.other_meshes import check_alone
from mesh.broker.provisioning import Difference, apply, compare, find_declared, lacking, renew_consumers
from mesh.broker.suitability import check_start
from mesh.configuration.broker_urls import without_password
from mesh.configuration.settings import Settings
from mesh.errors import BrokerUnavailable, SettingsError

log = structlog.get_logger("meshctl.streams")

CONNECT_SECONDS_MAX: Final = 10.0


@asynccontextmanager
async def connected(settings: Settings, login: str | None = None) -> AsyncIterator[Connection]:
    """A connection to the broker. `login`: which of an embedded one's, if it is not meshctl's.

    Raises `BrokerUnavailable` if none answers soon: a person waits.
    """
    tried: list[Connection] = []
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                connection = await stack.enter_async_context(connect(settings, "meshctl", login, tried.append))
        except TimeoutError:
            silence = next((each.trouble for each in tried if each.trouble == each.credentials.silence()), "")
            raise BrokerUnavailable(
                silence or f"no broker answers at {without_password(settings.broker_url)}"
            ) from None
        yield connection


async def provision(settings: Settings, *, ours: bool) -> None:
    """Create what is missing, and bring what an earlier version made up to this one, as far as that can lose nothing.

    `ours`: the broker serves this mesh alone, and nothing of it runs yet. Then streams and consumers follow the
    declarations and the settings, since workers do: a lease that only one of the two sides knows of is none. On any
    other broker streams get what this version needs and takes nothing (`MESH_UPGRADE_STREAMS`); the rest stays, and is
    only said: a running mesh, or its operator, may need it so. Raises `SettingsError` if they must not get it.
    """
    async with connected(settings, SUPERVISOR) as connection:
        await check_start(connection)
        await check_alone(connection)
        wanted = await find_declared(connection.requests, settings)
        requests, upgrade = connection.requests, ours or settings.upgrade_streams
        for difference in await apply(requests, wanted, update=ours, widen=upgrade, shrink=False):
            if not difference.missing:
                grown = difference.fields.keys() == {"max_bytes"}
                log.info("stream.grown" if grown else f"{difference.kind}.upgraded", difference=str(difference))
        if ours:
            for difference in await renew_consumers(requests, await compare(requests, wanted)):
                log.info("consumer.upgraded", difference=str(difference))
        if not upgrade:
            _check_nothing_lacks(await compare(requests, wanted))
        for difference in await compare(connection.requests, wanted):
            log.warning("stream.differs", difference=str(difference), remedy="meshctl streams apply")


def _check_nothing_lacks(differences: Sequence[Difference]) -> None:
    """Raise `SettingsError` if a stream lacks what this version needs."""
    found = [f"{each.name} ({', '.join(lacking(each))})" for each in differences if lacking(each)]
    if found:
        raise SettingsError(
            f"streams of an earlier version lack what this one needs: {', '.join(found)}: run meshctl streams apply, or"
            " set MESH_UPGRADE_STREAMS=1"
        )
