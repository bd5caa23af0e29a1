"""Identifiers: unique where they are new, the same for the same parts where they are derived."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import identifiers, subjects

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
parts = st.lists(st.text(max_size=20), max_size=4)


def number_of(identifier: str) -> int:
    """The value that an id spells in base 32."""
    value = 0
    for character in identifier:
        value = value * 32 + ALPHABET.index(character)
    return value


def test_a_new_id_is_a_ulid_of_this_moment() -> None:
    before = time.time_ns() // 1_000_000
    identifier = identifiers.new_id()
    after = time.time_ns() // 1_000_000
    assert subjects.check_task(identifier) == identifier
    assert before <= number_of(identifier) >> 80 <= after


def test_new_ids_differ() -> None:
    assert len({identifiers.new_id() for _ in range(10_000)}) == 10_000


def test_new_ids_sort_by_the_time_of_their_creation(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [0, 999_999, 1_000_000, 1_700_000_000_000_000_000, 2**48 * 1_000_000 - 1]
    found = []
    for moment in moments:
        monkeypatch.setattr(time, "time_ns", lambda moment=moment: moment)
        found.append(identifiers.new_id()[:10])
    assert found == sorted(found)
    assert found[0] == found[1] == "0" * 10
    assert found[2] == "0" * 9 + "1"
    assert found[-1] == "7" + "z" * 9


@given(st.integers(0, 2**128 - 1))
def test_base_32_spells_the_number(value: int) -> None:
    assert number_of(identifiers._base32(value)) == value


@given(parts)
def test_a_derived_id_is_a_task_id(names: list[str]) -> None:
    derived = identifiers.derived_id(*names)
    assert subjects.check_task(derived) == derived
    assert derived == identifiers.derived_id(*names)


@given(parts, parts)
def test_different_parts_give_different_ids(one: list[str], other: list[str]) -> None:
    assert (identifiers.derived_id(*one) == identifiers.derived_id(*other)) is (one == other)


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_the_border_between_parts_counts(one: str, middle: str, last: str) -> None:
    assert identifiers.derived_id(one + middle, last) != identifiers.derived_id(one, middle + last)


def test_the_same_key_is_another_task_for_another_tenant() -> None:
    assert identifiers.task_id_for_key("acme", "order-1") != identifiers.task_id_for_key("other", "order-1")


@given(st.integers(1, 999), st.integers(0, 99), st.integers(0, 99))
def test_message_ids_of_different_steps_differ(turn: int, index: int, gen: int) -> None:
    task = "0" * 26
    call = identifiers.call_id(turn, index)
    assert identifiers.turn_message_id(task, turn, gen) == f"{task}.{turn}.g{gen}"
    assert identifiers.call_message_id(task, turn, call, gen) == f"{task}.{turn}.{turn}-{index}.g{gen}"
    assert identifiers.turn_message_id(task, turn, gen) != identifiers.turn_message_id(task, turn, gen + 1)
    assert identifiers.turn_step(turn) != call
