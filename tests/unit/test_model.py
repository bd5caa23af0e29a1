"""The explicit-state model, as far as a few seconds go: `make model` searches all of it.

And the model's tables are those of the code: the real fold and decisions say the same of every journal that it meets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import timedelta
from functools import cache
from itertools import product

import pytest
from msgspec.structs import replace

from contracts.errors import ErrorInfo
from contracts.journal import events, parts
from contracts.messages.control import InputCommand, InputMode, RetryCommand
from contracts.messages.work import Work
from mesh.task.decisions import decide
from mesh.task.outbox import OutboxMessage, messages_after, messages_of_replayed
from mesh.task.reconciliation import AwaitedStep, awaited
from mesh.task.state import TaskState
from steward.command_decisions import CarriedOut, ToAppend, decide_command
from tests.model import decisions as model
from tests.model.checker import TooLarge, search
from tests.model.configurations import SHOWN_BY, named, searchable
from tests.model.journal import Event, Journal, Task
from tests.model.rules import ALL_RULES, MUST_BE_NEEDED, Off, Rules
from tests.model.state import Actor, Body
from tests.model.steps import initial
from tests.unit.journals import START, TASK, TENANT, HandMadeJournal, tool_work, turn_work

SMALL = (
    "a turn, crashes",
    "a turn, a retry",
    "a submission",
    "a call, stale reads",
    "two calls, one given up",
    "a turn, a drain, zombies",
    "a turn, a loss, haste",
    "an input, a long turn",
    "a redirect",
    "a hold",
    "a hold, late or twice",
    "holds of two",
    "following, a purge",
    "following, everything",
    "packing by three",
)
ANOTHER_MESSAGE = 99
NOT_DUE_SECONDS = 3600.0
MODES: tuple[InputMode, ...] = ("append", "redirect")


@pytest.mark.parametrize("name", SMALL)
def test_with_all_rules_no_interleaving_breaks_a_promise(name: str) -> None:
    result = search(searchable(name))
    assert result.violation is None, "\n".join(result.trace)


@pytest.mark.parametrize("off", Off, ids=lambda off: f"{off.rule}-{off.name}")
def test_the_absence_of_a_rule_is_found(off: Off) -> None:
    result = search(searchable(SHOWN_BY[off]), frozenset({off}))
    assert result.violation is not None
    assert result.trace


def test_every_rule_that_must_be_needed_has_a_switch() -> None:
    assert {off.rule for off in Off} >= set(MUST_BE_NEEDED)


def test_a_search_is_the_same_each_time() -> None:
    assert search(named("a turn, crashes")) == search(named("a turn, crashes"))


def test_a_configuration_that_is_too_large_says_so() -> None:
    with pytest.raises(TooLarge):
        search(named("a turn, crashes"), states_max=10)


@pytest.mark.parametrize("due", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "a submission",
        "a turn, a retry",
        "a turn, a retry, stranded",
        "a turn, replayed, a retry",
        "a call, a retry",
        "a call, replayed twice",
        "two calls, one given up",
        "an approval",
        "a turn, a drain, zombies",
        "a turn, a retry, a drain",
        "a call, a drain",
        "an input, a drain",
        "a redirect",
    ],
)
def test_the_model_decides_as_the_code_does(name: str, due: bool) -> None:
    configuration = named(name)
    compared = 0
    for journal in journals_of(name):
        state = real_state(journal, configuration.task, due)
        for body, message in deliveries_of(journal, configuration.task):
            assert real_decision(state, body, message) in model_decisions(journal, configuration.task, body, message), (
                told(journal, f"{body} by message {message}")
            )
            compared += 1
    assert compared > 20


@pytest.mark.parametrize(
    "name",
    [
        "a turn, replayed, a retry",
        "a call, a retry",
        "a call, replayed twice",
        "two calls, one given up",
        "an approval",
        "a turn, a drain, zombies",
        "a turn, a retry, a drain",
        "a call, a drain",
        "an input, a drain",
        "a redirect",
    ],
)
def test_the_model_publishes_what_the_code_does(name: str) -> None:
    configuration = named(name)
    for journal in journals_of(name):
        state = real_state(journal, configuration.task)
        for step in steps_of(journal, configuration.task):
            assert bodies_of(messages_after(state, step)) == model.due_after(journal, configuration.task, step), told(
                journal, f"what is due after {step}"
            )
            gen = journal.gen(step)
            if gen > 0 and not journal.ended:
                published = published_by(model.settle_replay(journal, ((step, gen - 1),), ALL_RULES))
                assert bodies_of(messages_of_replayed(state, step)) == published, told(journal, f"a replay of {step}")


@pytest.mark.parametrize("name", ["a turn, a retry", "a turn, replayed, a retry", "a call, a retry"])
def test_the_model_carries_out_a_timer_of_a_later_try_as_the_code_does(name: str) -> None:
    configuration = named(name)
    compared: Counter[str] = Counter()
    for journal in journals_of(name):
        state = real_state(journal, configuration.task)
        for step in steps_of(journal, configuration.task):
            for gen, tries in product(range(3), range(1, 4)):
                command = RetryCommand(task=TASK, tenant=TENANT, by="test", step=step, gen=gen, tries=tries)
                outcome = decide_command(state, command)
                actor = Actor("steward", 1, 1, journal, (), Body("retry", step, gen, tries=tries))
                plan = model.decide(journal, configuration.task, actor, True, ALL_RULES)
                compared[type(outcome).__name__] += 1
                if isinstance(outcome, CarriedOut):
                    assert bodies_of(outcome.again) == published_by(plan), told(journal, str(actor.body))
                else:
                    assert plan == (model.ASK_LEADER,), told(journal, str(actor.body))
    assert compared.keys() == {"CarriedOut", "Unknown"}


@pytest.mark.parametrize("name", ["an input, a drain", "a redirect", "an input, stale reads"])
def test_the_model_carries_out_an_input_as_the_code_does(name: str) -> None:
    configuration = named(name)
    compared: Counter[str] = Counter()
    for journal in journals_of(name):
        state = real_state(journal, configuration.task)
        for number, mode in product(range(2), MODES):
            command = InputCommand(
                task=TASK, tenant=TENANT, by="test", text="hi", mode=mode, command=command_id(number)
            )
            outcome = decide_command(state, command)
            actor = Actor("steward", 1, 1, journal, (), Body("input", gen=number, decision=mode))
            first = model.decide(journal, configuration.task, actor, True, ALL_RULES)[0]
            compared[type(outcome).__name__] += 1
            appends = isinstance(outcome, ToAppend) and outcome.what == ("input.received", "")
            assert appends == (first.event is not None), told(journal, str(actor.body))
            assert appends or isinstance(outcome, CarriedOut), told(journal, str(actor.body))
    assert compared.keys() == {"CarriedOut", "ToAppend"}


@pytest.mark.parametrize("name", ["a call, a loss", "a turn, a retry, a drain", "an approval", "a redirect"])
def test_the_model_misses_the_messages_that_the_code_does(name: str) -> None:
    task = named(name).task
    for journal in journals_of(name):
        waits_for = [] if journal.ended or not journal.queued else model.steps_due(journal, task)
        found = [each for each in awaited(real_state(journal, task)) if isinstance(each, AwaitedStep)]
        by_code = {(each.step.step, each.step.gen, each.bound_to) for each in found}
        by_model = {(step, journal.gen(step), journal.bindings.get((step, journal.gen(step)))) for step in waits_for}
        assert by_code == by_model, told(journal, "what is awaited")


@pytest.mark.parametrize("off", [ALL_RULES, frozenset({Off.BASE_BY_TEXT})])
@pytest.mark.parametrize("name", ["an input, a long turn", "an input, given up"])
def test_who_passes_over_the_deltas_of_completed_turns_decides_as_who_reads_them(name: str, off: Rules) -> None:
    task = named(name).task
    differ: Counter[bool] = Counter()
    for journal in journals_of(name):
        passed_over = journal.cold()
        if passed_over is journal:
            continue
        for step in steps_of(journal, task):
            differ[model.due_after(journal, task, step, off) != model.due_after(passed_over, task, step, off)] += 1
        for body, message in deliveries_of(journal, task):
            actor = Actor("worker", message, 1, journal, (), body)
            both = [model.decide(read, task, actor, True, off) for read in (journal, passed_over)]
            differ[both[0] != both[1]] += 1
    assert differ[False]
    assert bool(differ[True]) == (off != ALL_RULES)


def bodies_of(dues: Iterable[OutboxMessage]) -> list[Body]:
    """Work, and timers of later tries, as the model has them."""
    return [
        Body("retry", payload.step, payload.gen, tries=payload.tries)
        if isinstance(payload, RetryCommand)
        else Body("work", payload.step, payload.gen, tries=payload.tries, releases=payload.releases)
        for payload in (due.payload for due in dues)
        if isinstance(payload, Work | RetryCommand)
    ]


def published_by(plan: model.Plan) -> list[Body]:
    return [operation.body for operation in plan if operation.body is not None]


@cache
def journals_of(name: str) -> list[Journal]:
    """Every journal that a search meets."""
    start = initial(named(name))
    search(named(name), start=start)
    journals = [start.journal]
    for journal in journals:
        # Those without some of their deltas are folds of a reader.
        journals += [longer for longer in journal.children.values() if longer.length == journal.length + 1]
    return journals


def steps_of(journal: Journal, task: Task) -> list[str]:
    turns = [str(turn) for turn in range(1, len(task.calls) + len(journal.inputs) + 1)]
    return turns + [call for turn in turns for call in task.calls_of(turn)]


def deliveries_of(journal: Journal, task: Task) -> Iterator[tuple[Body, int]]:
    """What might be delivered: past, current and future gens, tries and releases, in the bound message or another."""
    releases_max = max(journal.releases.values(), default=-1) + 1
    for step in steps_of(journal, task):
        for gen, tries, releases in product(range(3), range(3), range(releases_max + 1)):
            for message in {journal.bindings.get((step, gen), ANOTHER_MESSAGE), ANOTHER_MESSAGE}:
                yield Body("work", step, gen, tries=tries, releases=releases), message


def command_id(number: int) -> str:
    return f"{TASK}.input.{number}"


def told(journal: Journal, what: str) -> str:
    return f"{what} after {'; '.join(map(str, journal.events()))}"


def model_decisions(journal: Journal, task: Task, body: Body, message: int) -> set[str]:
    """The model's decision by the code's name. To settle where nothing is due looks like dropping."""
    actor = Actor("worker", message, 1, journal, (), body)
    plan = model.decide(journal, task, actor, True, ALL_RULES)
    if plan == model.SETTLE_DEAD_LETTER:
        return {"SettleDeadLetter"}
    if plan[0].event is not None:
        return {{"task.queued": "Begin", "step.claimed": "Claim"}[plan[0].event.kind]}
    simple = {model.NAK: {"Later"}, model.ACK: {"Drop", "Settle"}, model.ASK_LEADER: {"Refuse"}}
    return simple.get(plan[0], {"Settle"})


def real_decision(state: TaskState, body: Body, message: int) -> str:
    if "-" in body.step:
        work: Work = replace(tool_work(body.step, body.gen), tries=body.tries, releases=body.releases)
    else:
        work = turn_work(turn=int(body.step), gen=body.gen, tries=body.tries, releases=body.releases)
    return type(decide(state, work, message, START + timedelta(minutes=1))).__name__


def real_state(journal: Journal, task: Task, due: bool = False) -> TaskState:
    """What the real fold makes of a journal of the model."""
    written = HandMadeJournal()
    for event in journal.events():
        _write(written, event, task, 0.0 if due else NOT_DUE_SECONDS)
    return written.state


def _write(journal: HandMadeJournal, event: Event, task: Task, delay_seconds: float) -> None:
    step, turn = event.step, int(model.turn_of(event.step or "1"))
    match event.kind:
        case "task.queued":
            journal.queued()
        case "step.claimed" if event.author is not None:
            claimed = journal.claimed(step, event.gen, message=event.author[0], delivery=event.author[1])
            assert claimed.base == event.base
        case "step.released":
            journal.add(events.StepReleased, step=step, gen=event.gen, reason="drain")
        case "output.delta" | "turn.restarted" | "turn.completed":
            _write_of_turn(journal, event, task, turn)
        case "input.received":
            (mode,) = (mode for mode in MODES if mode == event.decision)
            journal.add(events.InputReceived, text="hi", by="ops", mode=mode, command=command_id(event.gen))
        case "tool.completed":
            journal.tool_completed(step)
        case "tool.failed":
            error = ErrorInfo("outcome-unknown", "it may have had its effect")
            journal.add(events.ToolFailed, turn=turn, call=step, tool="add", error=error, outcome="unknown")
        case "approval.requested":
            journal.add(events.ApprovalRequested, call=step, tool="add", arguments={}, expires_at=START)
        case "approval.resolved":
            decision = "approved" if event.decision == "approved" else "denied"
            journal.add(events.ApprovalResolved, call=step, decision=decision, by="ops")
        case "task.retrying":
            journal.add(
                events.TaskRetrying,
                step=step,
                gen=event.gen,
                reason="test",
                delay_seconds=delay_seconds,
                tries=journal.state.tries.get((step, event.gen), 0) + 1,
                timer=True,
            )
        case "task.dead_lettered":
            journal.dead_lettered(step, event.gen)
        case "task.replayed":
            journal.replayed(*event.steps)
        case "task.completed":
            journal.completed()
        case _:
            journal.add(events.TaskCancelled, by="ops")


def _write_of_turn(journal: HandMadeJournal, event: Event, task: Task, turn: int) -> None:
    match event.kind:
        case "output.delta":
            journal.delta("so far", turn)
        case "turn.restarted":
            said = [n for n, _ in journal.state.turn(turn).parts]
            journal.restarted(min(said, default=journal.state.next_n), turn)
        case _:
            asked = task.calls_of(event.step)
            journal.add(
                events.TurnCompleted,
                turn=turn,
                text="done",
                calls=[parts.ToolCall(call, "add", {}, approval=call in task.approvals) for call in asked],
                finish_reason="stop",
                usage=parts.Usage(1, 2),
                timings=parts.Timings(total_seconds=1.0),
            )
