"""Any order of deliveries, redeliveries, zombies, cancels, inputs and approvals keeps what the journal promises.

The real fold, decisions, dues, commands and conversation are run by the processes of `small_mesh` in an order that
hypothesis draws. After each step the journal is judged; in the end everything may run out fairly, and the task must
come to its end.

By default the examples are few, and the same in each run. To search for longer, with other ones each time:

    TASKMESH_MACHINE_EXAMPLES=5000 python -m pytest tests/unit/test_agent_machine.py
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TypeVar

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from contracts.codec import encode
from contracts.journal import events, parts
from contracts.messages import control
from contracts.messages.work import Work
from contracts.tasks import TaskRequest
from mesh.errors import JournalCorrupt
from mesh.task import decisions, outbox
from mesh.task import fold as folding
from mesh.task.decisions import Claim, queued_event
from mesh.task.outbox import deadline_timer
from mesh.task.replays import to_repair
from mesh.task.state import TaskState
from steward import command_decisions
from tests.unit.journal_judge import Judge
from tests.unit.journals import SEQUENCES_PER_EVENT, START, TASK, TENANT
from tests.unit.small_broker import Delivery, Message, SmallBroker, View
from tests.unit.small_mesh import SmallMesh
from tests.unit.small_writer import Asked, Luck, Place, Steps

EXAMPLES = int(os.environ.get("TASKMESH_MACHINE_EXAMPLES", "0"))
"""0: the few of every run."""
EXAMPLES_USUALLY = 400
STEPS_MAX = 40
INPUTS_MAX = 4
ROUNDS_MAX = 200
"""Rounds after which a task that runs fairly must have come to its end: a few for each step that it can have."""

ASKED: list[Asked] = ["plain", "approval", "question", "child", "unknown", "no-object", "no-question"]
FINE: list[Luck] = ["fine"]
PLACES: list[int | Place] = ["completed", "settling", "acking"]
TO_THE_END = 200
"""More than any process has."""
PICK = st.integers(0, 7)
HAPPENINGS = [
    what
    for what, weight in {
        "pulls": 8,
        "goes on": 6,
        "lease passes": 6,
        "dies": 1,
        "sweeps": 2,
        "duplicate window passes": 1,
        "queues fill up": 1,
        "queues have room": 1,
        "user appends": 1,
        "user redirects": 1,
        "user approves": 3,
        "user denies": 1,
        "user cancels": 1,
        "timer fires": 1,
        "child completes": 3,
        "child fails": 1,
        "replays": 2,
        "replays some": 1,
        "replays with edits": 2,
    }.items()
    for _ in range(weight)
]
STEPS: st.SearchStrategy[int | Place] = st.sampled_from([TO_THE_END] * 16 + PLACES * 6 + list(range(16)))
LUCK = st.sampled_from(
    20 * FINE
    + [
        "retryable",
        "retryable",
        "busy",
        "busy",
        "hopeless",
        "hopeless",
        "terminal",
        "compacts",
        *["switches"] * 4,
        "drains",
        "drains",
    ]
)
T = TypeVar("T")


def picked(among: list[T], pick: int) -> T:
    """One of them."""
    return among[pick % len(among)]


class Agent(Judge, RuleBasedStateMachine):
    """One task, and everybody who has to do with it."""

    def __init__(self) -> None:
        super().__init__()
        self.mesh = SmallMesh(TaskRequest(input="hello"), [], continues_prefix=True)
        self.processes: list[tuple[Delivery | None, Steps]] = []
        self.said = 0
        self.edited = 0

    @initialize(
        script=st.lists(st.lists(st.sampled_from(ASKED), min_size=1, max_size=3), min_size=1, max_size=3),
        max_turns=st.sampled_from([4, 4, 4, 3, 2, 1]),
        tokens=st.sampled_from([None, None, None, 2, 2, 3, 1]),
        budget=st.sampled_from([None, None, None, 4, 6, 2, 9, 20]),
        deadline_seconds=st.sampled_from([None, None, None, None, None, None, 60, 0]),
        continues_prefix=st.booleans(),
        acks_are_lost=st.booleans(),
        begun=st.booleans(),
        timed=st.booleans(),
    )
    def submit(  # noqa: PLR0917 - hypothesis gives them by name
        self,
        script: list[list[Asked]],
        max_turns: int,
        tokens: int | None,
        budget: int | None,
        deadline_seconds: int | None,
        continues_prefix: bool,
        acks_are_lost: bool,
        begun: bool,
        timed: bool,
    ) -> None:
        """`begun`: the ingress got as far as the journal's first event; `timed`: and to the timer of its deadline."""
        request = TaskRequest(
            input="hello",
            max_turns=max_turns,
            max_output_tokens=tokens,
            budget_tokens=budget,
            tools=["add", "wipe", "spawn_task"],
        )
        deadline = None if deadline_seconds is None else START + timedelta(seconds=deadline_seconds)
        self.mesh = SmallMesh(request, script, continues_prefix, deadline, acks_are_lost)
        self.mesh.broker.on_publish = self.judge_publish
        work = self.mesh.submit()
        if begun:
            stamp = events.Stamp("0" * 26, TASK, TENANT, 0, START)
            self.mesh.broker.append(0, queued_event(stamp, work))
            for due in deadline_timer(View(self.mesh.broker).state) if timed else ():
                self.mesh.broker.send(due)

    # What happens. One rule for all: hypothesis leaves out some of a machine's rules in each example.

    @precondition(lambda self: self.mesh.broker.published)
    @rule(what=st.sampled_from(HAPPENINGS), pick=PICK, behind=st.integers(0, 3), steps=STEPS, luck=LUCK)
    def happens(self, what: str, pick: int, behind: int, steps: int | Place, luck: Luck) -> None:
        """What is not possible now is left, and somebody pulls a message instead."""
        if what != "pulls" and self.happens_to_task(what, pick):
            return
        match what:
            case "goes on" if self.processes:
                self.advance(picked(self.processes, pick), steps, luck)
            case "dies" if self.processes:
                self.processes.remove(picked(self.processes, pick))
            case "lease passes" if self.held:
                self.mesh.broker.give_back(picked(self.held, pick))  # Its process knows nothing of it.
            case "sweeps" if self.stranded:
                self.start_sweep(picked(self.stranded, pick))
                self.advance(self.processes[-1], steps, "fine")
            case "duplicate window passes":
                self.mesh.broker.forget_ids()
            case "queues fill up" | "queues have room":
                self.mesh.broker.full = what == "queues fill up"
            case _ if self.deliverable:
                self.start(picked(self.deliverable, pick), behind)
                self.advance(self.processes[-1], steps, luck)
            case _:
                pass

    def happens_to_task(self, what: str, pick: int) -> bool:
        """What comes from outside; false if it is not possible now."""
        publish = self.mesh.broker.publish
        match what:
            case "user appends" | "user redirects" if self.truth.exists and self.said < INPUTS_MAX:
                mode: control.InputMode = "append" if what == "user appends" else "redirect"
                command = control.input_message_id(TASK, f"{self.said}")
                self.said += 1
                publish(
                    control.InputCommand(
                        task=TASK, tenant=TENANT, by="user", text="and this?", mode=mode, command=command
                    ),
                    command,
                )
            case "user approves" | "user denies" if self.truth.approvals:
                # Maybe what was decided before.
                decision: control.Decision = "approved" if what == "user approves" else "denied"
                call = picked(list(self.truth.approvals), pick)
                publish(
                    control.ApprovalCommand(task=TASK, tenant=TENANT, by="user", call=call, decision=decision),
                    control.approval_message_id(TASK, call, decision),
                )
            case "user cancels" if self.truth.exists and pick == 0:  # Seldom: it ends everything.
                publish(control.CancelCommand(task=TASK, tenant=TENANT, by="user"), control.cancel_message_id(TASK))
            case "timer fires" if self.mesh.broker.timers:
                self.mesh.fire(picked(sorted(self.mesh.broker.timers), pick))
            case "child completes" | "child fails" if self.children_running:
                status = "completed" if what == "child completes" else "failed"
                self.mesh.end_child(picked(self.children_running, pick), status, tokens=pick)
            case "replays" | "replays some" | "replays with edits" if self.truth.open_dead_letters:
                steps = to_repair(self.truth)
                if what == "replays some":
                    steps = [picked(steps, pick)]
                self.mesh.replay(steps, self.edits(steps, pick) if what == "replays with edits" else None)
            case _:
                return False
        return True

    # Helpers

    @property
    def deliverable(self) -> list[Message]:
        return [each for each in self.mesh.broker.queue.values() if each.held is None and not each.stranded]

    @property
    def stranded(self) -> list[Message]:
        return [each for each in self.mesh.broker.queue.values() if each.stranded]

    @property
    def held(self) -> list[Delivery]:
        return [each.held for each in self.mesh.broker.queue.values() if each.held is not None]

    @property
    def children_running(self) -> list[str]:
        return [child for child in self.mesh.children if child not in self.mesh.ended_children]

    def edits(self, steps: list[parts.StepGen], pick: int) -> control.Edits:
        """New arguments for each call, or another request."""
        self.edited += 1
        calls = [each.step for each in steps if (asked := self.truth.asked_for(each.step)) and asked.tool == "add"]
        arguments = {call: {"a": 1, "edited": self.edited} for call in calls} if pick % 2 else {}
        return control.Edits(
            input=f"edited {self.edited}" if pick & 2 or not arguments else None,
            pool=f"other-{self.edited}" if pick & 4 else None,
            arguments=arguments or None,
        )

    def start(self, message: Message, behind: int = 0) -> None:
        delivery = self.mesh.broker.deliver(message)
        is_work = isinstance(message.payload, Work)
        steps = (self.mesh.work if is_work else self.mesh.carry_out_command)(delivery, behind)
        self.processes.append((delivery, steps))

    def start_sweep(self, message: Message) -> None:
        self.processes.append((None, self.mesh.sweep(message)))

    def advance(self, process: tuple[Delivery | None, Steps], steps: int | Place, luck: Luck) -> None:
        """Let a process go on for some steps, or as far as a place, or to its end."""
        self.mesh.luck = luck
        self.mesh.place = ""
        for _ in range(steps if isinstance(steps, int) else TO_THE_END):
            if next(process[1], self) is self:
                self.processes.remove(process)
                break
            self.judge()
            if self.mesh.place == steps:
                break
        self.mesh.luck = "fine"

    @invariant()
    def judge(self) -> None:
        super().judge()

    # The end

    def teardown(self) -> None:
        """With no more faults, and with timers that fire, the task comes to its end, and no message stays behind."""
        self.processes.clear()
        self.mesh.broker.full = False
        for delivery in self.held:
            self.mesh.broker.give_back(delivery)
        for _ in range(ROUNDS_MAX):
            if self.run_one():
                continue
            if not self.mesh.broker.waits_for_room:
                if self.truth.terminal is not None or not self.mesh.broker.published:
                    break
                self.judge_waiting()
            self.mesh.fire(self.next_timer)
        assert not self.mesh.broker.published or self.truth.terminal is not None
        assert not self.mesh.broker.queue
        if self.truth.terminal is not None:
            assert not [child for child in self.children_running if child in self.recorded_children]

    @property
    def recorded_children(self) -> set[str]:
        return {started.child for started in self.truth.children.values()}

    def run_one(self) -> bool:
        """Somebody does one thing, to its end. False if there is nothing to do."""
        if self.deliverable:
            self.start(self.deliverable[0])
            self.advance(self.processes[-1], TO_THE_END, "fine")
            assert not self.processes, "a process runs on for ever"
        elif self.stranded:
            self.start_sweep(self.stranded[0])
            self.advance(self.processes[-1], TO_THE_END, "fine")
        elif self.truth.terminal is None and self.truth.open_dead_letters:
            self.mesh.broker.forget_ids()  # Who finds them still open tries it again, later.
            self.mesh.replay(to_repair(self.truth))
        elif self.truth.terminal is None and self.children_running:
            self.mesh.end_child(self.children_running[0])
        else:
            return False
        self.judge()
        return True

    @property
    def next_timer(self) -> str:
        timers = self.mesh.broker.timers
        return min(timers, key=lambda subject: (timers[subject].at or START, subject))


