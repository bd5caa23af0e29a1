"""The one loop that pulls: what it asks the broker for, and whose messages it takes, against a real one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import msgspec
import pytest
from nats.aio.msg import Msg

from contracts import subjects
from contracts.codec import decode
from contracts.streams import lane_consumer
from inference_worker.__main__ import lanes
from inference_worker.models.breakers import Breakers
from mesh.background import background
from mesh.broker import lanes as lane_module
from mesh.broker import pull_consumer
from mesh.broker.answers import Ack, Answer
from mesh.broker.connection import Connection, connect
from mesh.broker.consumption import Consumption
from mesh.broker.deliveries import Delivery
from mesh.broker.gates import Permit
from mesh.broker.lanes import ConsumerSpec
from mesh.broker.provisioning import apply, declared
from mesh.broker.shares import LANE_WEIGHTS
from mesh.configuration.settings import Settings
from mesh.valves.watched import Valves
from steward.waking import Waking
from tests.support.broker import Broker
from tests.support.slow_link import slow_link
from tests.support.waiting import until

pytestmark = pytest.mark.integration

PLACES = 4


class Pull(msgspec.Struct):
    """What the broker is asked for. `expires` in nanoseconds; 0 is for what is there."""

    batch: int
    expires: int = 0


LANES = [(stream, priority) for stream in ("TASKS", "TURNS") for priority in subjects.PRIORITIES]


async def back_up(connection: Connection, messages: dict[str, int], stream: str = "TASKS") -> None:
    """So many messages in these lanes."""
    for priority, count in messages.items():
        subject = f"{stream.lower()}.default.{priority}.acme"
        await asyncio.gather(*(connection.requests.publish(subject, b"{}") for _ in range(count)))


def specs(connection: Connection, settings: Settings) -> list[ConsumerSpec]:
    """What an inference worker pulls."""
    return lanes(settings, Breakers(connection.requests, {}, "worker"), Valves(connection.requests))


class Held:
    """A handler that never answers. `consumption` says what is in hand."""

    def __init__(self, connection: Connection, settings: Settings, consumers: Iterable[ConsumerSpec]) -> None:
        self.consumption = Consumption(
            connection, replace(settings, drain_seconds=0), list(consumers), self._hold, PLACES
        )

    async def _hold(self, delivery: Delivery, permit: Permit) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError


async def test_an_idle_consumer_is_asked_to_wait_longer_each_time_until_a_message_comes(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "IDLE_SECONDS_MIN", 0.05)
    monkeypatch.setattr(lane_module, "IDLE_SECONDS_MAX", 0.4)
    asked: list[float] = []
    handled: list[int] = []

    async def note(message: Msg) -> None:
        asked.append(decode(message.data, Pull).expires / 1e9)

    async def handle(delivery: Delivery) -> Answer:
        handled.append(len(asked))
        return Ack()

    await connection.client.subscribe("$JS.API.CONSUMER.MSG.NEXT.SIGNALS.steward", cb=note)
    consumption = Consumption.of_one(connection, settings, "SIGNALS", "steward", handle)
    async with background(consumption.run()):
        await until(lambda: len(asked) >= 5)
        assert asked[0] == 0, "it takes what is there, once"
        assert asked[1:5] == [pytest.approx(seconds, rel=0.11) for seconds in (0.05, 0.2, 0.4, 0.4)]

        await connection.requests.publish("signals.default.one", b"{}")
        await until(lambda: 0 in asked[1:])
        after = asked.index(0, 1)
        assert handled, "it takes what else is there behind a message that came"
        await until(lambda: len(asked) >= after + 2)
        assert asked[after + 1] == pytest.approx(0.05, rel=0.11)


@pytest.mark.parametrize("places", [1, 4, 64])
async def test_lanes_that_are_backed_up_are_claimed_by_their_weights(
    connection: Connection, settings: Settings, places: int
) -> None:
    messages = 1300
    await back_up(connection, {"high": 1000, "normal": 600, "low": 300})
    claimed: list[str] = []

    async def handle(delivery: Delivery, permit: Permit) -> Answer:
        claimed.append(delivery.subject.split(".")[2])
        return Ack()

    consumption = Consumption(connection, settings, specs(connection, settings), handle, places)
    async with background(consumption.run()):
        await until(lambda: len(claimed) >= messages, seconds=60)
    counts = Counter(claimed[:messages])
    for priority, weight in LANE_WEIGHTS.items():
        assert counts[priority] == pytest.approx(messages * weight / sum(LANE_WEIGHTS.values()), rel=0.1), counts


async def test_in_a_lane_started_work_comes_first(connection: Connection, settings: Settings) -> None:
    await back_up(connection, {"normal": 20}, "TASKS")
    await back_up(connection, {"normal": 20}, "TURNS")
    handled: list[str] = []

    async def handle(delivery: Delivery, permit: Permit) -> Answer:
        handled.append(delivery.stream)
        return Ack()

    consumption = Consumption(connection, settings, specs(connection, settings), handle, 1)
    async with background(consumption.run()):
        await until(lambda: len(handled) == 40)
    assert handled == ["TURNS"] * 20 + ["TASKS"] * 20


async def test_places_that_one_lane_has_nothing_for_go_to_the_others(
    connection: Connection, settings: Settings
) -> None:
    await back_up(connection, {"high": 1, "low": 20})
    held = Held(connection, settings, specs(connection, settings))
    async with background(held.consumption.run()):
        await until(lambda: held.consumption.in_hand == PLACES)


async def in_hand(connection: Connection) -> int:
    """Deliveries that the broker waits for an answer to."""
    infos = [
        await connection.requests.api(f"CONSUMER.INFO.{stream}.{lane_consumer(stream, 'default', priority)}")
        for stream, priority in LANES
    ]
    return sum(int(info["num_ack_pending"]) for info in infos)


@pytest.mark.filterwarnings(  # nats-py leaves the sockets of connections that it could not make
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("how", ["cut", "silent"])
async def test_after_an_outage_a_worker_holds_its_places_and_one_message_for_each_lane(
    broker: Broker, connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Whether the connection broke, or was dead without a word: then what was sent arrives when it lives again."""
    monkeypatch.setattr(lane_module, "IDLE_SECONDS_MIN", 0.1)
    monkeypatch.setattr(lane_module, "IDLE_SECONDS_MAX", 0.1)
    monkeypatch.setattr(pull_consumer, "GRACE_SECONDS", 0.1)
    settings = replace(settings, ack_wait_seconds=30.0)
    await apply(connection.requests, declared(settings), update=True)
    async with slow_link(broker.port, 0.0) as link, connect(replace(settings, nats_url=link.url), "far") as far:
        held = Held(far, settings, specs(far, settings))
        async with background(held.consumption.run()):
            waits = 0

            async def asks(message: Msg) -> None:
                nonlocal waits
                waits += 1

            await connection.client.subscribe("$JS.API.CONSUMER.MSG.NEXT.>", cb=asks)
            await until(lambda: waits >= 2 * len(LANES))
            await (link.cut() if how == "cut" else link.silence())
            for stream in ("TASKS", "TURNS"):
                await back_up(connection, dict.fromkeys(subjects.PRIORITIES, 50), stream)
            # As long as a lane waits for 20 messages.
            await asyncio.sleep(20 * 0.1)
            await link.restore()
            await until(lambda: held.consumption.in_hand >= PLACES)
            for _ in range(10):
                await far.client.flush()
                assert await in_hand(connection) <= PLACES + len(LANES)
            assert held.consumption.in_hand <= PLACES + len(LANES)


