"""What must always be so of a small mesh's task: its journal, its queues, and what folding and deciding say."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

from contracts import subjects
from contracts.codec import encode
from contracts.journal import events
from contracts.journal.events import decode_event
from contracts.journal.parts import Usage
from contracts.messages import control
from contracts.messages.work import ToolWork, Work
from contracts.records.status import STATUSES
from contracts.retries import NAK_SECONDS_MAX
from mesh.task.budget import budget_left, budget_left_with, tokens, tree_usage
from mesh.task.conversation import whole_conversation
from mesh.task.decisions import Claim, Later, Refuse, Settle, decide
from mesh.task.fold import fold
from mesh.task.limits import is_last_turn
from mesh.task.outbox import messages_after, unasked
from mesh.task.records import record
from mesh.task.state import TaskState
from tests.unit.journals import TASK, TENANT
from tests.unit.small_broker import Payload, View
from tests.unit.small_mesh import SmallMesh, message_id_of
from tests.unit.small_worker import check_conversation


class Judge:
    """Reads what is new in the journal, and holds it against what was there before it."""

    mesh: SmallMesh

    def __init__(self) -> None:
        super().__init__()
        self.truth = TaskState(TENANT, TASK)
        self.claims: list[events.StepClaimed] = []
        self.results: Counter[str] = Counter()
        self.inputs: Counter[str | None] = Counter()
        self.completed: Counter[int] = Counter()
        self.told = 0
        self.arguments: dict[str, dict[str, Any]] = {}
        """What replays have made of them, by call."""
        self.changes: dict[str, Any] = {}
        """What replays have made of the request's fields."""

    def judge_publish(self, payload: Payload, message_id: str) -> None:
        """Each step's work has one id, and goes out once what it builds on is there, and with what was edited."""
        if not isinstance(payload, Work):
            return
        self.catch_up()
        state = self.truth
        assert message_id == message_id_of(payload)
        assert payload.tries <= state.timer_tries.get((payload.step, payload.gen), 0)
        assert payload.releases <= state.releases.get((payload.step, payload.gen), 0)
        if isinstance(payload, ToolWork):
            asked = state.asked_for(payload.call)
            assert asked is not None
            assert asked.error is None
            assert not asked.approval or state.resolutions[payload.call].decision == "approved"
            assert (payload.tool, payload.arguments) == (asked.tool, asked.arguments)
            assert payload.arguments == self.arguments.get(payload.call, payload.arguments)
        elif payload.turn > 1:
            before = state.turn(payload.turn - 1).completed
            assert before is not None
            assert all(asked.call in state.call_results for asked in before.calls)

    def judge(self) -> None:
        """What is new, and what follows from it."""
        if self.catch_up():
            self.judge_fold()
            self.judge_decisions()

    def catch_up(self) -> bool:
        """Fold what is new; whether there was anything."""
        before = self.told
        for sequence, payload in self.mesh.broker.journal[before:]:
            event = decode_event(payload)
            assert not isinstance(event, events.UnknownEvent)
            self.judge_event(event)
            fold(self.truth, sequence, event)
            self.told += 1
        return self.told > before

    def judge_event(self, event: events.JournalEvent) -> None:
        """An event against what was there before it."""
        state = self.truth
        assert state.terminal is None, f"{event} after the end"
        assert event.n == self.told
        self.judge_budget(event)
        match event:
            case events.StepClaimed():
                assert event.turn >= max(state.turns, default=1), "a turn that the task has left behind"
                assert not event.call or event.call not in state.call_results
                bound_to = state.bindings.get((event.step, event.gen), event.message)
                assert bound_to == event.message, "the step is bound to another message"
                self.claims.append(event)
            case events.TurnCompleted():
                assert not state.turn(event.turn).outdated, "it goes on with what was edited since"
                self.completed[event.turn] += 1
                assert self.completed[event.turn] == 1
            case events.OutputDelta():
                turn = state.turn(event.turn)
                assert not turn.parts or turn.model_of_text == turn.model, "two models speak in one turn"
            case events.InputReceived():
                self.inputs[event.command] += 1
                assert self.inputs[event.command] == 1
                self.judge_result(event.call)
            case events.ToolCompleted():
                asked = state.asked_for(event.call)
                assert asked is not None
                assert event.result == asked.arguments == self.arguments.get(event.call, asked.arguments)
                self.judge_result(event.call)
            case events.TaskRetrying():
                assert (event.step, event.gen) not in state.dead_letters
                assert event.timer == (event.delay_seconds > NAK_SECONDS_MAX)
            case events.TaskReplayed():
                assert {(each.step, each.gen) for each in event.steps} <= state.dead_letters.keys()
                self.judge_edits(event)
            case events.TaskExpired():
                assert state.output_so_far is None
                assert self.mesh.deadline is not None
                assert event.time >= self.mesh.deadline
            case events.TaskCompleted() if event.incomplete == "deadline":
                assert event.output == state.output_so_far
                assert self.mesh.deadline is not None
                assert event.time >= self.mesh.deadline
            case events.ToolFailed() | events.SubtaskCompleted():
                self.judge_result(event.call)
            case events.ApprovalResolved():
                assert event.call not in state.resolutions
                if event.decision != "approved":
                    self.judge_result(event.call)
            case events.TaskCompleted():
                completed = state.turn(max(state.turns)).completed
                assert completed is not None
                assert event.output == (completed.text or state.output_so_far or "")
                assert event.incomplete or not (completed.calls or state.unseen_inputs(completed.turn))
            case _:
                pass

    def judge_edits(self, event: events.TaskReplayed) -> None:
        """From here on they hold: `judge_fold` and `judge_publish` look."""
        edits = event.edits
        if edits is not None:
            assert set(edits.arguments or {}) <= {each.step for each in event.steps}
            self.arguments |= edits.arguments or {}
            self.changes |= {name: value for name in ("input", "pool") if (value := getattr(edits, name)) is not None}

    def judge_budget(self, event: events.JournalEvent) -> None:
        """No model is asked with nothing left, and all that is given lies within the budget."""
        state, budget = self.truth, self.mesh.request.budget_tokens
        if isinstance(event, events.TurnCompleted):
            left = budget_left(state)
            assert left is None or left > 0 or event.usage == Usage(), "a model was asked with nothing left"
            assert event.budget_left_tokens == budget_left_with(state, event.usage)
        if isinstance(event, events.SubtaskStarted) and event.call not in state.children:
            assert (event.budget_tokens is None) == (budget is None)
            running = [each for call, each in state.children.items() if call not in state.call_results]
            given = sum(each.budget_tokens or 0 for each in [*running, event])
            assert budget is None or tokens(tree_usage(state)) + given < budget, "nothing is left for the task itself"

    def judge_result(self, call: str | None) -> None:
        if call is not None:
            self.results[call] += 1
            assert self.results[call] == 1, f"call {call} has two results"

    def judge_fold(self) -> None:
        """I9, and what a state must be."""
        state = self.truth
        again = View(self.mesh.broker).state
        assert again == state
        assert self.fold_without_deltas() == state, "it hangs on deltas that nobody has to read"
        if state.queued is None:
            return
        kept = copy.deepcopy(state)
        assert state.request is not None
        assert {name: getattr(state.request, name) for name in self.changes} == self.changes
        for call, arguments in self.arguments.items():
            asked = state.asked_for(call)
            assert asked is not None
            assert asked.arguments == arguments
        assert state.events_after_end == 0
        assert state.status in STATUSES
        encode(record(state))
        active = Counter(claim.step for claim in self.claims if state.owns(claim))
        assert all(count == 1 for count in active.values())
        assert set(state.call_results) <= {
            asked.call for turn in state.turns.values() if turn.completed for asked in turn.completed.calls
        }
        for turn in range(1, max(state.turns, default=0) + 2):
            check_conversation(state, turn)
        whole_conversation(state)
        for step in self.steps():
            assert messages_after(state, step) == messages_after(again, step)
        assert state == kept, "looking at a state has changed it"

    def fold_without_deltas(self) -> TaskState:
        """What is folded of the milestones up to the last completed turn, and of everything after it."""
        state = TaskState(TENANT, TASK)
        journal = [(sequence, decode_event(payload)) for sequence, payload in self.mesh.broker.journal]
        anchor = max(
            (at for at, (_, event) in enumerate(journal) if isinstance(event, events.TurnCompleted)), default=-1
        )
        for at, (sequence, event) in enumerate(journal):
            if at > anchor or isinstance(event, events.UnknownEvent) or not events.is_delta(event):
                fold(state, sequence, event, holes_allowed=at <= anchor)
        return state

    def judge_decisions(self) -> None:
        """Everything that lies in a queue can be decided on; nothing is done before its time, or after the end."""
        state = self.truth
        for message in self.mesh.broker.queue.values():
            if isinstance(message.payload, Work):
                decision = decide(state, message.payload, message.sequence, self.mesh.now)
                assert not isinstance(decision, Later | Refuse), f"{message.payload} lies there for nothing"
        if state.queued is None:
            return
        for turn in state.turns.values():
            for asked in turn.completed.calls if turn.completed else ():
                work = ToolWork(
                    task=TASK,
                    tenant=TENANT,
                    turn=turn.turn,
                    call=asked.call,
                    gen=state.gen(asked.call),
                    tries=state.message_epoch(asked.call)[0],
                    releases=state.message_epoch(asked.call)[1],
                    tool=asked.tool,
                    arguments=asked.arguments,
                )
                decision = decide(state, work, state.bindings.get((work.step, work.gen), 1), self.mesh.now)
                if state.terminal is not None:
                    assert decision == Settle()
                elif asked.approval and asked.call not in state.resolutions:
                    assert decision != Claim()

    def steps(self) -> list[str]:
        calls = [asked.call for turn in self.truth.turns.values() if turn.completed for asked in turn.completed.calls]
        return [*map(str, self.truth.turns), *calls]

    def judge_waiting(self) -> None:
        """Nothing is left to do, and the task is not over: then it waits for a person, and a clock runs."""
        state = self.truth
        pending = [(step, gen) for step, gen in state.retry_at if state.gen(step) == gen]
        if pending:
            for step, gen in pending:
                name = control.retry_timer_name(step, gen, state.timer_tries[step, gen])
                assert subjects.timer_at("retry", TENANT, TASK, name) in self.mesh.broker.timers, (
                    f"nothing brings {step}"
                )
            return
        assert state.status == "waiting"
        assert state.open_approvals or state.open_questions
        last = state.last_completed
        assert last is not None
        assert unasked(state, last) is None
        assert not is_last_turn(state, last)
        assert self.mesh.broker.timers, "nobody would ever notice that nobody answers"
