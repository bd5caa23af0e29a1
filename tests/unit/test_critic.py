"""The critic by tables: which dead letters it gets, what it is shown, and what its tool refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from contracts.codec import encode
from contracts.errors import ErrorInfo
from contracts.identifiers import derived_id, new_id
from contracts.journal.parts import StepGen, ToolCall
from contracts.messages.control import Edits
from contracts.messages.work import DeadLetter
from contracts.records.tools import needs_approval
from contracts.streams import critic_consumer
from contracts.tasks import ApprovalMode, Message, TaskRequest
from mesh.broker.provisioning import declared
from mesh.clock import now
from mesh.configuration.critic_table import PER_HOUR_MAX, CriticConfiguration
from mesh.configuration.mesh_toml import Configuration, parse_configuration
from mesh.configuration.settings import Settings
from mesh.errors import SettingsError
from mesh.task.state import TaskState
from steward.critic import (
    PART_CHARACTERS_MAX,
    RECORD_CHARACTERS_MAX,
    TURNS_MAX,
    Ask,
    Leave,
    chosen,
    critics_task,
    decide,
    input_of,
    is_critics,
)
from steward.critic_pace import CriticPace, admitted
from tests.unit.journals import TASK, TENANT, HandMadeJournal
from tool_runner.tools.propose_replay import ProposeReplayArguments, check, replayer
from tool_runner.tools.registry import built_in_tools
from tool_runner.tools.tool import ArgumentsInvalid, ToolRefused

UNUSED: Any = None
CRITIC = CriticConfiguration(codes=["provider-error"])
PROPOSE = built_in_tools(Settings(), UNUSED)["propose_replay"]


def letter(code: str = "provider-error", **fields: Any) -> DeadLetter:
    """A record of the first turn, as a worker writes it."""
    known: dict[str, Any] = {"tenant": TENANT, "task": TASK, "step": "1", "gen": 0, "message": '{"kind":"turn"}'}
    return DeadLetter(
        id=new_id(),
        time=now(),
        stream="TASKS",
        subject="tasks.default.normal.default",
        sequence=1,
        deliveries=1,
        errors=[ErrorInfo("rate-limited", "later"), ErrorInfo(code, "it broke")],
        **known | fields,
    )


def dead_lettered() -> HandMadeJournal:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.dead_lettered()
    return journal


# Configuration


def configured(text: str) -> Configuration:
    return parse_configuration(text.encode())


def test_without_its_table_there_is_no_critic_and_no_consumer() -> None:
    assert configured("").critic is None
    names = {f"{each.stream}.{each.name}" for each in declared(Settings()).consumers}
    assert "DEAD_LETTERS.critic" not in names


def test_its_table_is_read_and_declares_a_consumer_of_what_comes_from_then_on() -> None:
    configuration = configured(
        """
        [pools.default]
        [pools.thorough]
        [critic]
        codes = ["deliveries-exhausted", "tool-error"]
        pool = "thorough"
        model = "m"
        instructions = "Look."
        tenants = ["acme"]
        per_hour_max = 5
        proposals_max = 1
        """
    )
    assert configuration.critic == CriticConfiguration(
        codes=["deliveries-exhausted", "tool-error"],
        pool="thorough",
        model="m",
        instructions="Look.",
        tenants=["acme"],
        per_hour_max=5,
        proposals_max=1,
    )
    consumers = declared(Settings(configuration=configuration)).consumers
    assert critic_consumer() in consumers
    config = critic_consumer().as_config()
    assert (config["deliver_policy"], config["filter_subject"]) == ("new", "dead.*.*")


def test_by_default_its_tasks_run_in_the_default_pool_and_are_bounded() -> None:
    critic = configured('[critic]\ncodes = ["tool-error"]').critic
    assert critic is not None
    assert (critic.pool, critic.model, critic.tenants, critic.per_hour_max, critic.proposals_max) == (
        "default",
        None,
        None,
        60,
        3,
    )
    assert "propose_replay" in critic.instructions


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "mesh.toml: critic: Object missing required field `codes`"),
        ("codes = []", "mesh.toml: critic.codes: Expected `array` of length >= 1"),
        ('codes = ["Bad Code"]', "mesh.toml: critic.codes[0]: Expected"),
        ('codes = ["a"]\npool = "none"', "mesh.toml: critic.pool: there is no pool 'none'; default"),
        ('codes = ["a"]\nper_hour_max = 0', "mesh.toml: critic.per_hour_max: Expected `int` >= 1"),
        ('codes = ["a"]\nproposals_max = 0', "mesh.toml: critic.proposals_max: Expected `int` >= 1"),
        ('codes = ["a"]\ninstructions = ""', "mesh.toml: critic.instructions: Expected `str` of length >= 1"),
        ('codes = ["a"]\ntenants = []', "mesh.toml: critic.tenants: Expected `array` of length >= 1"),
        ('codes = ["a"]\ncode = "b"', "mesh.toml: critic: Object contains unknown field `code`"),
    ],
)
def test_a_wrong_key_is_named(table: str, said: str) -> None:
    with pytest.raises(SettingsError) as failed:
        configured(f"[critic]\n{table}")
    assert str(failed.value).startswith(said)


def test_a_critic_that_is_no_table_is_named() -> None:
    with pytest.raises(SettingsError, match=r"mesh\.toml: critic: Expected `object`"):
        configured("critic = true")


# Which records


@pytest.mark.parametrize(
    ("record", "taken"),
    [
        (letter(), True),
        (letter("provider-overloaded"), False),
        (letter("rate-limited"), False),
        (letter(tenant="acme"), True),
        (letter(task=None, step=None, gen=None), False),
    ],
    ids=["its code", "another code", "the code of an earlier try alone", "any tenant", "no task"],
)
def test_a_record_is_taken_by_the_code_of_its_last_error(record: DeadLetter, taken: bool) -> None:
    assert chosen(CRITIC, record) is taken


@pytest.mark.parametrize(("tenant", "taken"), [("acme", True), ("other", False)])
def test_where_tenants_are_named_only_theirs_are_taken(tenant: str, taken: bool) -> None:
    assert chosen(CriticConfiguration(codes=["provider-error"], tenants=["acme"]), letter(tenant=tenant)) is taken


def test_an_open_dead_letter_becomes_a_task_with_the_record_as_its_input() -> None:
    record = letter()
    outcome = decide(CriticConfiguration(codes=["x"], model="m", instructions="Look."), record, dead_lettered().state)
    assert isinstance(outcome, Ask)
    assert outcome.task == derived_id("critic", TASK, "1", "0")
    assert outcome.request == TaskRequest(
        input=input_of(record),
        instructions="Look.",
        model="m",
        tools=["propose_replay"],
        max_turns=TURNS_MAX,
        metadata={"critic_of": TASK, "critic_step": "1", "critic_gen": 0},
    )


def ended(journal: HandMadeJournal) -> None:
    journal.cancelled()


def replayed(journal: HandMadeJournal) -> None:
    journal.replayed(("1", 0))


@pytest.mark.parametrize("afterwards", [ended, replayed])
def test_one_that_somebody_has_repaired_or_ended_is_left(afterwards: Callable[[HandMadeJournal], None]) -> None:
    journal = dead_lettered()
    afterwards(journal)
    assert decide(CRITIC, letter(), journal.state) == Leave("closed")


def test_one_whose_journal_is_gone_is_left() -> None:
    assert decide(CRITIC, letter(), TaskState(TENANT, TASK)) == Leave("closed")


@pytest.mark.parametrize(("proposals_max", "asked"), [(1, False), (2, True)])
def test_a_step_that_was_replayed_often_enough_is_left_to_people(proposals_max: int, asked: bool) -> None:
    journal = dead_lettered()
    journal.replayed(("1", 0))
    journal.claimed(gen=1)
    journal.dead_lettered(gen=1)
    critic = CriticConfiguration(codes=["provider-error"], proposals_max=proposals_max)
    outcome = decide(critic, letter(gen=1), journal.state)
    assert isinstance(outcome, Ask) is asked
    assert asked or outcome == Leave("proposals-spent")


@pytest.mark.parametrize(
    ("metadata", "own"),
    [
        (None, False),
        ({"critic_of": TASK, "critic_step": "1", "critic_gen": 0}, True),
        ({"critic_of": TASK, "critic_step": "1", "critic_gen": 1}, False),
        ({"critic_of": CRITIC.pool}, False),
    ],
    ids=["none", "its own", "of another gen", "a user's"],
)
def test_its_own_tasks_are_told_by_their_id(metadata: dict[str, Any] | None, own: bool) -> None:
    journal = HandMadeJournal()
    queued = journal.queued(TaskRequest(input="a record", metadata=metadata))
    assert is_critics(replace(queued, task=critics_task(TASK, "1", 0))) is own


def test_its_own_dead_letters_are_left() -> None:
    journal = HandMadeJournal()
    queued = journal.queued(TaskRequest(input="a", metadata={"critic_of": "x", "critic_step": "1", "critic_gen": 0}))
    journal.state.queued = replace(queued, task=derived_id("critic", "x", "1", "0"))
    journal.claimed()
    journal.dead_lettered()
    assert decide(CRITIC, letter(), journal.state) == Leave("critics-own")


# What it is shown


def test_a_record_is_shown_whole() -> None:
    record = letter(request=TaskRequest(input="hello"))
    shown = json.loads(input_of(record))
    assert (shown["task"], shown["request"], shown["errors"][-1]["code"]) == (
        TASK,
        {"input": "hello"},
        "provider-error",
    )


@pytest.mark.parametrize(
    "request_body",
    [
        TaskRequest(input="ü" * 200_000),
        TaskRequest(input=[Message("user", "x" * 1000)] * 300),
        TaskRequest(input="hello", instructions="i" * 200_000),
        TaskRequest(input="\x01" * 200_000, instructions="\x01" * 200_000),
    ],
    ids=["input", "messages", "instructions", "characters that are longer in JSON"],
)
def test_a_large_record_is_cut_and_says_so(request_body: TaskRequest) -> None:
    record = letter(request=request_body, message="m" * 500_000)
    text = input_of(record)
    assert len(text) <= RECORD_CHARACTERS_MAX
    shown, _, note = text.rpartition("\n\n")
    assert "was cut to fit" in note
    # What it takes to propose anything comes before all that is long.
    assert '"code":"provider-error"' in shown
    assert TASK in shown
    assert shown.count("m" * (PART_CHARACTERS_MAX + 1)) == 0


# The hour


def taken(per_hour_max: int, *tasks: tuple[str, float]) -> list[bool]:
    """Which of these tasks, each at a time, the critic gets."""
    pace, answers = CriticPace(), []
    for task, at in tasks:
        after = admitted(pace, task, per_hour_max, at)
        answers.append(after is not None)
        pace = after or pace
    return answers


def test_beyond_the_hours_tasks_none_is_taken_until_one_is_an_hour_old() -> None:
    tasks = [("a", 0.0), ("b", 10.0), ("c", 3599.0), ("c", 3600.0), ("d", 3601.0), ("d", 3610.0)]
    assert taken(2, *tasks) == [True, True, False, True, False, True]


def test_a_task_that_is_tried_again_counts_once() -> None:
    assert taken(2, *((task, 0.0) for task in "aabac")) == [True, True, True, True, False]


def test_what_a_clock_far_ahead_has_counted_counts_for_nothing() -> None:
    assert taken(1, ("a", 10_000.0), ("b", 0.0)) == [True, True]


def test_the_fullest_hour_fits_a_message() -> None:
    pace = CriticPace([(new_id(), now().timestamp() // 1)] * PER_HOUR_MAX)
    assert len(encode(pace)) < 1024 * 1024


# The tool


@pytest.mark.parametrize(
    ("task", "operator", "needed"),
    [(None, None, True), ("never", None, True), ("destructive", None, True), (None, "never", False)],
)
def test_only_the_operator_can_let_a_proposal_go_without_a_person(
    task: ApprovalMode | None, operator: ApprovalMode | None, needed: bool
) -> None:
    assert needs_approval(PROPOSE.declaration, task, operator) is needed


@pytest.mark.parametrize(
    "arguments",
    [
        {"task": TASK},
        {"task": "../x", "reason": "r"},
        {"task": TASK, "reason": ""},
        {"task": TASK, "reason": "r", "edits": {"inputs": "x"}},
        {"task": TASK, "reason": "r", "edits": {"arguments": {"1-0": "x"}}},
        {"task": TASK, "reason": "r", "steps": []},
    ],
)
def test_arguments_that_are_none_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentsInvalid):
        PROPOSE.read(arguments)


def proposal(**edits: Any) -> ProposeReplayArguments:
    return ProposeReplayArguments(task=TASK, reason="r", edits=Edits(**edits) if edits else None)


def call_dead_lettered() -> TaskState:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.asks(ToolCall("1-0", "add", {"a": 1}), ToolCall("1-1", "add", {"a": 2}))
    journal.claimed("1-0")
    journal.dead_lettered("1-0")
    return journal.state


@pytest.mark.parametrize("edits", [{}, {"pool": "default"}, {"arguments": {"1-0": {"a": 3}}}])
def test_a_proposal_replays_what_is_open(edits: dict[str, Any]) -> None:
    assert check(call_dead_lettered(), proposal(**edits), ("default",)) == [StepGen("1-0", 0)]


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({"pool": "none"}, "edits: there is no pool 'none'; default"),
        ({"arguments": {"1-1": {"a": 3}}}, "edits: arguments: call 1-1 is none of the steps that are replayed"),
        ({"input": "x" * 600_000}, "edits: larger than"),
    ],
)
def test_edits_that_can_not_be_are_refused(edits: dict[str, Any], said: str) -> None:
    with pytest.raises(ToolRefused, match=said):
        check(call_dead_lettered(), proposal(**edits), ("default",))


def test_a_task_that_is_not_there_is_refused() -> None:
    with pytest.raises(ToolRefused, match="there is no task"):
        check(TaskState(TENANT, TASK), proposal(), ("default",))


@pytest.mark.parametrize("afterwards", [ended, replayed])
def test_where_nothing_is_open_any_more_nothing_is_refused_and_nothing_replayed(
    afterwards: Callable[[HandMadeJournal], None],
) -> None:
    journal = dead_lettered()
    afterwards(journal)
    assert check(journal.state, proposal(pool="none"), ("default",)) == []


def test_a_replay_says_which_call_asked_for_it() -> None:
    assert replayer(TASK, "1-0", 0) == f"propose_replay:{TASK}.1-0"
    assert replayer(TASK, "1-0", 2) == f"propose_replay:{TASK}.1-0.g2"
