"""The state of a task: what its journal says, folded."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from contracts.errors import ErrorInfo
from contracts.identifiers import turn_of
from contracts.journal import events, parts
from contracts.journal.events import TerminalEvent
from contracts.journal.parts import ModelCall, Usage
from contracts.records.status import Status
from contracts.tasks import TaskRequest

StepKey = tuple[str, int]
CallResult = (
    events.ToolCompleted | events.ToolFailed | events.ApprovalResolved | events.InputReceived | events.SubtaskCompleted
)
"""What ends a call: its result, a refusal, the user's answer, the end of its sub-task."""
ModelName = tuple[str | None, str | None]
"""A provider's name, and the name of a model there."""
FAILURES_MAX = 16
_STATUS_BY_END: dict[type[events.Event], Status] = {
    events.TaskCompleted: "completed",
    events.TaskFailed: "failed",
    events.TaskCancelled: "cancelled",
    events.TaskExpired: "expired",
}


@dataclass(slots=True)
class TurnState:
    """A turn as far as its journal goes. `parts` and `reasoning` hold (n, text) of each delta."""

    turn: int
    parts: list[tuple[int, str]] = field(default_factory=list)
    reasoning: list[tuple[int, str]] = field(default_factory=list)
    claims: int = 0
    outdated: bool = False
    """An edit has changed what there is of it was made from: it begins again."""
    base_n: int = 0
    """n of the event from which on the turn was generated: inputs before it are in its prompt, later ones are not.

    Of `.log` alone, as all that outlasts the turn: its deltas may be purged, or passed over, once it is completed.
    """
    model: ModelName | None = None
    """Which model has the turn: that of its last claim, or of a switch since."""
    model_of_text: ModelName | None = None
    """Which model made what there is of it."""
    left: set[ModelName] = field(default_factory=set)
    """Which models it was switched away from since its last claim."""
    discarded_tokens: int = 0
    """About how many tokens its restarts have taken back."""
    switched: events.ModelSwitched | None = None
    """The last switch: whoever takes the turn over goes on with that model."""
    open_calls: list[ModelCall] = field(default_factory=list)
    """Calls of models that are under way, or were when their worker died: nobody has told what they have used."""
    spent: list[Usage] = field(default_factory=list)
    """What calls of models have used whose answer is not the turn's, as far as their providers told it."""
    lost_calls: int = 0
    """Calls that went with their claim."""
    told_output_tokens: int = 0
    """How many of the tokens of its text, as far as that was not taken back, are in `spent`."""
    completed: events.TurnCompleted | None = None
    milestone_bytes: int = 0
    """How large the journal's milestones were when it was completed."""

    @property
    def text(self) -> str:
        """The text so far."""
        return self.completed.text if self.completed else "".join(text for _, text in self.parts)

    def has_spoken_since(self, n: int) -> bool:
        """Whether there is any of its text or reasoning behind an event."""
        return any(said and said[-1][0] > n for said in (self.parts, self.reasoning))

    @property
    def reasoning_text(self) -> str | None:
        """The reasoning so far; None if there is none."""
        if self.completed:
            return self.completed.reasoning
        return "".join(text for _, text in self.reasoning) or None


class Away(NamedTuple):
    """Failed tries of a step whose provider was away: how many, the last one's n, and when the last series began.

    `lasts`: no other failure came after them.
    """

    tries: int
    since: datetime
    last_n: int
    lasts: bool = True


@lru_cache(maxsize=256)
def _nothing_of(turn: int) -> TurnState:
    """A turn of which nothing is known. It is everybody's: what is folded goes into `TaskState.turns`."""
    return TurnState(turn)


