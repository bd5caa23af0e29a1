"""A state of the whole model: journal, queue, actors, and what the bounds still allow."""

from __future__ import annotations

from typing import Literal, NamedTuple

from tests.model.journal import NOTHING, Event, Journal, StepGen

ActorKind = Literal["ingress", "reconciler", "steward", "sweep", "worker"]
OperationKind = Literal[
    "read", "ask leader", "append", "look up", "effect", "project", "publish", "write record", "ack", "nak", "delete"
]


NEEDS_FOLD: frozenset[OperationKind] = frozenset(
    {"ask leader", "append", "look up", "effect", "project", "write record"}
)
"""Operations that depend on what their actor has folded. With none of them to come it is forgotten."""


class Body(NamedTuple):
    """What a message says, and its id: work of a (step, gen), or a command. `tries`: what a timer brings after them.

    `gen` of an input is its number, `decision` its mode.
    """

    kind: Literal["work", "cancel", "approval", "input", "replay", "retry"]
    step: str = ""
    gen: int = 0
    decision: str = ""
    steps: tuple[StepGen, ...] = ()
    tries: int = 0
    releases: int = 0

    def __str__(self) -> str:
        of = "".join(f" {step}.g{gen}" for step, gen in self.steps or (((self.step, self.gen),) if self.step else ()))
        again = (f".t{self.tries}" if self.tries else "") + (f".r{self.releases}" if self.releases else "")
        return f"{self.kind}{of}{again}{' ' + self.decision if self.decision else ''}"


class Message(NamedTuple):
    """A message in a work queue. Leased: its last delivery is in hand. Stranded: nobody will get it again."""

    sequence: int
    body: Body
    deliveries: int = 0
    held: Literal["ready", "leased", "stranded"] = "ready"


class Operation(NamedTuple):
    """One operation on the broker, or, for `effect`, on the world."""

    kind: OperationKind
    event: Event | None = None
    body: Body | None = None

    def __str__(self) -> str:
        return " ".join(filter(None, [self.kind, str(self.event or ""), str(self.body or "")]))


class Actor(NamedTuple):
    """A process with one delivery in hand, what it has folded, and what it will do next. An idle one is not here."""

    kind: ActorKind
    sequence: int
    delivery: int
    view: Journal
    plan: tuple[Operation, ...]
    body: Body
    claimed: bool = False

    def __str__(self) -> str:
        return f"{self.kind}(m{self.sequence}.d{self.delivery})" if self.sequence else self.kind


class Bounds(NamedTuple):
    """How often each misfortune, or each act of a person, may still happen."""

    crashes: int = 0
    stalls: int = 0
    """Leases that end while their holder lives, and goes on afterwards: a zombie."""
    lost_answers: int = 0
    windows: int = 0
    """Ends of the duplicate window."""
    stale_reads: int = 0
    failures: int = 0
    """Steps that give up."""
    retries: int = 0
    """Tries that fail, and after which a timer brings the step again."""
    cancels: int = 0
    releases: int = 0
    """Steps that are given back by a worker that is told to stop."""
    losses: int = 0
    """Work messages that somebody takes from their queue."""
    looks: int = 0
    """Looks for lost messages while the task is quiet: they come, but only so many can be needed."""
    hasty_looks: int = 0
    """Looks for lost messages while somebody still works on the task."""
    approvals: int = 0
    replays: int = 0
    inputs: int = 0
    redirects: int = 0


class State(NamedTuple):
    """Everything. Actors are sorted: which process of a kind does it makes no difference."""

    journal: Journal
    queue: tuple[Message, ...]
    actors: tuple[Actor, ...]
    window: frozenset[Body]
    """Message ids that the broker still knows."""
    next_sequence: int
    record: int
    """The revision that the projection covers."""
    records: frozenset[StepGen]
    """Dead letters whose record is written."""
    effects: frozenset[StepGen]
    """Calls that had their effect on the world."""
    commands: frozenset[Body]
    """Commands that people have sent."""
    timers: frozenset[Body]
    """Timers that have not fired."""
    due: frozenset[Body]
    """Next tries whose time has come."""
    left: Bounds

    def message(self, sequence: int) -> Message | None:
        """A message that is still in its queue."""
        for message in self.queue:
            if message.sequence == sequence:
                return message
        return None

    def lease_held(self, actor: Actor) -> bool:
        """Whether the lease holds on which an actor works. Its clock is taken to be the broker's."""
        message = self.message(actor.sequence)
        return message is not None and message.held == "leased" and message.deliveries == actor.delivery

    def with_message(self, changed: Message) -> State:
        """The state with one message changed."""
        return self._replace(queue=tuple(changed if m.sequence == changed.sequence else m for m in self.queue))

    def without_message(self, sequence: int) -> State:
        """The state without a message."""
        return self._replace(queue=tuple(message for message in self.queue if message.sequence != sequence))

    def with_actor(self, old: Actor | None, new: Actor | None) -> State:
        """The state with one actor gone and one come. An actor with nothing left to do is idle."""
        actors = [actor for actor in self.actors if actor is not old]
        if new is not None and new.plan:
            if not any(operation.kind in NEEDS_FOLD for operation in new.plan):
                new = new._replace(view=NOTHING, claimed=False)
            actors.append(new)
            actors.sort(key=_place)
        return self._replace(actors=tuple(actors))

    def spend(self, what: str) -> State:
        """The state with one misfortune, or act, less to come."""
        return self._replace(left=self.left._replace(**{what: getattr(self.left, what) - 1}))


def _place(actor: Actor) -> tuple[str, int, int]:
    return (actor.kind, actor.sequence, actor.delivery)
