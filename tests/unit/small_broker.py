"""A broker as a few data structures, as exact as the property test of the pure core needs it.

It is no stand-in for the real one, and no service runs on it: it has a fence, a duplicate window, leases, and messages
that nobody gets any more, and that is all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from contracts.codec import encode
from contracts.journal.events import JournalEvent, decode_event
from contracts.messages.control import AnyCommand, ReplayCommand
from contracts.messages.work import TurnWork, Work
from mesh.task.fold import fold
from mesh.task.outbox import OutboxMessage, room_timer
from mesh.task.state import TaskState
from tests.unit.journals import SEQUENCES_PER_EVENT, START, TASK, TENANT

Payload = Work | AnyCommand

DELIVERIES_MAX = 3
"""Low, so that messages strand."""


@dataclass(eq=False, slots=True)
class Message:
    """What lies in a queue. `held` is the delivery whose lease runs."""

    sequence: int
    payload: Payload
    deliveries: int = 0
    held: Delivery | None = None

    @property
    def stranded(self) -> bool:
        """Whether nobody will get it any more. Commands are delivered for as long as it takes."""
        return self.held is None and isinstance(self.payload, Work) and self.deliveries >= DELIVERIES_MAX


@dataclass(eq=False, slots=True)
class Delivery:
    """A message in a process's hands."""

    message: Message
    lease_held: bool = True


@dataclass(slots=True)
class SmallBroker:
    """A journal with a fence, a queue with message ids and leases, and timers."""

    journal: list[tuple[int, bytes]] = field(default_factory=list)
    queue: dict[int, Message] = field(default_factory=dict)
    timers: dict[str, OutboxMessage] = field(default_factory=dict)
    message_ids: set[str] = field(default_factory=set)
    """Those of the queues' duplicate window."""
    timer_ids: set[str] = field(default_factory=set)
    """Those of the timers'. A later try has one id as a timer and as a message: each stream has a window of its own."""
    published: dict[str, bytes] = field(default_factory=dict)
    """Every message id that was ever published, and its payload but for the pool."""
    on_publish: Callable[[Payload, str], None] = lambda _payload, _message_id: None
    stored: int = 0
    full: bool = False
    """Whether the queues refuse: they have no room. Timers are taken all the same."""

    @property
    def revision(self) -> int:
        """Sequence of the journal's last event."""
        return self.journal[-1][0] if self.journal else 0

    def append(self, revision: int, event: JournalEvent) -> int | None:
        """Store an event, and answer with its sequence: None if the journal has moved on."""
        if revision != self.revision:
            return None
        payload = encode(event)
        assert encode(decode_event(payload)) == payload
        self.journal.append((revision + SEQUENCES_PER_EVENT, payload))
        return self.revision

    def publish(self, payload: Payload, message_id: str) -> None:
        """Put a message into its queue, unless one with that id was published in the duplicate window."""
        # Two people may repair the same dead letters, each in their own way. And who settles late sends a turn that is
        # there already once more, into the pool of today.
        same = replace(payload, pool="") if isinstance(payload, TurnWork) else payload
        assert encode(same) == self.published.setdefault(message_id, encode(same)) or isinstance(
            payload, ReplayCommand
        ), "one id, two messages"
        self.on_publish(payload, message_id)
        if message_id not in self.message_ids:
            self.message_ids.add(message_id)
            self.stored += 1
            self.queue[self.stored] = Message(self.stored, payload)

    def send(self, due: OutboxMessage) -> None:
        """Publish what is due: a message, or a timer. What is refused for want of room is left to a timer."""
        if self.refuses(due):
            return
        if due.at is None:
            self.publish(due.payload, due.message_id)
        elif due.message_id not in self.timer_ids:
            self.timer_ids.add(due.message_id)
            self.timers[due.subject] = due

    def refuses(self, due: OutboxMessage) -> bool:
        """Whether there is no room for a message; then its timer is there."""
        if not self.full or due.at is not None:
            return False
        assert due.refused is not None, f"{due} is refused, and nothing brings it"
        timer = room_timer(due.refused, START)
        self.timers[timer.subject] = timer
        return True

    @property
    def waits_for_room(self) -> bool:
        """Whether anything does."""
        return any(subject.startswith("timers.at.room.") for subject in self.timers)

    def forget_ids(self) -> None:
        """The duplicate window passes."""
        self.message_ids.clear()
        self.timer_ids.clear()

    def deliver(self, message: Message) -> Delivery:
        """Hand a message out."""
        assert message.held is None
        message.deliveries += 1
        message.held = Delivery(message)
        return message.held

    def give_back(self, delivery: Delivery) -> None:
        """The lease has passed, or a nak: somebody else may have the message."""
        delivery.lease_held = False
        if delivery.message.held is delivery:
            delivery.message.held = None

    def delete(self, message: Message) -> None:
        """Take a message from its queue."""
        self.queue.pop(message.sequence, None)


class View:
    """A journal as one process has folded it. `behind`: how many events the first read does not see."""

    def __init__(self, broker: SmallBroker, behind: int = 0) -> None:
        self.state = TaskState(TENANT, TASK)
        self._broker = broker
        self._fold(broker.journal[: max(0, len(broker.journal) - behind)])

    def catch_up(self) -> None:
        """Read and fold what was written since."""
        self._fold(self._broker.journal)

    @property
    def is_behind(self) -> bool:
        """Whether there is more to fold."""
        return self._broker.revision > self.state.revision

    def _fold(self, journal: list[tuple[int, bytes]]) -> None:
        for sequence, payload in journal:
            if sequence > self.state.revision:
                fold(self.state, sequence, decode_event(payload))