@dataclass(slots=True)
class TaskState:
    """What a journal says of its task, up to stream sequence `revision`."""

    tenant: str
    task: str
    revision: int = 0
    """Stream sequence of the last event folded: the fence of the next append. 0: there is no journal."""
    first_sequence: int = 0
    """Stream sequence of the first event."""
    is_packed: bool = False
    """Whether it was read from the archive: nobody may write to it any more, nor project it."""
    next_n: int = 0
    milestone_bytes: int = 0
    """Of all milestones, as they are stored."""
    changed_at: datetime | None = None
    queued: events.TaskQueued | None = None
    request: TaskRequest | None = None
    """What is asked for, with the edits of replays."""
    turns: dict[int, TurnState] = field(default_factory=dict)
    claims: dict[StepKey, events.StepClaimed] = field(default_factory=dict)
    """The last claim of each (step, gen)."""
    last_turn_claim: events.StepClaimed | None = None
    """The last claim of any turn."""
    claim_counts: dict[StepKey, int] = field(default_factory=dict)
    """How often each (step, gen) was claimed."""
    bindings: dict[StepKey, int] = field(default_factory=dict)
    """Stream sequence of the work message that each (step, gen) is bound to by its first claim."""
    gens: dict[str, int] = field(default_factory=dict)
    """Number of replays of each step; absent is 0."""
    tries: dict[StepKey, int] = field(default_factory=dict)
    """Failed tries of each (step, gen)."""
    failures: dict[StepKey, list[ErrorInfo]] = field(default_factory=dict)
    """What the failed tries of each (step, gen) came to, the last `FAILURES_MAX` of them."""
    away: dict[StepKey, Away] = field(default_factory=dict)
    """Of each (step, gen) that has met its provider away."""
    timer_tries: dict[StepKey, int] = field(default_factory=dict)
    """How many tries of each (step, gen) had failed when a timer last took its message's place."""
    retry_at: dict[StepKey, datetime] = field(default_factory=dict)
    """When a timer brings the next try of each (step, gen) whose message is gone."""
    releases: dict[StepKey, int] = field(default_factory=dict)
    """How often each (step, gen) was released."""
    released: set[StepKey] = field(default_factory=set)
    """Those that nobody has claimed since."""
    dead_letters: dict[StepKey, events.TaskDeadLettered] = field(default_factory=dict)
    """Steps that gave up and were not replayed since."""
    repaired: dict[StepKey, events.TaskDeadLettered] = field(default_factory=dict)
    """Steps that gave up and were replayed: their records may still have to be written."""
    call_results: dict[str, CallResult] = field(default_factory=dict)
    approvals: dict[str, events.ApprovalRequested] = field(default_factory=dict)
    resolutions: dict[str, events.ApprovalResolved] = field(default_factory=dict)
    questions: dict[str, events.InputRequested] = field(default_factory=dict)
    """By call; a question without one is under the empty name."""
    switched: events.ModelSwitched | None = None
    """The last switch for a context that was too long: later turns begin with that model."""
    context_bytes_max: int | None = None
    """How much of the conversation the model is shown; None as long as all of it."""
    compactions: int = 0
    """How often that was halved."""
    children: dict[str, events.SubtaskStarted] = field(default_factory=dict)
    inputs: list[events.InputReceived] = field(default_factory=list)
    """Messages of the user in mid-run that answer no question."""
    edited_by: list[tuple[int, str]] = field(default_factory=list)
    """Who has changed the task by a replay: n of the event, and their name."""
    commands: set[str] = field(default_factory=set)
    """Message ids of the inputs that were carried out."""
    terminal: TerminalEvent | None = None
    before_end: tuple[int, int] = (0, 0)
    """Revision of the last event before the terminal one that is there, and the n right before the terminal one's."""
    unknown_events: int = 0
    """Events of types that this version does not know."""
    events_after_end: int = 0
    """Must stay 0: nothing follows a terminal event."""
    said: dict[str | None, Any] = field(default_factory=dict, compare=False, repr=False)
    """By provider, what `mesh.task.conversation` has made of the turns that don't change any more."""

    @property
    def exists(self) -> bool:
        """Whether the journal has begun."""
        return self.queued is not None

    @property
    def pool(self) -> str:
        """The pool of the turns to come; the one that a replay names, if any does."""
        return self.request.pool if self.request is not None else ""

    @property
    def open_dead_letters(self) -> list[events.TaskDeadLettered]:
        """What waits to be repaired. A call that was called off since does not."""
        return [letter for letter in self.dead_letters.values() if letter.step not in self.call_results]

    @property
    def status(self) -> Status:
        """The task's status; the order of these lines is its definition."""
        if self.terminal is not None:
            return _STATUS_BY_END[type(self.terminal)]
        if self.open_dead_letters:
            return "dead_lettered"
        if self.open_approvals or self.open_questions:
            return "waiting"
        if self.open_calls and all(asked.call in self.children for asked in self.open_calls):
            return "waiting"
        return "running" if self.claims else "queued"

    @property
    def open_approvals(self) -> list[events.ApprovalRequested]:
        """Calls that wait for a person's decision."""
        return [asked for call, asked in self.approvals.items() if call not in self.resolutions]

    @property
    def open_questions(self) -> list[events.InputRequested]:
        """Questions that wait for the user, the oldest first."""
        return [asked for call, asked in self.questions.items() if call not in self.call_results]

    @property
    def last_completed(self) -> events.TurnCompleted | None:
        """The last turn that was completed."""
        last = max(self.turns, default=0)
        found = (self.turns[turn].completed for turn in (last, last - 1) if turn in self.turns)
        return next(filter(None, found), None)

    @property
    def open_calls(self) -> list[parts.ToolCall]:
        """Calls of the last completed turn that have no result yet."""
        completed = self.last_completed
        return [asked for asked in completed.calls if asked.call not in self.call_results] if completed else []

    @property
    def refused_calls(self) -> list[str]:
        """Calls of the last completed turn that a person or the clock has refused: their joins may be due."""
        completed = self.last_completed
        refused = (events.ApprovalResolved, events.ToolFailed)
        return (
            [each.call for each in completed.calls if isinstance(self.call_results.get(each.call), refused)]
            if completed
            else []
        )

    def asked_for(self, call: str) -> parts.ToolCall | None:
        """What a turn asked for under a call's id."""
        completed = self.turn(turn_of(call)).completed
        return next((asked for asked in completed.calls if asked.call == call), None) if completed else None

    def unseen_inputs(self, turn: int) -> list[events.InputReceived]:
        """Inputs that came too late for a turn's prompt."""
        return [told for told in self.inputs if told.n > self.turn(turn).base_n]

    def gen(self, step: str) -> int:
        """How often the step was replayed."""
        return self.gens.get(step, 0)

    def tries_away(self, step: str, gen: int) -> int:
        """How many of the failed tries of (step, gen) count for nothing, as its provider was away."""
        away = self.away.get((step, gen))
        return away.tries if away is not None else 0

    def away_since(self, step: str, gen: int) -> datetime | None:
        """Since when (step, gen) waits for a provider that is away; None if it was there since."""
        away = self.away.get((step, gen))
        if away is None or not away.lasts or self.turn(turn_of(step)).has_spoken_since(away.last_n):
            return None
        return away.since

    def message_epoch(self, step: str) -> tuple[int, int]:
        """Timed tries and releases of a step: its message must say both. They only grow, so one is behind in both."""
        step_gen = (step, self.gen(step))
        return self.timer_tries.get(step_gen, 0), self.releases.get(step_gen, 0)

    def turn(self, turn: int) -> TurnState:
        """A turn, empty if nothing is known of it."""
        return self.turns.get(turn) or _nothing_of(turn)

    def has_result(self, step: str) -> bool:
        """Whether a turn or call has its recorded result."""
        return step in self.call_results if "-" in step else self.turn(turn_of(step)).completed is not None

    @property
    def output_so_far(self) -> str | None:
        """The text of the last turn that has any: what a task that is stopped now leaves behind."""
        texts = (self.turns[turn].text for turn in sorted(self.turns, reverse=True))
        return next(filter(None, texts), None)

    def is_last_claim(self, claim: events.StepClaimed) -> bool:
        """Whether nobody else has claimed the (step, gen) since."""
        last = self.claims.get((claim.step, claim.gen))
        return last is not None and last.id == claim.id

    def owns(self, claim: events.StepClaimed) -> bool:
        """Whether a claim is still the last one of its (step, gen), in a task that goes on."""
        return (
            self.terminal is None
            and self.is_last_claim(claim)
            and (claim.step, claim.gen) not in self.released
            and (claim.step, claim.gen) not in self.dead_letters
            and self.gen(claim.step) == claim.gen
        )
