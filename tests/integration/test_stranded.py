"""Messages that nobody will get any more: their work is settled, or a dead letter, and their queue drains."""

from __future__ import annotations

from dataclasses import replace

import pytest

from contracts import subjects
from contracts.codec import encode
from contracts.errors import ErrorInfo
from contracts.journal.events import TaskDeadLettered
from contracts.messages.control import CancelCommand
from mesh.broker.connection import Connection
from mesh.broker.provisioning import apply, declared
from mesh.configuration.settings import Settings
from steward.stranded import DELIVERIES_EXHAUSTED, Stranded
from tests.support.checker import read_stored
from tests.support.tasks import begin_journal, complete_turn, end_task, publish_work, turn_work
from tests.support.waiting import until

pytestmark = pytest.mark.integration

LANE = "default-normal"


@pytest.fixture
async def poisoned(connection: Connection, settings: Settings) -> Connection:
    """Streams whose messages are stranded after a single delivery without an answer, after a tenth of a second."""
    for consumer in ("high", "normal", "low"):
        await connection.requests.api(f"CONSUMER.DELETE.TASKS.default-{consumer}")
    short = replace(settings, max_deliver=1, ack_wait_seconds=0.1)
    await apply(connection.requests, declared(short), update=False)
    return connection


async def take(connection: Connection, messages: int) -> None:
    """Have messages delivered to somebody who does not answer."""
    lane = await connection.client.jetstream().pull_subscribe_bind(LANE, "TASKS")
    for _ in range(messages):
        await lane.fetch(1)
    await lane.unsubscribe()


async def deliver_in_vain(connection: Connection, messages: int) -> None:
    """Have messages delivered to somebody who dies of them, until no lease is left."""
    await take(connection, messages)

    async def no_lease_is_left() -> bool:
        info = await connection.requests.api(f"CONSUMER.INFO.TASKS.{LANE}")
        return bool(info["num_ack_pending"] == 0)

    await until(no_lease_is_left)


async def sweep_twice(connection: Connection) -> None:
    stranded = Stranded(connection.requests, "steward")
    await stranded.round()
    await stranded.round()


async def left_in_tasks(connection: Connection) -> int:
    return int((await connection.requests.api("STREAM.INFO.TASKS"))["state"]["messages"])


async def test_a_message_that_used_up_its_deliveries_is_a_dead_letter_and_its_queue_drains(
    poisoned: Connection,
) -> None:
    begun, unseen = turn_work(), turn_work()
    await publish_work(poisoned.requests, begun)
    await publish_work(poisoned.requests, unseen)
    await begin_journal(poisoned.requests, begun)
    await deliver_in_vain(poisoned, 2)
    await sweep_twice(poisoned)
    assert await left_in_tasks(poisoned) == 0
    stored = await read_stored(poisoned.requests)
    for work in (begun, unseen):
        last = stored.journals[work.task][-1].event
        assert (last["type"], last["error"]["code"], last["deliveries"]) == (
            "task.dead_lettered",
            DELIVERIES_EXHAUSTED,
            1,
        )
        assert stored.records[work.task]["status"] == "dead_lettered"
        letters = await poisoned.requests.api(
            "STREAM.INFO.DEAD_LETTERS", {"subjects_filter": subjects.dead_letter(work.tenant, work.task)}
        )
        assert list(letters["state"]["subjects"].values()) == [1]


async def test_a_message_whose_work_is_done_is_only_taken_away(poisoned: Connection) -> None:
    work = turn_work()
    await publish_work(poisoned.requests, work)
    journal = await begin_journal(poisoned.requests, work)
    await complete_turn(journal)
    await end_task(journal)
    await deliver_in_vain(poisoned, 1)
    await sweep_twice(poisoned)
    assert await left_in_tasks(poisoned) == 0
    stored = await read_stored(poisoned.requests)
    assert stored.journals[work.task][-1].event["type"] == "task.completed"
    assert stored.records[work.task]["status"] == "completed", "its projection may have been missing"


async def test_what_waits_or_is_in_hand_is_left_alone(connection: Connection) -> None:
    in_hand, waiting = turn_work(), turn_work()
    await publish_work(connection.requests, in_hand)
    await publish_work(connection.requests, waiting)
    await take(connection, 1)
    await sweep_twice(connection)
    assert await left_in_tasks(connection) == 2
    assert (await read_stored(connection.requests)).journals == {}


async def test_rubbish_is_kept_as_a_dead_letter_of_its_own(poisoned: Connection) -> None:
    await poisoned.requests.publish(subjects.tasks("default", "normal", "default"), b"rubbish")
    await deliver_in_vain(poisoned, 1)
    await sweep_twice(poisoned)
    assert await left_in_tasks(poisoned) == 0
    assert (await poisoned.requests.api("STREAM.INFO.DEAD_LETTERS"))["state"]["messages"] == 1


async def test_a_command_whose_steward_died_at_each_delivery_is_for_people_to_look_at(
    connection: Connection, settings: Settings
) -> None:
    await connection.requests.api("CONSUMER.DELETE.CONTROL.steward")
    short = replace(settings, max_deliver=1, ack_wait_seconds=0.1)
    await apply(connection.requests, declared(short), update=False)
    open_task, over = turn_work(), turn_work()
    await begin_journal(connection.requests, open_task)
    await end_task(await begin_journal(connection.requests, over))
    for work in (open_task, over):
        command = CancelCommand(task=work.task, tenant=work.tenant, by="test")
        await connection.requests.publish(subjects.control("cancel", work.tenant), encode(command))
    lane = await connection.client.jetstream().pull_subscribe_bind("steward", "CONTROL")
    await lane.fetch(2)
    await lane.unsubscribe()

    async def no_lease_is_left() -> bool:
        info = await connection.requests.api("CONSUMER.INFO.CONTROL.steward")
        return bool(info["num_ack_pending"] == 0)

    await until(no_lease_is_left)
    await sweep_twice(connection)
    assert (await connection.requests.api("STREAM.INFO.CONTROL"))["state"]["messages"] == 0
    # The task that is over needs no cancel; the other one's is kept.
    assert (await connection.requests.api("STREAM.INFO.DEAD_LETTERS"))["state"]["messages"] == 1


async def test_a_message_is_only_stranded_when_it_is_found_twice(poisoned: Connection) -> None:
    """The first time its acknowledgement may be on its way."""
    await publish_work(poisoned.requests, turn_work())
    await deliver_in_vain(poisoned, 1)
    stranded = Stranded(poisoned.requests, "steward")
    await stranded.round()
    assert await left_in_tasks(poisoned) == 1
    await stranded.round()
    assert await left_in_tasks(poisoned) == 0


async def test_a_dead_letter_that_is_there_already_gets_no_second_record(poisoned: Connection) -> None:
    """A steward that died between the record and the deletion is made up for."""
    work = turn_work()
    await publish_work(poisoned.requests, work)
    journal = await begin_journal(poisoned.requests, work)
    error = ErrorInfo(DELIVERIES_EXHAUSTED, "of an earlier sweep")
    await journal.append(
        lambda stamp: TaskDeadLettered(*stamp, step="1", gen=0, error=error, deliveries=1), lambda _: True
    )
    await deliver_in_vain(poisoned, 1)
    await sweep_twice(poisoned)
    assert await left_in_tasks(poisoned) == 0
    types = [stored.event["type"] for stored in (await read_stored(poisoned.requests)).journals[work.task]]
    assert types.count("task.dead_lettered") == 1
    assert (await poisoned.requests.api("STREAM.INFO.DEAD_LETTERS"))["state"]["messages"] == 1
