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
    "step.released",
    "output.delta",
    "turn.restarted",
    "turn.completed",
    "tool.completed",
    "tool.failed",
    "approval.requested",
    "approval.resolved",
    "input.received",
    "task.retrying",
    "task.dead_lettered",
    "task.replayed",
    "task.completed",
    "task.cancelled",
]
TERMINAL: frozenset[EventKind] = frozenset({"task.completed", "task.cancelled"})


class Event(NamedTuple):
    """An event. `step`: turn or call; `steps`: what a replay repairs; `author` is None for the steward's own.

    `gen` of an input is the number of the command that brought it, `decision` its mode.
    """

    kind: EventKind
    step: str = ""
    gen: int = 0
    author: Author | None = None
    decision: str = ""
    steps: tuple[StepGen, ...] = ()
    base: int | None = None
    """What the claim of a turn says of its base."""
    shown: tuple[int, ...] = ()
    """n of each input that was in the prompt of a completed turn. No reader knows: it is what really happened."""

    def __str__(self) -> str:
        of = "".join(f" {step}.g{gen}" for step, gen in self.steps or (((self.step, self.gen),) if self.step else ()))
        return f"{self.kind}{of}{' ' + self.decision if self.decision else ''}"


@dataclass(frozen=True, slots=True)
class Task:
    """What the model behind the task will ask for: the calls of each turn. The last turn asks for none."""

    calls: tuple[tuple[str, ...], ...]
    approvals: frozenset[str] = frozenset()
    """Calls that need a person's approval."""
    tokens: frozenset[str] = frozenset()
    """Turns that say something before they are completed. One delta stands for any number of them."""

    def calls_of(self, turn: str) -> tuple[str, ...]:
        """The calls of a turn; none of those that only inputs have led to."""
        return self.calls[int(turn) - 1] if int(turn) <= len(self.calls) else ()


