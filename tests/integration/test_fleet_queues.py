"""How queues stand, and a message's place in one, by a real broker."""

from __future__ import annotations

from datetime import timedelta

import pytest

from contracts.identifiers import new_id
from contracts.records.backlog import BacklogRecord, LaneBacklog
from contracts.subjects import BACKLOG_KEY
from mesh.broker import key_value
from mesh.broker.connection import Connection, connect
from mesh.broker.provisioning import apply, declared
from mesh.clock import now
from mesh.configuration.settings import Settings
from mesh.fleet.places import ahead_of
from mesh.fleet.queues import FullLane, Queue, read_queues
from tests.support.broker import Broker
from tests.support.limits import limit

pytestmark = pytest.mark.integration

LANE = ("TASKS", "default-normal", "tasks.default.normal.*")


async def publish(connection: Connection, subject: str, task: str) -> None:
    """A message that stands for a task's work."""
    await connection.requests.publish(subject, b'{"task":"%s"}' % task.encode())


async def test_queues_are_read_with_what_waits_runs_is_paused_or_full_and_has_no_consumer(broker: Broker) -> None:
    settings = Settings(nats_url=broker.url)
    async with connect(settings, "test") as connection:
        requests = connection.requests
        await apply(requests, declared(settings), update=False)
        await limit(requests, "BACKLOG", max_msgs_per_subject=2)
        for _ in range(2):
            await publish(connection, "backlog.default.normal.acme", new_id())
        await publish(connection, "backlog.parked.low.acme", new_id())
        for tenant in ("acme", "acme", "other"):
            await publish(connection, f"tasks.default.normal.{tenant}", new_id())
        await publish(connection, "turns.default.normal.acme", new_id())
        await publish(connection, "tasks.retired.low.acme", new_id())
        await publish(connection, "tools.add", new_id())
        await publish(connection, "tools.search", new_id())
        until = (now() + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        await requests.api("CONSUMER.PAUSE.TURNS.default-low", {"pause_until": until})
        subscription = await connection.client.jetstream().pull_subscribe_bind("default-normal", "TASKS")
        [_] = await subscription.fetch(1)

        seen = await read_queues(requests)
        by_label = {queue.label: queue for queue in seen.queues}
        assert by_label["lane default, normal"] == Queue("default", "normal", waiting=5, running=1)
        assert by_label["lane parked, low"] == Queue("parked", "low", waiting=1, has_consumer=False)
        assert by_label["lane retired, low"] == Queue("retired", "low", waiting=1, has_consumer=False)
        assert by_label["tool add"] == Queue("add", "", waiting=1)
        assert by_label["tool search"] == Queue("search", "", waiting=1, has_consumer=False)
        assert 3_000 < by_label["lane default, low"].paused_seconds <= 3_600
        assert by_label["lane default, high"] == Queue("default", "high")
        assert seen.full == [FullLane("lane default, normal of tenant acme", 2, 2)]


async def test_of_many_tenants_what_waits_behind_is_as_the_stewards_have_told(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.fleet.queues.SUBJECTS_MAX", 1)
    async with connect(Settings(nats_url=broker.url), "test") as connection:
        requests = connection.requests
        await apply(requests, declared(Settings(nats_url=broker.url)), update=False)
        for tenant in ("acme", "other"):
            await publish(connection, f"backlog.default.normal.{tenant}", new_id())
        told = (LaneBacklog(pool="default", priority="normal", waiting=7), LaneBacklog(pool="parked", priority="low"))
        await key_value.put_json(requests, "lanes", BACKLOG_KEY, BacklogRecord(mover="steward", time=now(), lanes=told))
        by_label = {queue.label: queue for queue in (await read_queues(requests)).queues}
        assert by_label["lane default, normal"] == Queue("default", "normal", waiting=7)
        assert by_label["lane parked, low"] == Queue("parked", "low", has_consumer=False)


async def test_a_message_has_so_many_before_it_until_it_is_delivered(broker: Broker) -> None:
    settings = Settings(nats_url=broker.url)
    async with connect(settings, "test") as connection:
        requests = connection.requests
        await apply(requests, declared(settings), update=False)
        tasks = [new_id() for _ in range(5)]
        for number, task in enumerate(tasks):
            await publish(connection, "tasks.default.low.acme", new_id())
            if number == 3:
                accepted_at = now()
            await publish(connection, f"tasks.default.normal.tenant-{number}", task)
        assert await ahead_of(requests, *LANE, tasks[3], accepted_at) == 3
        assert await ahead_of(requests, *LANE, new_id(), accepted_at) is None
        subscription = await connection.client.jetstream().pull_subscribe_bind("default-normal", "TASKS")
        await subscription.fetch(2)
        assert await ahead_of(requests, *LANE, tasks[3], accepted_at) == 1
        await subscription.fetch(2)
        assert await ahead_of(requests, *LANE, tasks[3], accepted_at) is None
