"""Provisioning against a real broker."""

from __future__ import annotations

import pytest

from contracts.streams import BUCKETS, STREAMS
from mesh.broker.connection import Connection
from mesh.broker.provisioning import apply, compare, declared
from mesh.configuration.settings import Settings

pytestmark = pytest.mark.integration


async def test_everything_declared_exists_after_apply_and_a_second_apply_does_nothing(
    connection: Connection, settings: Settings
) -> None:
    wanted = declared(settings)
    assert await compare(connection.requests, wanted) == []
    assert await apply(connection.requests, wanted, update=True) == []


async def test_a_missing_stream_and_a_changed_consumer_are_seen_and_repaired(
    connection: Connection, settings: Settings
) -> None:
    wanted = declared(settings)
    await connection.requests.api("STREAM.DELETE.SIGNALS")
    config = {**wanted.consumers[0].as_config(), "max_ack_pending": 7}
    name = f"{wanted.consumers[0].stream}.{wanted.consumers[0].name}"
    await connection.requests.api(
        f"CONSUMER.DURABLE.CREATE.{name}", {"stream_name": wanted.consumers[0].stream, "config": config}
    )

    differences = await compare(connection.requests, wanted)

    assert {difference.name for difference in differences} == {
        "SIGNALS",
        "SIGNALS/steward",
        f"{wanted.consumers[0].stream}/{wanted.consumers[0].name}",
    }
    await apply(connection.requests, wanted, update=True)
    assert await compare(connection.requests, wanted) == []


async def test_what_could_delete_messages_or_can_not_be_changed_is_left_and_the_rest_is_done(
    connection: Connection, settings: Settings
) -> None:
    requests = connection.requests
    wanted = declared(settings)._replace(sized=frozenset({"DEAD_LETTERS"}))
    await requests.api("STREAM.DELETE.DEAD_LETTERS")
    config = next(stream for stream in STREAMS if stream.name == "DEAD_LETTERS").as_config()
    wider = {**config, "max_bytes": config["max_bytes"] * 2, "metadata": {"owner": "somebody"}, "description": "old"}
    await requests.api("STREAM.CREATE.DEAD_LETTERS", {**wider, "retention": "workqueue"})
    await requests.publish("dead.t.malformed", b"kept")

    [difference] = await compare(requests, wanted)
    assert difference.fields.keys() == {"max_bytes", "description", "retention"}
    assert difference.obstacles.keys() == {"max_bytes", "retention"}
    [done] = await apply(requests, wanted, update=True)
    assert done.fields.keys() == {"description"}

    info = await requests.api("STREAM.INFO.DEAD_LETTERS")
    assert info["state"]["messages"] == 1
    assert info["config"]["description"] == config["description"]
    assert info["config"]["max_bytes"] == config["max_bytes"] * 2
    assert info["config"]["metadata"]["owner"] == "somebody"
    assert await apply(requests, wanted, update=True) == []


async def test_every_declared_stream_is_there(connection: Connection) -> None:
    listed = await connection.requests.api("STREAM.NAMES")
    assert set(listed["streams"]) == {stream.name for stream in STREAMS} | {bucket.stream_name for bucket in BUCKETS}