async def test_a_pull_that_the_broker_has_lost_is_made_again_when_its_messages_are_announced(
    connection: Connection, settings: Settings
) -> None:
    """As with the leader of a consumer in a cluster."""
    handled: list[str] = []

    async def handle(delivery: Delivery) -> Answer:
        handled.append(delivery.subject)
        return Ack()

    async def waits() -> bool:
        info = await connection.requests.api("CONSUMER.INFO.CONTROL.steward")
        return int(info["num_waiting"]) == 1

    consumption = Consumption.of_one(connection, settings, "CONTROL", "steward", handle)
    async with background(consumption.run()):
        await until(waits)
        lane = next(iter(consumption._lanes))
        # The broker forgets a pull without a word when nobody listens to its inbox; to the process it is still open.
        subscription = lane._consumer._subscription
        assert subscription is not None
        await connection.client._send_unsubscribe(subscription._id)
        await connection.requests.publish("control.cancel.acme", b"{}")
        waking = Waking(connection.requests)
        await waking.look()
        assert handled == []
        await waking.look()
        await until(lambda: handled == ["control.cancel.acme"])


class OfPools:
    """Places by pool, as a test sets them."""

    def __init__(self, most: dict[str, int]) -> None:
        self.most = most
        self.is_holding = True
        self.waits: dict[str, int] = {}
        self.weights: dict[str, float] = {}
        self._callbacks: list[Callable[[], None]] = []

    def has_room(self, pool: str, in_hand: Mapping[str, int]) -> bool:
        """Whether there is one more."""
        return in_hand.get(pool, 0) < self.most.get(pool, PLACES)

    def room(self, pool: str, in_hand: Mapping[str, int]) -> int:
        """What is left of it."""
        return max(0, self.most.get(pool, PLACES) - in_hand.get(pool, 0))

    def holds(self, pool: str) -> bool:
        """As it is set."""
        return self.is_holding

    def weight(self, pool: str) -> float:
        """Alike, unless set."""
        return self.weights.get(pool, 1.0)

    def waiting(self, pool: str, lane: str, messages: int) -> None:
        """Noted."""
        self.waits[lane] = messages

    def on_changed(self, callback: Callable[[], None]) -> None:
        """Called by `change`."""
        self._callbacks.append(callback)

    def change(self, **most: int) -> None:
        """Another room."""
        self.most |= most
        for callback in self._callbacks:
            callback()


