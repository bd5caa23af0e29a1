"""Calls on the wire of a model's server: their arguments, and their ids."""

from __future__ import annotations

import re

import pytest

from inference_worker.dialects.call_names import ARGUMENTS_DEPTH_MAX, CallIds, requested_call
from inference_worker.models.chunks import RequestedCall


@pytest.mark.parametrize(
    ("text", "arguments"), [("", {}), (" \n", {}), ("{}", {}), (' {"a": [1, {"b": null}]} ', {"a": [1, {"b": None}]})]
)
def test_arguments_are_a_json_object_and_nothing_at_all_is_an_empty_one(text: str, arguments: object) -> None:
    assert requested_call("add", text) == RequestedCall("add", arguments)  # type: ignore[arg-type]  # compared only


@pytest.mark.parametrize(
    "text",
    [
        '{"a": ',
        "[1]",
        "null",
        '"{}"',
        "{'a': 1}",
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        '{"a": "\ud800"}',
        '{"a": 1} {"b": 2}',
        '{"a":' * (ARGUMENTS_DEPTH_MAX + 1) + "1" + "}" * (ARGUMENTS_DEPTH_MAX + 1),
        '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_what_is_no_json_object_is_no_failure_of_the_turn(text: str) -> None:
    call = requested_call("add", text)
    assert (call.name, call.arguments) == ("add", None)
    assert call.error


def test_arguments_may_be_nested_some_way() -> None:
    levels = ARGUMENTS_DEPTH_MAX
    assert requested_call("add", '{"a":' * levels + "1" + "}" * levels).error is None


def test_no_arguments_of_a_call_that_was_cut_off_may_be_arguments_to_come() -> None:
    assert requested_call("delete", "", cut_off=True) == RequestedCall("delete", None, "the call was cut off")
    assert requested_call("delete", '{"a": 1}', cut_off=True) == RequestedCall("delete", {"a": 1})


def test_every_server_takes_the_ids_of_calls_and_no_two_of_a_conversation_are_one() -> None:
    """Mistral's API and templates take nine letters or digits, and nothing else."""
    ids = CallIds()
    calls = [f"{turn}-{index}" for turn in (1, 2, 11, 36, 999_999) for index in (0, 1, 10, 37, 127)]
    told = [ids.of_call(call) for _ in range(100) for call in calls]
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", each) for each in told)
    assert len(set(told)) == len(told)
    assert told[:2] == ["c00000100", "c00000101"]


def test_who_takes_a_turn_over_tells_the_same_ids() -> None:
    first, second = CallIds(), CallIds()
    assert [first.of_call(call) for call in ("1-0", "2-0")] == [second.of_call(call) for call in ("1-0", "2-0")]


def test_calls_of_one_id_are_told_apart() -> None:
    """Each task counts its calls from the beginning; a conversation may go over several tasks."""
    ids = CallIds()
    assert [ids.of_call("1-0"), ids.of_call("1-1")] == ["c00000100", "c00000101"]
    assert [ids.of_answer("1-0"), ids.of_answer("1-1")] == ["c00000100", "c00000101"]
    assert ids.of_call("1-0") == "c01000100"
    assert [ids.of_answer("1-0"), ids.of_answer("1-1")] == ["c01000100", "c00000101"]
