"""The journal of the one task, folded. A journal is a node of a tree: the same events are the same object.

So comparing two revisions, and hashing a state, cost nothing, and each journal is folded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

StepGen = tuple[str, int]
Author = tuple[int, int]
"""Who wrote an event of a step: message and delivery. It is the event's id too: a delivery claims once."""
EventKind = Literal[
    "task.queued",
    "step.claimed",
    "turn.completed",
    "tool.completed",
    "tool.failed",
    "approval.requested",
    "approval.resolved",
    "task.retrying",
    "task.dead_lettered",
    "task.replayed",
    "task.completed",
    "task.cancelled",
]
TERMINAL: frozenset[EventKind] = frozenset({"task.completed", "task.cancelled"})


class Event(NamedTuple):
    """An event. `step`: turn or call; `steps`: what a replay repairs; `author` is None for the steward's own."""

    kind: EventKind
    step: str = ""
    gen: int = 0
    author: Author | None = None
    decision: str = ""
    steps: tuple[StepGen, ...] = ()

    def __str__(self) -> str:
        of = "".join(f" {step}.g{gen}" for step, gen in self.steps or (((self.step, self.gen),) if self.step else ()))
        return f"{self.kind}{of}{' ' + self.decision if self.decision else ''}"


@dataclass(frozen=True, slots=True)
class Task:
    """What the model behind the task will ask for: the calls of each turn. The last turn asks for none."""

    calls: tuple[tuple[str, ...], ...]
    approvals: frozenset[str] = frozenset()
    """Calls that need a person's approval."""

    def calls_of(self, turn: str) -> tuple[str, ...]:
        """The calls of a turn."""
        return self.calls[int(turn) - 1]


class Journal:
    """A journal, and its fold."""

    __slots__ = (
        "approvals",
        "bindings",
        "children",
        "claim_counts",
        "claims",
        "dead",
        "dead_counts",
        "ended",
        "event",
        "gens",
        "length",
        "next_tries",
        "parent",
        "queued",
        "repaired",
        "resolved",
        "results",
        "tries",
    )

    def __init__(self, parent: Journal | None = None, event: Event | None = None) -> None:
        self.parent = parent
        self.event = event
        self.children: dict[Event, Journal] = {}
        self.length: int = parent.length + 1 if parent else 0
        """The revision: the fence of an append on top of this."""
        self.queued: bool = parent.queued if parent else False
        self.ended: bool = parent.ended if parent else False
        self.claims: dict[StepGen, Author] = parent.claims if parent else {}
        self.claim_counts: dict[StepGen, int] = parent.claim_counts if parent else {}
        self.bindings: dict[StepGen, int] = parent.bindings if parent else {}
        self.gens: dict[str, int] = parent.gens if parent else {}
        self.tries: dict[StepGen, int] = parent.tries if parent else {}
        """Failed tries."""
        self.next_tries: frozenset[StepGen] = parent.next_tries if parent else frozenset()
        """What a timer brings again."""
        self.dead: frozenset[StepGen] = parent.dead if parent else frozenset()
        """Open dead letters."""
        self.repaired: frozenset[StepGen] = parent.repaired if parent else frozenset()
        """Dead letters that were replayed."""
        self.dead_counts: dict[str, int] = parent.dead_counts if parent else {}
        self.results: frozenset[str] = parent.results if parent else frozenset()
        """Turns and calls that have their result."""
        self.approvals: frozenset[str] = parent.approvals if parent else frozenset()
        self.resolved: frozenset[str] = parent.resolved if parent else frozenset()
        if event is not None:
            self._fold(event)

    def __lt__(self, other: Journal) -> bool:
        return self.length < other.length

    def append(self, event: Event) -> Journal:
        """The journal with one more event."""
        longer = self.children.get(event)
        if longer is None:
            longer = self.children[event] = Journal(self, event)
        return longer

    def events(self) -> list[Event]:
        """All events, the oldest first."""
        found: list[Event] = []
        node: Journal | None = self
        while node is not None and node.event is not None:
            found.append(node.event)
            node = node.parent
        return found[::-1]

    def gen(self, step: str) -> int:
        """How often the step was replayed."""
        return self.gens.get(step, 0)

    def _fold(self, event: Event) -> None:
        step_gen = (event.step, event.gen)
        match event.kind:
            case "task.queued":
                self.queued = True
            case "step.claimed" if event.author is not None:
                self.claims = {**self.claims, step_gen: event.author}
                self.claim_counts = {**self.claim_counts, step_gen: self.claim_counts.get(step_gen, 0) + 1}
                self.bindings = {step_gen: event.author[0], **self.bindings}
                self.next_tries -= {step_gen}
            case "turn.completed" | "tool.completed" | "tool.failed":
                self.results |= {event.step}
            case "approval.requested":
                self.approvals |= {event.step}
            case "approval.resolved":
                self.resolved |= {event.step}
                if event.decision != "approved":
                    self.results |= {event.step}
            case "task.retrying":
                self.tries = {**self.tries, step_gen: self.tries.get(step_gen, 0) + 1}
                self.next_tries |= {step_gen}
                self.bindings = {bound: message for bound, message in self.bindings.items() if bound != step_gen}
            case "task.dead_lettered":
                self.dead |= {step_gen}
                self.dead_counts = {**self.dead_counts, event.step: self.dead_counts.get(event.step, 0) + 1}
            case "task.replayed":
                self.repaired |= self.dead.intersection(event.steps)
                self.dead -= set(event.steps)
                replayed = {step: max(self.gen(step), gen + 1) for step, gen in event.steps}
                self.gens = {**self.gens, **replayed}
            case "task.completed" | "task.cancelled":
                self.ended = True
            case _:
                pass


NOTHING = Journal()
"""The fold of an actor that has not read yet, or needs none any more: one for all, so that equal states are equal."""
