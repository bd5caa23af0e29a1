"""The one loop that pulls: what it asks the broker for, against a real one."""

from __future__ import annotations

import pytest
from nats.aio.msg import Msg

from contracts.codec import decode
from mesh.background import background
from mesh.broker import pull_consumer
from mesh.broker.answers import Ack, Answer
from mesh.broker.connection import Connection
from mesh.broker.consumption import Consumption
from mesh.broker.deliveries import Delivery
from mesh.configuration.settings import Settings
from tests.support.waiting import until

pytestmark = pytest.mark.integration


async def test_an_idle_consumer_is_asked_to_wait_and_no_more_until_a_message_comes(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_consumer, "IDLE_PULL_SECONDS", 0.05)
    asked: list[str] = []
    handled: list[int] = []

    async def note(message: Msg) -> None:
        asked.append("what is there" if "no_wait" in decode(message.data, dict[str, object]) else "wait")

    async def handle(delivery: Delivery) -> Answer:
        handled.append(len(asked))
        return Ack()

    await connection.client.subscribe("$JS.API.CONSUMER.MSG.NEXT.SIGNALS.steward", cb=note)
    consumption = Consumption.of_one(connection, settings, "SIGNALS", "steward", handle)
    async with background(consumption.run()):
        await until(lambda: len(asked) >= 5)
        assert asked == ["what is there", *["wait"] * (len(asked) - 1)]

        await connection.requests.publish("signals.default.one", b"{}")
        await until(lambda: "what is there" in asked[1:])
        after = asked.index("what is there", 1)
        assert handled, "it takes what else is there behind a message that came"
        await until(lambda: len(asked) >= after + 4)
        assert asked[after + 1 : after + 4] == ["wait"] * 3
