"""Who is there: by answers and by records, and what becomes of the question when the connection ends."""

from __future__ import annotations

import asyncio

import nats.micro
import pytest

from contracts import subjects
from contracts.codec import encode
from contracts.records.status import WorkerRecord
from contracts.streams import WORKERS_BUCKET
from mesh.broker import key_value
from mesh.broker.connection import Connection
from mesh.clock import now
from mesh.errors import BrokerUnavailable
from mesh.fleet.members import read_members
from tests.support.waiting import until

pytestmark = pytest.mark.integration

FROZEN = "steward-1@elsewhere"


def record(worker: str) -> WorkerRecord:
    return WorkerRecord(
        worker=worker,
        service="steward",
        version="0.2.0",
        pid=1,
        host="elsewhere",
        running=0,
        started_at=now(),
        time=now(),
    )


async def write(connection: Connection, worker: str) -> None:
    payload = encode(record(worker))
    await key_value.put(connection.requests, WORKERS_BUCKET.name, subjects.worker_key(worker), payload)


async def test_who_answers_is_there_and_who_has_a_record_alone_is_not(connection: Connection) -> None:
    metadata = {"worker": "ingress-2@here", "pid": "2"}
    await nats.micro.add_service(connection.client, name="ingress", version="0.2.0", metadata=metadata)
    await write(connection, FROZEN)
    frozen, answering = sorted(await read_members(connection), key=lambda member: member.answers)
    assert (frozen.worker, frozen.answers, frozen.record is not None) == (FROZEN, False, True)
    assert (answering.worker, answering.answers, answering.record) == ("ingress-2@here", True, None)


async def test_a_connection_that_ends_meanwhile_is_a_broker_that_is_away(connection: Connection) -> None:
    """Whoever looks again and again goes on then."""
    await write(connection, FROZEN)
    looking = asyncio.create_task(read_members(connection))
    subscribed = connection.client._sid
    await until(lambda: connection.client._sid != subscribed)
    await connection.client.close()
    with pytest.raises(BrokerUnavailable):
        await looking