async def test_a_pool_has_as_many_at_once_as_its_places_and_they_may_change(
    connection: Connection, settings: Settings
) -> None:
    places, running, ended = OfPools({"default": 2}), Counter[str](), asyncio.Semaphore(0)
    at_once_most = 0

    async def handle(delivery: Delivery, _: Permit) -> Answer:
        nonlocal at_once_most
        running["now"] += 1
        at_once_most = max(at_once_most, running["now"])
        await ended.acquire()
        running["now"] -= 1
        running["done"] += 1
        return Ack()

    await back_up(connection, {"high": 4, "normal": 20})
    consumers = specs(connection, settings)
    consumption = Consumption(
        connection, replace(settings, drain_seconds=0), consumers, handle, PLACES, hands_over=False, places=places
    )
    async with background(consumption.run()):
        await until(lambda: running["now"] == 2)
        for done in range(1, 7):
            ended.release()
            await until(lambda done=done: running["done"] == done and running["now"] == 2)  # type: ignore[misc]  # mypy can't infer it
        assert at_once_most == 2
        assert sum(places.waits.values()) > 10
        places.change(default=PLACES)
        await until(lambda: running["now"] == PLACES)
        places.change(default=1)
        for done in range(7, 10):
            ended.release()
            await until(lambda done=done: running["done"] == done)  # type: ignore[misc]  # mypy can't infer it
        await until(lambda: running["now"] == 1)
        ended.release()
        await until(lambda: running["done"] == 10 and running["now"] == 1)
        for _ in range(30):
            ended.release()
        await until(lambda: running["done"] == 24)
        await until(lambda: set(places.waits.values()) == {0})


async def test_a_message_that_another_process_has_room_for_is_not_kept_by_one_without(
    connection: Connection, settings: Settings
) -> None:
    """One place, and a turn that does not end: the lanes that waited ask for nothing, until there is room again."""
    full, ended, done = asyncio.Event(), asyncio.Event(), Counter[str]()

    async def hang(_: Delivery, __: Permit) -> Answer:
        full.set()
        await ended.wait()
        done["hung"] += 1
        return Ack()

    async def work(_: Delivery, __: Permit) -> Answer:
        done["worked"] += 1
        return Ack()

    places, consumers = OfPools({"default": 1}), specs(connection, settings)
    places.is_holding = False
    quick = replace(settings, drain_seconds=0)
    stuck = Consumption(connection, quick, consumers, hang, PLACES, places=places)
    async with background(stuck.run()):
        await back_up(connection, {"normal": 1})
        await full.wait()
        async with background(Consumption(connection, quick, specs(connection, settings), work, PLACES).run()):
            for _ in range(3):
                await back_up(connection, {"high": 4, "normal": 4, "low": 2})
            await until(lambda: done["worked"] == 30)
            assert stuck.in_hand == 1
        ended.set()
        await back_up(connection, {"high": 3, "low": 3})
        await until(lambda: done["hung"] == 7)
