"""A broker that takes smaller messages than 1 MiB: what is large is cut into more of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contracts.records.tools import RESULTS_BUCKET
from mesh.broker import object_store
from mesh.broker.connection import Connection, connect
from mesh.broker.provisioning import apply, declared
from mesh.broker.suitability import PAYLOAD_BYTES_LEAST, Foreign, foreign_streams, overlap
from mesh.configuration.settings import Settings
from mesh.errors import MessageTooLarge
from tests.support.broker import Broker

pytestmark = pytest.mark.integration


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Connection]:
    broker = Broker(tmp_path / "small", max_payload=str(PAYLOAD_BYTES_LEAST))
    await broker.start()
    try:
        settings = Settings(nats_url=broker.url)
        async with connect(settings, "test") as connection:
            await apply(connection.requests, declared(settings), update=False)
            yield connection
    finally:
        await broker.stop()


async def test_a_large_result_goes_into_more_chunks(small: Connection) -> None:
    payload = bytes(index % 251 for index in range(5 * PAYLOAD_BYTES_LEAST))
    await object_store.put(small.requests, RESULTS_BUCKET, "default.a.1-0.b", payload)
    store = await small.client.jetstream().object_store(RESULTS_BUCKET)
    assert (await store.get("default.a.1-0.b")).data == payload


async def test_a_message_that_is_too_large_is_refused_with_both_figures(small: Connection) -> None:
    with pytest.raises(MessageTooLarge, match=r"65537 bytes; the broker takes 65536 \(its max_payload\)") as caught:
        await small.requests.publish("tasks.default.normal.default", b"x" * (PAYLOAD_BYTES_LEAST + 1))
    assert caught.value.code == "payload-too-large"


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("tasks.>", "tasks.*.*.*", True),
        (">", "$KV.tasks.>", True),
        ("tasks.*", "tasks.*.*.*", False),
        ("tasks.a.b.c", "tasks.*.*.*", True),
        ("*.a.b.c", "tasks.*.*.*", True),
        ("task.>", "tasks.>", False),
        ("tasks", "tasks.>", False),
    ],
)
def test_subjects_overlap_as_the_broker_sees_it(one: str, other: str, *, both: bool) -> None:
    assert overlap(one, other) is overlap(other, one) is both


def test_our_own_streams_are_not_foreign() -> None:
    wanted = {stream.name: stream.subjects for stream in declared(Settings()).streams}
    assert foreign_streams(wanted) == []
    assert foreign_streams({**wanted, "SHOP": ["shop.>"]}) == []
    assert foreign_streams({"X": ["signals.mine"]}) == [
        Foreign("X", "SIGNALS", "stream X of somebody else takes signals.mine, which SIGNALS needs")
    ]