class Journal:
    """A journal, and its fold."""

    __slots__ = (
        "approvals",
        "bases",
        "bases_by_text",
        "bindings",
        "children",
        "claim_counts",
        "claims",
        "commands",
        "dead",
        "dead_counts",
        "ended",
        "event",
        "gens",
        "inputs",
        "length",
        "next_tries",
        "parent",
        "queued",
        "redirects",
        "released",
        "releases",
        "repaired",
        "resolved",
        "results",
        "shown",
        "texts",
        "timed",
        "tries",
        "without_deltas",
    )

    def __init__(self, parent: Journal | None = None, event: Event | None = None, n: int = -1) -> None:
        self.parent = parent
        self.event = event
        self.children: dict[tuple[int, Event], Journal] = {}
        self.without_deltas: Journal | None = None
        self.length: int = n + 1
        """The revision: the fence of an append on top of this, and the n of what is appended."""
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
        self.timed: frozenset[StepGen] = parent.timed if parent else frozenset()
        """The same, if a release left it to the timer."""
        self.releases: dict[StepGen, int] = parent.releases if parent else {}
        self.released: frozenset[StepGen] = parent.released if parent else frozenset()
        """What nobody has claimed since it was released."""
        self.texts: frozenset[str] = parent.texts if parent else frozenset()
        """Turns that are not completed, and have said something."""
        self.bases: dict[str, int] = parent.bases if parent else {}
        self.bases_by_text: dict[str, int] = parent.bases_by_text if parent else {}
        """By the rule before 0.2: the last claim while a turn has no text."""
        self.inputs: tuple[int, ...] = parent.inputs if parent else ()
        """n of each."""
        self.redirects: frozenset[int] = parent.redirects if parent else frozenset()
        self.commands: frozenset[int] = parent.commands if parent else frozenset()
        """Those that brought inputs."""
        self.shown: frozenset[int] = parent.shown if parent else frozenset()
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
        return self._read(self.length, event)

    def _read(self, n: int, event: Event) -> Journal:
        longer = self.children.get((n, event))
        if longer is None:
            longer = self.children[n, event] = Journal(self, event, n)
        return longer

    def events(self) -> list[Event]:
        """All events, the oldest first."""
        return [node.event for node in self._nodes() if node.event is not None]

    def _nodes(self, after: int = 0) -> list[Journal]:
        """What it was after each event, the oldest first, from a length on."""
        found: list[Journal] = []
        node: Journal | None = self
        while node is not None and node.length > after:
            found.append(node)
            node = node.parent
        return found[::-1]

    def cold(self) -> Journal:
        """The journal as it is folded by who passes over the deltas of completed turns."""
        if self.without_deltas is None:
            nodes = self._nodes()
            kinds = [node.event.kind for node in nodes if node.event]
            completed = max((at for at, kind in enumerate(kinds) if kind == "turn.completed"), default=0)
            folded = nodes[0].parent if nodes else None
            for at, node in enumerate(nodes):
                if folded is not None and node.event is not None and (at > completed or kinds[at] != "output.delta"):
                    folded = folded._read(node.length - 1, node.event)
            self.without_deltas = folded or self
        return self.without_deltas

    def caught_up(self, journal: Journal) -> Journal:
        """This fold, with all that came since: the journal itself, if nothing was passed over."""
        missing = journal._nodes(self.length)
        if (missing[0].parent if missing else journal) is self:
            return journal
        folded = self
        for node in missing:
            if node.event is not None:
                folded = folded._read(node.length - 1, node.event)
        return folded

    def gen(self, step: str) -> int:
        """How often the step was replayed."""
        return self.gens.get(step, 0)

    def _fold(self, event: Event) -> None:  # noqa: C901, PLR0912 - one case for each event type
        step_gen = (event.step, event.gen)
        match event.kind:
            case "task.queued":
                self.queued = True
            case "step.claimed" if event.author is not None:
                self._fold_claim(event, step_gen, event.author)
            case "step.released":
                self.released |= {step_gen}
                self.releases = {**self.releases, step_gen: self.releases.get(step_gen, 0) + 1}
                self.next_tries -= {step_gen}
                self._unbind(step_gen)
            case "output.delta":
                self.texts |= {event.step}
            case "turn.restarted":
                self.texts -= {event.step}
                self.bases = {**self.bases, event.step: self.length - 1}
                self.bases_by_text = {**self.bases_by_text, event.step: self.length - 1}
            case "input.received":
                self.inputs += (self.length - 1,)
                self.commands |= {event.gen}
                if event.decision == "redirect":
                    self.redirects |= {self.length - 1}
            case "turn.completed" | "tool.completed" | "tool.failed":
                self.results |= {event.step}
                self.texts -= {event.step}
                self.shown |= set(event.shown)
            case "approval.requested":
                self.approvals |= {event.step}
            case "approval.resolved":
                self.resolved |= {event.step}
                if event.decision != "approved":
                    self.results |= {event.step}
            case "task.retrying":
                self.tries = {**self.tries, step_gen: self.tries.get(step_gen, 0) + 1}
                self.next_tries |= {step_gen}
                self.timed |= {step_gen}
                self._unbind(step_gen)
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

    def _fold_claim(self, event: Event, step_gen: StepGen, author: Author) -> None:
        self.claims = {**self.claims, step_gen: author}
        self.claim_counts = {**self.claim_counts, step_gen: self.claim_counts.get(step_gen, 0) + 1}
        self.bindings = {step_gen: author[0], **self.bindings}
        self.next_tries -= {step_gen}
        self.timed -= {step_gen}
        self.released -= {step_gen}
        if event.base is not None and event.step not in self.results:
            self.bases = {**self.bases, event.step: event.base}
            if event.step not in self.texts:
                self.bases_by_text = {**self.bases_by_text, event.step: self.length - 1}

    def _unbind(self, step_gen: StepGen) -> None:
        self.bindings = {bound: message for bound, message in self.bindings.items() if bound != step_gen}


NOTHING = Journal()
"""The fold of an actor that has not read yet, or needs none any more: one for all, so that equal states are equal."""
