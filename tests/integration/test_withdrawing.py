"""Messages of tasks that have ended are taken out of BACKLOG, against a real broker: thousands of them as well."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from nats.aio.msg import Msg

from contracts import headers
from contracts.codec import encode
from contracts.identifiers import new_id
from contracts.messages.work import TurnWork
from contracts.streams import BACKLOG
from contracts.subjects import LaneSubject
from contracts.tasks import TaskRequest
from mesh.admission import backlog
from mesh.admission.withdrawing import Withdrawals
from mesh.broker.connection import Connection
from mesh.broker.direct_get import PAGE_EVENTS_MAX, count_of
from mesh.broker.provisioning import apply, declared
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.configuration.settings import Settings

pytestmark = pytest.mark.integration

LANE = LaneSubject("default", "low", "acme")
SUBJECT = backlog.backlog_subject(LANE)
AT = now() - timedelta(hours=1)


async def put(requests: Requests, task: str, message_id: str | None = None) -> None:
    """A first turn that waits."""
    work = TurnWork(
        task=task, tenant=LANE.tenant, turn=1, pool=LANE.pool, priority="low", request=TaskRequest(input="hello"),
        accepted_at=now(),
    )  # fmt: skip
    await backlog.put(requests, LANE, encode(work), {headers.MESSAGE_ID: message_id or task})


async def test_of_many_that_are_withdrawn_each_is_read_over_once_wherever_it_is(connection: Connection) -> None:
    requests = connection.requests
    tasks = [new_id() for _ in range(3 * PAGE_EVENTS_MAX)]
    for task in tasks:
        await put(requests, task)
    pages: list[str] = []

    async def heard(message: Msg) -> None:
        if "batch" in json.loads(message.data):
            pages.append(message.subject)

    await connection.client.subscribe(f"$JS.API.DIRECT.GET.{BACKLOG.name}", cb=heard)
    await connection.client.flush()
    withdrawals = Withdrawals(requests)
    # The newest first, as the list has them.
    for task in reversed(tasks[1:]):
        assert await withdrawals.withdraw(LANE, task, AT)
    assert not await withdrawals.withdraw(LANE, tasks[-1], AT)
    assert not await withdrawals.withdraw(LANE, new_id(), AT)
    await connection.client.flush()
    assert len(pages) <= 2 * len(tasks) // PAGE_EVENTS_MAX + 3
    assert await count_of(requests, BACKLOG.name, SUBJECT) == 1


async def test_what_has_moved_on_is_left_and_what_came_back_is_found(connection: Connection) -> None:
    requests, withdrawals = connection.requests, Withdrawals(connection.requests)
    first, second = new_id(), new_id()
    await put(requests, first)
    await put(requests, second)
    assert await withdrawals.withdraw(LANE, second, AT), "the first one was passed on the way"
    await requests.purge(BACKLOG.name, SUBJECT)
    assert not await withdrawals.withdraw(LANE, first, AT)
    await put(requests, first, message_id="put off")
    assert await withdrawals.withdraw(LANE, first, AT)


async def test_of_another_stream_nothing_is_taken_for_what_was_there(
    connection: Connection, settings: Settings
) -> None:
    requests, withdrawals = connection.requests, Withdrawals(connection.requests)
    before = [new_id() for _ in range(3)]
    for task in before:
        await put(requests, task)
    assert await withdrawals.withdraw(LANE, before[2], AT)
    assert await withdrawals.withdraw(LANE, before[1], AT)
    await requests.api(f"STREAM.DELETE.{BACKLOG.name}")
    await apply(requests, declared(settings), update=False)
    after = [new_id() for _ in range(3)]
    for task in after:
        await put(requests, task)
    assert not await withdrawals.withdraw(LANE, before[0], AT)
    assert await count_of(requests, BACKLOG.name, SUBJECT) == len(after)
    for task in after:
        assert await withdrawals.withdraw(LANE, task, AT)
