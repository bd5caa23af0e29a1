"""The processes of a mesh: each with the record that it writes about itself, and whether it answers now.

A record outlives its process by 90 s, and a process that is stopped or stuck keeps its connection: neither shows that
somebody works. An answer on `$SRV.PING` does.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec
import nats.errors
from nats.aio.msg import Msg

from contracts.records.status import WorkerRecord
from contracts.streams import WORKERS_BUCKET
from mesh.background import first_of
from mesh.broker.connection import Connection
from mesh.configuration.settings import SERVICES
from mesh.errors import BrokerUnavailable
from mesh.fleet.records import read_records

PING: Final = "$SRV.PING"
"""Every process of the mesh answers it (nats micro, NATS ADR-32), and so may other programs of the account."""
ANSWER_SECONDS_MAX: Final = 1.0
"""How long to wait for those who have a record, at each call."""
CALLS_MAX: Final = 2
"""Who misses one call may have been busy, or its machine; nobody is gone for one answer that is late."""
STRANGERS_SECONDS: Final = 0.3
"""How long to wait in any case: who has no record is not waited for."""
MEMBERS_MAX: Final = 10_000


class Member(NamedTuple):
    """A process. `record` is None of one that has not written any, or of a version that writes none."""

    worker: str
    service: str
    version: str
    pid: str
    record: WorkerRecord | None
    answers: bool


class _Answer(NamedTuple):
    service: str
    version: str
    pid: str


async def read_members(connection: Connection) -> list[Member]:
    """Every process of the mesh that answers, or has a record. Takes 2 s where one of them does not answer.

    Raises `BrokerUnavailable`.
    """
    records = await read_records(connection.requests, WORKERS_BUCKET, WorkerRecord)
    answers = await _call({record.worker for record in records if record.service in SERVICES}, connection)
    members = [
        Member(record.worker, record.service, record.version, str(record.pid), record, _lives(record, answers))
        for record in records
    ]
    known = {record.worker for record in records}
    members += [
        Member(worker, *answer, None, answers=True) for worker, answer in answers.items() if worker not in known
    ]
    return sorted(members, key=lambda member: (member.service, member.worker))


def _lives(record: WorkerRecord, answers: dict[str, _Answer]) -> bool:
    """Programs of others need not answer: their record counts while it lasts."""
    return record.worker in answers or record.service not in SERVICES


async def _call(expected: set[str], connection: Connection) -> dict[str, _Answer]:
    """Who answers, by the worker's name."""
    answers: dict[str, _Answer] = {}
    complete = asyncio.Event()

    async def on_answer(message: Msg) -> None:
        # A stranger on the subject may answer anything.
        with suppress(msgspec.MsgspecError, KeyError, TypeError, AttributeError):
            told = msgspec.json.decode(message.data, type=dict[str, Any])
            metadata = told["metadata"]
            service, worker = str(told["name"]), metadata["worker"]
            if service in SERVICES and isinstance(worker, str) and len(answers) < MEMBERS_MAX:
                answers[worker] = _Answer(service, str(told["version"]), str(metadata.get("pid", "?")))
        if expected <= answers.keys():
            complete.set()

    client = connection.client
    inbox = client.new_inbox()
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    try:
        subscription = await client.subscribe(inbox, cb=on_answer)
        try:
            for _ in range(CALLS_MAX if expected else 1):
                await client.publish(PING, reply=inbox)
                await first_of(complete, seconds=ANSWER_SECONDS_MAX if expected else 0.0)
                if complete.is_set():
                    break
            await asyncio.sleep(began_at + STRANGERS_SECONDS - loop.time())
        finally:
            await subscription.unsubscribe()
    except (nats.errors.Error, OSError) as error:
        raise BrokerUnavailable(f"can't ask who is there: {error}") from error
    return answers
