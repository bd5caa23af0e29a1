"""Subjects: built only from names within the grammar, never the same for different names, and taken apart again."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import subjects
from contracts.errors import InvalidName
from tests.support import names

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def names_of(first: str, others: str, length_max: int) -> st.SearchStrategy[str]:
    """Names by their alphabets: of the first character, and of those behind it."""
    return st.builds(str.__add__, st.sampled_from(first), st.text(others, max_size=length_max - 1))


tenants = names_of(LETTERS, LETTERS + "-", 32)
task_ids = st.text("0123456789abcdefghjkmnpqrstvwxyz", min_size=26, max_size=26)
lane_names = names_of(LETTERS, LETTERS + "-_", 48)
calls = st.builds("{}-{}".format, st.integers(1, 999_999), st.integers(0, 999_999))
priorities = st.sampled_from(subjects.PRIORITIES)
kinds = st.sampled_from(subjects.CONTROL_KINDS)

Names = tuple[str, ...]


class Builder(NamedTuple):
    """A function that builds a subject or key, the names that it takes, and who takes it apart."""

    build: Callable[..., str]
    names: st.SearchStrategy[Names]
    parse: Callable[[str], object] | None = None


lanes = st.tuples(lane_names, priorities, tenants)
tasks_of_tenants = st.tuples(tenants, task_ids)
BUILDERS = {
    "tasks": Builder(subjects.tasks, lanes, subjects.parse_tasks),
    "backlog": Builder(subjects.backlog, lanes, subjects.parse_backlog),
    "turns": Builder(subjects.turns, lanes, subjects.parse_turns),
    "tools": Builder(subjects.tools, st.tuples(lane_names), lambda subject: (subjects.parse_tools(subject),)),
    "control": Builder(subjects.control, st.tuples(kinds, tenants), subjects.parse_control),
    "journal": Builder(subjects.journal, tasks_of_tenants),
    "journal_log": Builder(subjects.journal_log, tasks_of_tenants, lambda s: subjects.parse_journal(s)[:2]),
    "journal_delta": Builder(subjects.journal_delta, tasks_of_tenants, lambda s: subjects.parse_journal(s)[:2]),
    "live": Builder(subjects.live, tasks_of_tenants),
    "dead_letter": Builder(subjects.dead_letter, tasks_of_tenants, subjects.parse_dead_letter),
    "malformed_dead_letter": Builder(subjects.malformed_dead_letter, st.tuples(tenants)),
    "task_key": Builder(subjects.task_key, tasks_of_tenants, names.parse_task_key),
    "lane_key": Builder(subjects.lane_key, st.tuples(lane_names, priorities)),
    "lane_statistics": Builder(subjects.lane_statistics, st.tuples(lane_names, priorities)),
    "lane_waiting": Builder(subjects.lane_waiting, st.tuples(st.sampled_from(["TASKS", "TOOLS"]), lane_names)),
    "provider_changed": Builder(subjects.provider_changed, st.tuples(lane_names)),
}
CHECKS: dict[str, tuple[Callable[[str], str], str]] = {
    "tenant": (subjects.check_tenant, subjects.TENANT_PATTERN),
    "task": (subjects.check_task, subjects.TASK_PATTERN),
    "pool": (subjects.check_pool, subjects.LANE_NAME_PATTERN),
    "tool": (subjects.check_tool, subjects.LANE_NAME_PATTERN),
    "call": (subjects.check_call, subjects.CALL_PATTERN),
    "priority": (subjects.check_priority, "|".join(subjects.PRIORITIES)),
}
# What would reach further than its own subject, or end it early, if it ever got there.
SMUGGLED = [
    "*",
    ">",
    ".",
    "\0",
    "\r",
    "\n",
    "\r\n",
    " ",
    "\t",
    "$",
    "$JS.API",
    ".*",
    ".>",
    "\u0661",
    "\uff11",
    "\u2028",
]


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS.keys())
@given(data=st.data())
def test_different_names_give_different_subjects(builder: Builder, data: st.DataObject) -> None:
    one, other = data.draw(builder.names), data.draw(builder.names)
    assert (builder.build(*one) == builder.build(*other)) is (one == other)


@given(data=st.data())
def test_no_two_builders_give_the_same_subject(data: st.DataObject) -> None:
    """Keys are no subjects: they live behind the prefix of their bucket."""
    name, other = data.draw(
        st.lists(st.sampled_from(sorted(set(BUILDERS) - {"task_key", "lane_key"})), min_size=2, max_size=2, unique=True)
    )
    one = BUILDERS[name].build(*data.draw(BUILDERS[name].names))
    assert one != BUILDERS[other].build(*data.draw(BUILDERS[other].names))


@pytest.mark.parametrize("name", [name for name, builder in BUILDERS.items() if builder.parse])
@given(data=st.data())
def test_a_subject_gives_its_names_back(name: str, data: st.DataObject) -> None:
    builder = BUILDERS[name]
    names = data.draw(builder.names)
    assert builder.parse is not None
    assert builder.parse(builder.build(*names)) == names


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS.keys())
@given(data=st.data())
def test_a_subject_is_plain(builder: Builder, data: st.DataObject) -> None:
    """Nothing in it that broker, shell or log could take for something else; a wildcard only where a filter ends."""
    subject = builder.build(*data.draw(builder.names))
    body = subject.removesuffix(".*") if builder.build in (subjects.journal, subjects.live) else subject
    assert re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+", body)


def test_the_journal_s_filter_covers_its_two_subjects_alone() -> None:
    task = "0" * 26
    assert subjects.parse_journal(subjects.journal_log("a", task)) == ("a", task, "log")
    assert subjects.parse_journal(subjects.journal_delta("a", task)) == ("a", task, "delta")
    with pytest.raises(InvalidName):
        subjects.parse_journal(subjects.journal("a", task))


@pytest.mark.parametrize("kind", CHECKS)
@given(text=st.text() | st.text(LETTERS + "-_.*> \n\0", max_size=60))
def test_a_name_is_taken_if_and_only_if_all_of_it_is_in_the_grammar(kind: str, text: str) -> None:
    check, pattern = CHECKS[kind]
    if re.fullmatch(pattern, text, re.ASCII):
        assert check(text) == text
    else:
        with pytest.raises(InvalidName):
            check(text)


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS.keys())
@given(data=st.data(), smuggled=st.sampled_from(SMUGGLED))
def test_nothing_is_smuggled_in_with_a_name(builder: Builder, smuggled: str, data: st.DataObject) -> None:
    names = list(data.draw(builder.names))
    which = data.draw(st.integers(0, len(names) - 1))
    where = data.draw(st.integers(0, len(names[which])))
    names[which] = names[which][:where] + smuggled + names[which][where:]
    with pytest.raises(InvalidName):
        builder.build(*names)


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS.keys())
@given(data=st.data())
def test_no_name_is_empty(builder: Builder, data: st.DataObject) -> None:
    names = list(data.draw(builder.names))
    names[data.draw(st.integers(0, len(names) - 1))] = ""
    with pytest.raises(InvalidName):
        builder.build(*names)


@pytest.mark.parametrize("wrong", [None, 1, b"acme", ["acme"], ("acme",)])
def test_a_name_is_text(wrong: object) -> None:
    for check, _ in CHECKS.values():
        with pytest.raises(InvalidName):
            check(wrong)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("name", [name for name, builder in BUILDERS.items() if builder.parse])
@given(data=st.data())
def test_what_a_parser_takes_was_built(name: str, data: st.DataObject) -> None:
    """A parser refuses everything else, a subject with one character changed, added or taken away included."""
    builder = BUILDERS[name]
    assert builder.parse is not None
    subject = builder.build(*data.draw(builder.names))
    where = data.draw(st.integers(0, len(subject)))
    inserted = data.draw(st.sampled_from(["", *SMUGGLED]) | st.characters())
    mangled = subject[:where] + inserted + subject[where + data.draw(st.integers(0, 1)) :]
    try:
        parsed = builder.parse(mangled)
    except InvalidName:
        return
    assert isinstance(parsed, tuple)
    other_part = mangled.replace(".log", ".delta") if name == "journal_log" else mangled
    assert mangled in (builder.build(*parsed), other_part)


@given(tenant=tenants, other=tenants, task=task_ids)
def test_a_key_never_reaches_into_another_tenant(tenant: str, other: str, task: str) -> None:
    key = subjects.task_key(tenant, task)
    assert names.parse_task_key(key) == (tenant, task)
    assert key.startswith(f"{other}.") is (tenant == other)


def test_dead_letters_without_a_tenant_or_a_task_collide_with_none() -> None:
    assert subjects.malformed_dead_letter(None) == "dead._.malformed"
    for check, name in ((subjects.check_tenant, subjects.NO_TENANT), (subjects.check_task, subjects.MALFORMED)):
        with pytest.raises(InvalidName):
            check(name)


@given(calls)
def test_a_call_is_a_turn_and_an_index(call: str) -> None:
    assert subjects.check_call(call) == call
    for other in (f"0{call}", call.replace("-", "-0"), call.replace("-", "--"), f"-{call}", f"{call}-1"):
        with pytest.raises(InvalidName):
            subjects.check_call(other)


@given(one=st.text(min_size=1, max_size=255), other=st.text(min_size=1, max_size=255))
def test_a_worker_s_key_is_one_token_and_its_own(one: str, other: str) -> None:
    """Names of hosts are not ours to choose: whatever is in one is written so that a key can hold it (NATS ADR-8)."""
    assert re.fullmatch(r"[-_=a-zA-Z0-9]+", subjects.worker_key(one))
    assert (subjects.worker_key(one) == subjects.worker_key(other)) == (one == other)


def test_a_worker_s_key_can_be_read() -> None:
    assert subjects.worker_key("inference_worker-4711@a.example") == "inference_worker-4711=40a=2eexample"
    for wrong in ("", "a" * 256):
        with pytest.raises(InvalidName):
            subjects.worker_key(wrong)
