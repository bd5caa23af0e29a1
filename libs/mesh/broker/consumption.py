"""Consumption: durable consumers are pulled, and each delivery is handled under its lease, a bounded number at once.

The one loop of every process that works on messages: workers, runners, the steward. Walk one delivery through it:
`_fill` gives the free places to the lanes that have messages, `_start` takes a permit and keeps the lease, `_run` sees
to it that it is answered or given up, and `_handled` brings it to its handler, until that has an answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import structlog

from contracts import subjects
from mesh.background import background, first_of
from mesh.broker.answers import NO_PERMIT_SECONDS, Ack, Answer, Hold, Nak, Term
from mesh.broker.connection import Connection
from mesh.broker.deliveries import Delivery, Leases, while_leased
from mesh.broker.gates import ALWAYS, UNLIMITED, Gate, Permit, WaitingRoom, permit_in_hand
from mesh.broker.in_hand import InHand
from mesh.broker.lanes import ConsumerSpec, Lane
from mesh.broker.places import Places
from mesh.broker.shares import Share, Shares
from mesh.configuration.settings import Settings
from mesh.errors import BrokerUnavailable, StepLost

log = structlog.get_logger("mesh.broker.consumption")

AT_ONCE_MAX = 32
"""Messages in hand of a consumer that names no other bound."""
UNKNOWN_PER_ROUND = 8
"""Of lanes that nobody has looked at one in so many is asked at once, however few places are free: four at a time would
take 450 round trips for 1,800 lanes; so it takes 45. What that brings waits for a place, its lease kept."""

SHORT_DRAIN_SECONDS = 5.0
"""What a drain waits for at most where nothing takes long, or can be handed over."""

Handle = Callable[[Delivery, Permit], Awaitable[Answer]]


class Consumption:
    """Pulls consumers, and hands each delivery to `handle`, whose answer it sends. What has none comes back.

    At most `at_once_max` deliveries are handled at once. Free places go to the lanes that have messages, by their
    shares. Beside them each lane that has none brings its next message as soon as there is one. `hands_over`: `handle`
    lets go of a delivery that is `recalled`, and its answer then uses up no delivery. `places`: how many of them each
    pool may have; without it, all.
    """

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        consumers: Sequence[ConsumerSpec],
        handle: Handle,
        at_once_max: int,
        *,
        hands_over: bool = False,
        places: Places | None = None,
    ) -> None:
        self._connection = connection
        self._ack_wait_seconds = settings.ack_wait_seconds
        self._handle = handle
        self._hands_over = hands_over
        # A message that was not begun keeps its place in the queue, as long as it has deliveries to spare.
        self._spare_deliveries = settings.max_deliver // 2
        self._at_once_max = at_once_max
        self._leases = Leases(settings.ack_wait_seconds)
        drain_seconds = settings.drain_seconds if hands_over else min(settings.drain_seconds, SHORT_DRAIN_SECONDS)
        self._places = places
        self._in_hand = InHand(at_once_max, drain_seconds, places)
        self._asked_for = 0
        self._had: Counter[str] = Counter()
        """By pool: what is in hand, and what was asked for. Kept where there are places by pool."""
        self._changed = asyncio.Event()
        self._waiting = WaitingRoom(self._changed.set)
        self._shares = Shares() if places is None else Shares(places.weight)
        self._lanes: dict[Lane, int] = {}
        """Each with its place in order: of one share the first goes first."""
        self._not_empty: set[Lane] = set()
        self._idle: asyncio.TaskGroup | None = None
        if places is not None:
            places.on_changed(self._more_room)
        for spec in consumers:
            self.add(spec)

    @classmethod
    def of_one(
        cls,
        connection: Connection,
        settings: Settings,
        stream: str,
        consumer: str,
        handle: Callable[[Delivery], Awaitable[Answer]],
        at_once_max: int = AT_ONCE_MAX,
    ) -> Consumption:
        """That of a single consumer, without a gate."""

        async def handle_delivery(delivery: Delivery, _: Permit) -> Answer:
            return await handle(delivery)

        return cls(connection, settings, [ConsumerSpec(stream, consumer)], handle_delivery, at_once_max)

    @property
    def in_hand(self) -> int:
        """Deliveries in this process's hands."""
        return len(self._in_hand)

    def add(self, spec: ConsumerSpec) -> None:
        """Pull one more consumer."""
        start = partial(self._start, spec.gate, spec.share)
        may_wait = partial(self._may_wait, spec.share.pool)
        lane = Lane(self._connection, spec, self._ack_wait_seconds, start, self._changed.set, may_wait)
        self._lanes[lane] = len(self._lanes)
        self._has_some(lane)

    async def run(self, hurrying: asyncio.Event | None = None, patient: asyncio.Event | None = None) -> None:
        """Work until cancelled; then pull no more, and let what was begun end, for as long as such things take.

        Never longer than `MESH_DRAIN_SECONDS`, and not once `hurrying` is set. What does not end in time is handed
        over: it goes back at once, for another process. While `patient` is set, there is no such time.
        """
        await self._connection.requests.on_announced(subjects.LANES_WAITING, self._look_again)
        async with background(self._leases.run()):
            try:
                async with asyncio.TaskGroup() as self._idle:
                    await self._fill()
            finally:
                # Leases are kept until the last delivery is out of hand.
                await self._drain(hurrying or asyncio.Event(), patient)

    async def _drain(self, hurrying: asyncio.Event, patient: asyncio.Event | None) -> None:
        self._waiting.close()
        self._in_hand.close()
        # First of all: what goes back must not come here again.
        await asyncio.gather(*(lane.close() for lane in self._lanes))
        await self._in_hand.let_end(hurrying, patient)
        if self._hands_over:
            await self._in_hand.recall()
        await self._in_hand.cancel()

    # Pulling

    async def _fill(self) -> None:
        while True:
            self._changed.clear()
            asked = self._plan()
            if asked:
                # All at the same time: a broker at a distance costs one round trip, however many lanes are asked.
                await asyncio.gather(*(self._take(lane, places) for lane, places in asked.items()))
            else:
                await first_of(self._changed, seconds=self._seconds_to_next_look())

    def _plan(self) -> dict[Lane, int]:
        """Which lanes are asked next, and for how much. Those that wait for a message are not."""
        places = self._room_now()
        if places <= 0:
            return {}
        lanes = sorted((lane for lane in self._not_empty if lane.may_be_asked()), key=self._lanes.__getitem__)
        # A message that a gate of little room lets through shuts it: one, and then look again.
        all_limited = {lane for lane in lanes if lane.is_limited}
        limited = next((lane for lane in lanes if lane in all_limited), None)
        by_share: dict[Share, Lane] = {}
        for lane in lanes:
            if lane is limited or lane not in all_limited:
                by_share.setdefault(lane.spec.share, lane)
        asked: dict[Lane, int] = {}
        left = _room_of_gates(by_share)
        has_room = _any if self._places is None else self._places.has_room
        pools = {share.pool for share in by_share}
        if self._places is not None and len(pools) == 1:
            # Else it is asked anew for each place.
            places, has_room = min(places, self._places.room(next(iter(pools)), self._had)), _any
        for share in self._shares.picks(by_share, places, has_room, self._had):
            room = left[share]
            if room[0] > 0:
                room[0] -= 1
                lane = by_share[share]
                asked[lane] = 1 if lane is limited else asked.get(lane, 0) + 1
        unknown = [lane for lane in lanes if lane.is_unknown and lane.spec.gate.room() >= UNLIMITED]
        for lane in unknown[: len(unknown) // UNKNOWN_PER_ROUND]:
            if lane in asked or self._has_room(lane.spec.share.pool, self._had):
                asked.setdefault(lane, 1)
        return asked

    def _has_room(self, pool: str, had: Mapping[str, int]) -> bool:
        """Whether a pool may have one more while each has so many."""
        return self._places is None or self._places.has_room(pool, had)

    def _may_wait(self, pool: str) -> bool:
        """Whether the lanes of a pool may have pulls open that wait."""
        return self._places is None or self._places.holds(pool) or self._places.has_room(pool, self._had)

    def _more_room(self) -> None:
        self._in_hand.look_again()
        self._changed.set()

    async def _take(self, lane: Lane, places: int) -> None:
        pool = lane.spec.share.pool
        self._asked_for += places
        self._had[pool] += places
        try:
            await lane.take(places)
        finally:
            self._asked_for -= places
            self._had[pool] -= places
        if lane.is_empty and self._places is not None:
            self._places.waiting(pool, f"{lane.spec.stream}/{lane.spec.consumer}", 0)
        if lane.is_empty and self._idle is not None:
            self._not_empty.discard(lane)
            self._idle.create_task(self._wait(lane))

    def _look_again(self, subject: str | None) -> None:
        """The steward finds messages that nobody has asked for. After a reconnect all have asked again already."""
        for lane in self._lanes:
            if subject == subjects.lane_waiting(lane.spec.stream, lane.spec.consumer):
                lane.look_again()

    async def _wait(self, lane: Lane) -> None:
        await lane.wait()
        self._has_some(lane)

    def _has_some(self, lane: Lane) -> None:
        self._not_empty.add(lane)
        self._changed.set()

    def _seconds_to_next_look(self) -> float | None:
        """When a lane behind a gate of little room is looked at again; None if there is none."""
        if self._room_now() <= 0:
            return None
        return min((lane.seconds_to_next_look for lane in self._not_empty if lane.seconds_to_next_look), default=None)

    def _room_now(self) -> int:
        return self._at_once_max - (len(self._in_hand) - self._waiting.count) - self._asked_for

    # One delivery

    def _start(self, gate: Gate, share: Share, delivery: Delivery) -> None:
        self._shares.give(share)
        if self._places is not None:
            self._places.waiting(share.pool, f"{delivery.stream}/{delivery.consumer}", delivery.pending)
        # The permit is taken before anything is awaited: the next pull must know.
        task = asyncio.create_task(self._run(delivery, gate, gate.acquire(), share.pool))
        self._had[share.pool] += 1
        if not self._may_wait(share.pool):
            for lane in self._lanes:
                if lane.spec.share.pool == share.pool:
                    lane.stop_waiting()
        self._in_hand.add(delivery, task)
        self._leases.add(delivery, task)
        task.add_done_callback(partial(self._end, share.pool))

    def _end(self, pool: str, task: asyncio.Task[None]) -> None:
        self._had[pool] -= 1
        self._in_hand.remove(task)
        self._changed.set()

    async def _run(self, delivery: Delivery, gate: Gate, permit: Permit | None, pool: str) -> None:
        """Handle and answer a delivery, whatever happens. What is not answered here comes back after ack_wait."""
        message = {"stream": delivery.stream, "message": delivery.sequence}
        try:
            answer = await self._handled(delivery, gate, permit, pool)
            await while_leased(delivery, partial(delivery.answer, answer))
        except asyncio.CancelledError:
            # The lease was lost, and then this sends nothing; or the process stops, and gives it back.
            if self._in_hand.is_closed:
                log.info("delivery.given_back", **message)
                await delivery.answer(Nak())
        except StepLost as error:
            log.info("delivery.lost", **message, reason=str(error))
        except BrokerUnavailable as error:
            log.warning("delivery.abandoned", **message, error=str(error))
        except Exception:
            log.exception("delivery.crashed", **message)
        finally:
            delivery.give_up()
            self._leases.remove(delivery)

    async def _handled(self, delivery: Delivery, gate: Gate, permit: Permit | None, pool: str) -> Ack | Nak | Term:
        """The answer of the handler, which gets the delivery under a permit, and again under another if it holds it."""
        delay_seconds, tried = NO_PERMIT_SECONDS, False
        while True:
            permit = permit or await self._waiting.wait(gate, tried=tried)
            if permit is None:
                break
            try:
                # An idle consumer may bring a message more than there is room for: it waits here, its lease kept.
                if not await self._in_hand.place(pool):
                    break
                permit_in_hand.set(permit)
                with self._in_hand.begun(delivery, pool):
                    answer = await while_leased(delivery, partial(self._handle, delivery, permit))
            finally:
                permit.release()
            if not isinstance(answer, Hold):
                return answer
            log.info("delivery.held", stream=delivery.stream, message=delivery.sequence)
            permit, delay_seconds, tried = None, answer.delay_seconds, True
        return await self._given_back(delivery, 0.0 if self._in_hand.is_closed else delay_seconds)

    async def _given_back(self, delivery: Delivery, delay_seconds: float) -> Ack | Nak | Term:
        """The answer to a delivery that was not begun here: the process stops, or there is no permit for a while."""
        log.info("delivery.not_begun", stream=delivery.stream, message=delivery.sequence)
        if not self._hands_over or delivery.deliveries <= self._spare_deliveries:
            return Nak(delay_seconds)
        # It has been given back often enough: another message of it has all of its deliveries.
        delivery.recalled.set()
        answer = await while_leased(delivery, partial(self._handle, delivery, ALWAYS))
        return Nak() if isinstance(answer, Hold) else answer


def _any(_: str, __: Mapping[str, int]) -> bool:
    """A pool may have any number."""
    return True


def _room_of_gates(lanes: Mapping[Share, Lane]) -> dict[Share, list[int]]:
    """How many more messages the gates of lanes let through: one count for lanes behind the same gate, asked once."""
    by_gate: dict[Gate, list[int]] = {}
    for gate in (lane.spec.gate for lane in lanes.values()):
        if gate not in by_gate:
            by_gate[gate] = [gate.room()]
    return {share: by_gate[lane.spec.gate] for share, lane in lanes.items()}
