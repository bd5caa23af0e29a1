"""What a client's replay comes to, what it changes, and how an operator's is put together. Pure."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.api.dead_letters import ListedDeadLetter, ReplayRequest
from contracts.errors import ErrorInfo, InvalidPayload
from contracts.identifiers import new_id
from contracts.journal import events
from contracts.journal.parts import RecordedEdits, StepGen, ToolCall
from contracts.messages.control import Edits
from contracts.tasks import BODY_BYTES_MAX
from ingress import replay_decisions
from ingress.parsing import parse_dead_letter_filter, parse_record_sequence
from mesh.serving.http import RequestRefused
from mesh.task.replays import after_replay, edits_error
from meshctl.commands.dead_letters import Count, by_task, edits_for
from tests.unit.journals import HandMadeJournal

TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FIRST, SECOND = StepGen("1-0", 0), StepGen("1-1", 0)


def gave_up(*calls: str) -> HandMadeJournal:
    """A journal whose turn asked for two calls; these gave up."""
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.asks(ToolCall("1-0", "add", {"a": 1}), ToolCall("1-1", "add", {"a": 2}))
    for call in calls:
        journal.dead_lettered(call)
    return journal


# Which dead letters


def test_without_steps_all_that_is_open_is_replayed() -> None:
    assert replay_decisions.steps_of(gave_up("1-0", "1-1").state, ReplayRequest()) == ([FIRST, SECOND], False)
    assert replay_decisions.steps_of(gave_up("1-1").state, ReplayRequest()) == ([SECOND], False)


def test_named_steps_are_replayed_once_each() -> None:
    wanted = ReplayRequest(steps=[SECOND, SECOND])
    assert replay_decisions.steps_of(gave_up("1-0", "1-1").state, wanted) == ([SECOND], False)


def test_what_was_replayed_is_known_again_also_after_the_end() -> None:
    journal = gave_up("1-0")
    journal.replayed(("1-0", 0))
    assert replay_decisions.steps_of(journal.state, ReplayRequest(steps=[FIRST])) == ([FIRST], True)
    journal.completed()
    assert replay_decisions.steps_of(journal.state, ReplayRequest(steps=[FIRST])) == ([FIRST], True)


@pytest.mark.parametrize("steps", [None, [SECOND], [FIRST, SECOND], [StepGen("1-0", 1)], [StepGen("7", 0)]])
def test_what_is_not_open_is_refused(steps: list[StepGen] | None) -> None:
    journal = gave_up("1-0")
    if steps is None:
        journal.replayed(("1-0", 0))
    wanted = ReplayRequest(steps=steps)
    assert not replay_decisions.shows(journal.state, wanted), "the leader is asked before"
    with pytest.raises(RequestRefused) as refused:
        replay_decisions.steps_of(journal.state, wanted)
    assert refused.value.code == "conflict"


def test_an_ended_task_is_not_replayed() -> None:
    journal = gave_up("1-0")
    journal.cancelled()
    for wanted in (ReplayRequest(), ReplayRequest(steps=[FIRST])):
        with pytest.raises(RequestRefused):
            replay_decisions.steps_of(journal.state, wanted)


# What it changes


@given(
    steps=st.lists(st.sampled_from([FIRST, SECOND]), min_size=1, max_size=2, unique=True),
    edits=st.none()
    | st.builds(
        RecordedEdits,
        instructions=st.none() | st.just("Be brief."),
        input=st.none() | st.just("other"),
        model=st.none() | st.just("small"),
        pool=st.none() | st.just("other"),
        arguments=st.none() | st.dictionaries(st.sampled_from(["1-0", "1-1"]), st.just({"a": 9}), max_size=2),
    ),
)
def test_what_is_told_beforehand_is_what_the_fold_makes_of_it(
    steps: list[StepGen], edits: RecordedEdits | None
) -> None:
    journal = gave_up("1-0", "1-1")
    before = deepcopy(journal.state)
    told = after_replay(journal.state, steps, edits)
    assert journal.state == before, "the state it was told of is as it was"
    event = journal.add(events.TaskReplayed, steps=steps, by="nobody", edits=edits)
    assert event.n == told.next_n - 1
    told.changed_at, told.revision = journal.state.changed_at, journal.state.revision
    told.milestone_bytes = journal.state.milestone_bytes
    assert told == journal.state


def test_a_plan_has_what_is_before_and_after() -> None:
    state = gave_up("1-0", "1-1").state
    edits = Edits(arguments={"1-1": {"a": 9}}, model="small")
    plan = replay_decisions.plan(state, after_replay(state, [SECOND], edits), [SECOND], None)  # type: ignore[arg-type]  # unused
    assert plan.steps == [StepGen("1-1", 1)]
    assert (plan.request.before.model, plan.request.after.model) == (None, "small")
    assert [(call, each.before, each.after) for call, each in plan.arguments.items()] == [("1-1", {"a": 2}, {"a": 9})]


def test_arguments_are_only_for_calls_that_are_replayed() -> None:
    state = gave_up("1-0", "1-1").state
    edits = Edits(arguments={"1-1": {"a": 9}})
    assert edits_error(state, edits, ["1-0", "1-1"]) is None
    replay_decisions.check_edits(state, [SECOND], edits, ["default"])
    with pytest.raises(InvalidPayload, match="call 1-1 is none of the steps"):
        replay_decisions.check_edits(state, [FIRST], edits, ["default"])


def test_a_pool_has_to_be_there() -> None:
    state = gave_up("1-0").state
    replay_decisions.check_edits(state, [FIRST], Edits(pool="other"), ["default", "other"])
    with pytest.raises(InvalidPayload, match="there is no pool 'other'"):
        replay_decisions.check_edits(state, [FIRST], Edits(pool="other"), ["default"])


def test_a_request_with_its_edits_has_a_bound() -> None:
    state = gave_up("1-0").state
    replay_decisions.check_size(after_replay(state, [FIRST], Edits(input="x" * (BODY_BYTES_MAX - 1_000))))
    with pytest.raises(RequestRefused) as refused:
        replay_decisions.check_size(after_replay(state, [FIRST], Edits(input="x" * BODY_BYTES_MAX)))
    assert refused.value.code == "payload-too-large"


@pytest.mark.parametrize(
    ("wanted", "recorded", "same"),
    [
        (None, None, True),
        (Edits(), None, True),
        (None, RecordedEdits(input="a"), False),
        (Edits(input="a"), RecordedEdits(input="a"), True),
        (Edits(input="a"), RecordedEdits(input="a", model="m"), False),
        (Edits(arguments={"1-0": {"a": 1, "b": 2}}), RecordedEdits(arguments={"1-0": {"b": 2, "a": 1}}), True),
    ],
)
def test_a_replay_is_the_same_if_its_edits_are(wanted: Edits | None, recorded: RecordedEdits, *, same: bool) -> None:
    journal = gave_up("1-0", "1-1")
    replayed = [journal.add(events.TaskReplayed, steps=[FIRST], by="test", edits=recorded)]
    replay_decisions.check_recorded(Edits(model="another"), [SECOND], replayed)  # That one is of others.
    if same:
        replay_decisions.check_recorded(wanted, [FIRST], replayed)
        return
    with pytest.raises(RequestRefused) as refused:
        replay_decisions.check_recorded(wanted, [FIRST], replayed)
    assert refused.value.code == "conflict"


# Queries


def test_a_time_may_have_any_offset_and_an_unescaped_plus() -> None:
    for since in ("2026-01-02T03:04:05Z", "2026-01-02T05:04:05+02:00", "2026-01-02T05:04:05 02:00"):
        assert parse_dead_letter_filter({"since": since}).since == TIME


@pytest.mark.parametrize("value", ["0", "-1", "1.0", "x", "", "1" * 19, "\u0661"])
def test_what_can_not_be_a_record_is_none(value: str) -> None:
    assert parse_record_sequence(value) is None


# Many at once


def letter(task: str | None, step: str = "1", gen: int = 0, *, is_open: bool = True) -> ListedDeadLetter:
    return ListedDeadLetter(
        record_sequence=1,
        id=new_id(),
        time=TIME,
        open=is_open,
        error=ErrorInfo("tool-error", "it broke"),
        stream="TOOLS",
        subject="tools.add",
        deliveries=1,
        task=task,
        step=step if task else None,
        gen=gen if task else None,
    )


def test_a_task_that_is_on_two_pages_is_replayed_once() -> None:
    first, second = new_id(), new_id()
    pages = [letter(first, "1-1"), letter(second), letter(None), letter(first, "1-0"), letter(first, "1-1")]
    assert by_task(pages, None) == {first: [SECOND, FIRST], second: [StepGen("1", 0)]}
    assert by_task(pages, ["1-0"]) == {first: [FIRST]}
    assert by_task([letter(first, is_open=False)], None) == {}


def test_new_arguments_are_those_of_every_call_that_is_replayed() -> None:
    turn = StepGen("2", 0)
    assert edits_for(Edits(), None, [FIRST]) is None
    assert edits_for(Edits(), {"a": 9}, [turn]) is None
    assert edits_for(Edits(model="m"), {"a": 9}, [FIRST, SECOND, turn]) == Edits(
        model="m", arguments={"1-0": {"a": 9}, "1-1": {"a": 9}}
    )


def test_a_count_says_what_was_refused_and_why() -> None:
    count = Count(replayed=3, left=1)
    count.refused.update({"conflict": 2, "not-found": 1})
    assert count.text(dry_run=False) == "replayed 3, refused 3 (2 conflict, 1 not-found), not tried 1"
    assert Count(replayed=1).text(dry_run=True) == "would replay 1, refused 0"