def settings() -> hypothesis.settings:
    """A few examples, always the same; many, and others each time, if somebody asks for them."""
    return hypothesis.settings(
        max_examples=EXAMPLES or EXAMPLES_USUALLY,
        stateful_step_count=STEPS_MAX,
        derandomize=not EXAMPLES,
        database=None,
    )


TestAnyOrderKeepsThePromises = Agent.TestCase
TestAnyOrderKeepsThePromises.settings = settings()


# Negative controls: with one rule switched off, the machine must find it.


def unfenced(self: SmallBroker, revision: int, event: events.JournalEvent) -> int:
    self.journal.append((self.revision + SEQUENCES_PER_EVENT, encode(event)))
    return self.revision


FOLDED_CLAIM = folding._claim
EPOCH = TaskState.message_epoch


def claim_by_deltas(state: TaskState, event: events.StepClaimed) -> None:
    turn = state.turn(event.turn)
    begins = not turn.parts and not turn.reasoning
    FOLDED_CLAIM(state, replace(event, base=event.n if begins else turn.base_n))


def epoch_without_releases(self: TaskState, step: str) -> tuple[int, int]:
    return EPOCH(self, step)[0], 0


@pytest.mark.parametrize(
    ("where", "name", "broken"),
    [
        pytest.param(SmallBroker, "append", unfenced, id="the fence"),
        pytest.param(outbox, "_timer", lambda *_: [], id="the timers"),
        pytest.param(command_decisions, "messages_refused", lambda *_: [], id="what waited for room"),
        pytest.param(decisions, "_decide_call", lambda *_: Claim(), id="the approval"),
        pytest.param(decisions, "lacks_its_end", lambda *_: False, id="what a turn leads to"),
        pytest.param(folding, "_claim", claim_by_deltas, id="the base that a claim says"),
        pytest.param(TaskState, "message_epoch", epoch_without_releases, id="that a released step's message is gone"),
    ],
)
def test_a_rule_that_is_switched_off_is_missed(
    where: object, name: str, broken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, broken)
    # The first failure is enough: nobody reads it.
    first_only = hypothesis.settings(
        settings(), max_examples=2000, derandomize=True, phases=[hypothesis.Phase.generate], report_multiple_bugs=False
    )
    with pytest.raises((AssertionError, JournalCorrupt)):
        run_state_machine_as_test(Agent, settings=first_only)
