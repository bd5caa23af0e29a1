"""An edge that stops, and a stream that comes meanwhile over a connection that is there."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from contracts.identifiers import new_id
from contracts.records.status import HealthCheck
from mesh.access.callers import identified, open_door
from mesh.broker.connection import Connection
from mesh.journal.following import Following
from stream_edge.app import Edge, create_app
from tests.support.serving import served

pytestmark = [
    pytest.mark.integration,
    # In the services' own processes nobody hears it.
    pytest.mark.filterwarnings("ignore:.*deprecated inferred style"),
]


async def well() -> list[HealthCheck]:
    return []


async def test_a_stream_at_an_edge_that_stops_ends_at_once_so_that_a_browser_comes_back(
    connection: Connection,
) -> None:
    """EventSource reconnects behind a stream that ends; behind 429 or 503 it never does."""
    stopping = asyncio.Event()
    edge = Edge(Following(connection), 1, stopping)
    async with served(identified(create_app(edge, well), open_door)) as (url, _), httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/v1/tasks/{new_id()}/events")).status_code == 404
        stopping.set()
        answer = await client.get(f"{url}/v1/tasks/{new_id()}/events")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert edge.streams == 0
