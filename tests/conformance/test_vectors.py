"""The vectors of the wire, run against this implementation and against the JSON Schemas.

An implementation in another language runs the same files: each says at its top what its cases mean.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest

from contracts import identifiers, subject_filters, subjects
from contracts.api import sse
from contracts.api.inputs import TaskInput
from contracts.codec import decode, encode
from contracts.errors import InvalidName, TaskmeshError
from contracts.generation.schemas import STREAMED_EVENT_TYPES, named_types
from contracts.journal.events import Event, UnknownEvent, decode_event, is_delta
from contracts.messages import notifications
from contracts.messages.control import (
    AnyCommand,
    ApprovalCommand,
    CancelCommand,
    ChildDoneCommand,
    DeadlineCommand,
    InputCommand,
    ReplayCommand,
    RetryCommand,
    RoomCommand,
    approval_message_id,
    cancel_message_id,
    child_done_message_id,
    deadline_message_id,
    decode_control,
    input_message_id,
    replay_message_id,
    retry_message_id,
)
from contracts.messages.work import decode_work
from contracts.records.status import links_of
from contracts.tasks import TaskRequest, canonical, fingerprint
from contracts.triggers import conditions, rules, templates
from tests.support import names

pytestmark = pytest.mark.conformance

SPEC = Path(__file__).resolve().parents[2] / "libs" / "contracts" / "spec"
EVENT_TYPES = [str(kind.__struct_config__.tag) for kind in STREAMED_EVENT_TYPES]
NAMED = ("cases", "encode", "decode")
"""Sections whose cases have names."""
EDGE_ONLY = {"stream.gap", "snapshot", "output.preview"}


@functools.cache
def vectors(name: str) -> dict[str, Any]:
    """One file of vectors."""
    document: dict[str, Any] = json.loads((SPEC / "vectors" / f"{name}.json").read_text(encoding="utf-8"))
    return document


def cases(name: str, section: str = "cases") -> list[Any]:
    """The cases of a section, each under its name or number."""
    return [
        pytest.param(case, id=case["name"] if isinstance(case, dict) and section in NAMED else None)
        for case in vectors(name)[section]
    ]


def payload_of(case: dict[str, Any], key: str) -> bytes:
    """The bytes of a case: given as a JSON value, as text or in base64."""
    if "base64" in case:
        return base64.b64decode(case["base64"])
    text: str = case["text"] if "text" in case else json.dumps(case[key])
    return text.encode("utf-8")


@functools.cache
def schema(name: str) -> jsonschema_rs.Draft202012Validator:
    """A validator of one of the committed schemas, which must need no other."""
    document = json.loads((SPEC / "schemas" / f"{name}.json").read_text(encoding="utf-8"))
    return jsonschema_rs.Draft202012Validator(document)


def schema_accepts(name: str, payload: bytes) -> bool:
    """Whether a payload is JSON, and the schema takes it."""
    try:
        value = json.loads(payload.decode("utf-8"), parse_constant=_refuse)
    except ValueError:
        return False
    return schema(name).is_valid(value)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def check_schema(name: str, case: dict[str, Any], payload: bytes) -> None:
    """Hold a case against its schema, unless the case says that a schema can't tell."""
    expected = case.get("schema", case["valid"])
    if expected is not None:
        assert schema_accepts(name, payload) is expected


# Events


def decode_any(event_type: str, payload: bytes) -> Event | UnknownEvent | msgspec.Struct:
    """Decode what a client receives: a stored event, or one of the two that only the edge sends."""
    if event_type in EDGE_ONLY:
        return decode(payload, named_types()[event_type])
    return decode_event(payload)


@pytest.mark.parametrize("case", cases("events"))
def test_an_event_is_taken_or_refused(case: dict[str, Any]) -> None:
    payload = payload_of(case, "event")
    if not case["valid"]:
        with pytest.raises(TaskmeshError):
            decode_any(case["type"], payload)
        return
    event = decode_any(case["type"], payload)
    if not case.get("known", True):
        assert isinstance(event, UnknownEvent)
        assert event.head.type == case["type"]
        return
    assert event.__struct_config__.tag == case["type"]
    assert decode_any(case["type"], encode(event)) == event
    if "part" in case:
        assert isinstance(event, Event)
        assert is_delta(event) is (case["part"] == "delta")


@pytest.mark.parametrize("case", cases("events"))
def test_the_schemas_of_events_agree(case: dict[str, Any]) -> None:
    payload = payload_of(case, "event")
    if case["type"] in EVENT_TYPES:
        check_schema(case["type"], case, payload)
        check_schema("event", case, payload)
    else:
        # The schema of any event is that of this version: readers skip what it refuses for its type alone.
        assert not schema_accepts("event", payload)


def test_every_event_type_has_a_valid_and_an_invalid_vector() -> None:
    for valid in (True, False):
        covered = {case["type"] for case in vectors("events")["cases"] if case["valid"] is valid}
        assert covered >= set(EVENT_TYPES)


# Work, requests


@pytest.mark.parametrize("case", cases("work"))
def test_a_work_message_is_taken_or_refused(case: dict[str, Any]) -> None:
    payload = payload_of(case, "message")
    if case["valid"]:
        work = decode_work(payload, case["subject"])
        assert work.step == case["step"]
        assert decode_work(encode(work), case["subject"]) == work
    else:
        with pytest.raises(TaskmeshError):
            decode_work(payload, case["subject"])


@pytest.mark.parametrize("case", cases("work"))
def test_the_schemas_of_work_agree(case: dict[str, Any]) -> None:
    payload = payload_of(case, "message")
    expected = case.get("schema", case["valid"])
    if expected is not None:
        assert any(schema_accepts(name, payload) for name in ("work.turn", "work.tool")) is expected


def control_message_id(command: AnyCommand) -> str | None:
    """The Nats-Msg-Id of a command; None if it has none."""
    match command:
        case CancelCommand():
            return cancel_message_id(command.task)
        case InputCommand():
            assert command.command == input_message_id(command.task, command.command.rpartition(".")[2])
            return command.command
        case ApprovalCommand():
            return approval_message_id(command.task, command.call, command.decision)
        case ChildDoneCommand():
            return child_done_message_id(command.child)
        case ReplayCommand():
            return replay_message_id(command.task, command.steps)
        case RetryCommand():
            return retry_message_id(command.task, command.step, command.gen, command.tries)
        case DeadlineCommand():
            return deadline_message_id(command.task)
        case RoomCommand():
            return None


@pytest.mark.parametrize("case", cases("control"))
def test_a_command_is_taken_or_refused(case: dict[str, Any]) -> None:
    payload = payload_of(case, "message")
    if case["valid"]:
        command = decode_control(payload, case["subject"])
        assert control_message_id(command) == case["message_id"]
        assert decode_control(encode(command), case["subject"]) == command
    else:
        with pytest.raises(TaskmeshError):
            decode_control(payload, case["subject"])


@pytest.mark.parametrize("case", cases("control"))
def test_the_schemas_of_commands_agree(case: dict[str, Any]) -> None:
    payload = payload_of(case, "message")
    accepted = [name for name in named_types() if name.startswith("control.") and schema_accepts(name, payload)]
    expected = case.get("schema", case["valid"])
    assert accepted == ([f"control.{case['message']['kind']}"] if expected else [])


@pytest.mark.parametrize("case", cases("task_inputs"))
def test_an_input_is_taken_or_refused(case: dict[str, Any]) -> None:
    payload = payload_of(case, "input")
    accepted = [name for name in named_types() if name.startswith("task_input.") and schema_accepts(name, payload)]
    assert accepted == ([f"task_input.{case['input']['kind']}"] if case["valid"] else [])
    kind: Any = TaskInput
    if case["valid"]:
        said = decode(payload, kind)
        assert decode(encode(said), kind) == said
    else:
        with pytest.raises(TaskmeshError):
            decode(payload, kind)


@pytest.mark.parametrize("case", cases("task_requests"))
def test_a_task_request_is_taken_or_refused(case: dict[str, Any]) -> None:
    payload = payload_of(case, "request")
    check_schema("task_request", case, payload)
    if case["valid"]:
        request = decode(payload, TaskRequest)
        assert decode(encode(request), TaskRequest) == request
    else:
        with pytest.raises(TaskmeshError):
            decode(payload, TaskRequest)


# Trigger rules


@pytest.mark.parametrize("case", cases("trigger_rules"))
def test_a_rule_is_taken_or_refused(case: dict[str, Any]) -> None:
    payload = encode(case["rule"])
    assert schema_accepts("trigger_rule", payload) is case.get("schema", True)
    if case["valid"]:
        assert rules.decode_rule(payload).name == case["rule"]["name"]
        return
    with pytest.raises(TaskmeshError):
        rules.decode_rule(payload)


@pytest.mark.parametrize("case", cases("trigger_rules", "conditions"))
def test_a_condition_holds_or_does_not(case: dict[str, Any]) -> None:
    condition = msgspec.convert(case["condition"], conditions.Condition)
    conditions.check(condition)
    assert conditions.holds(condition, case["payload"]) is case["holds"]


@pytest.mark.parametrize("case", cases("trigger_rules", "templates"))
def test_a_template_is_filled_in(case: dict[str, Any]) -> None:
    place = ("signals.acme.x", "2026-03-01T09:00:00Z")
    if case["result"] is None:
        with pytest.raises(templates.FieldMissing):
            templates.render(case["template"], case["payload"], *place)
        return
    assert templates.render(case["template"], case["payload"], *place) == case["result"]


@pytest.mark.parametrize("case", cases("trigger_rules", "overlaps"))
def test_two_filters_overlap_or_do_not(case: list[Any]) -> None:
    assert subject_filters.overlap(case[0], case[1]) is subject_filters.overlap(case[1], case[0]) is case[2]


@pytest.mark.parametrize("case", cases("trigger_rules", "tasks"))
def test_a_rule_and_a_sequence_stand_for_one_task(case: dict[str, Any]) -> None:
    on = {"signal": ">"} if case["on"] == "signal" else {"schedule": "@daily"}
    rule = {"tenant": case["tenant"], "name": case["rule"], "on": on, "task": {"input": "x"}}
    assert rules.task_id(rules.decode_rule(encode(rule)), case["sequence"]) == case["task"]


# Names


PARSERS: dict[str, Callable[[str], object]] = {
    "tasks": subjects.parse_tasks,
    "backlog": subjects.parse_backlog,
    "turns": subjects.parse_turns,
    "tools": lambda subject: (subjects.parse_tools(subject),),
    "control": subjects.parse_control,
    "timer_fired": subjects.parse_timer_fired,
    "journal": subjects.parse_journal,
    "dead_letter": subjects.parse_dead_letter,
    "task_key": names.parse_task_key,
    "signal": subjects.parse_signal,
    "trigger_key": names.parse_trigger_key,
    "cron": subjects.parse_cron,
}
CHECKS: dict[str, Callable[[str], str]] = {
    "tenant": subjects.check_tenant,
    "task": subjects.check_task,
    "pool": subjects.check_pool,
    "tool": subjects.check_tool,
    "priority": subjects.check_priority,
    "call": subjects.check_call,
    "signal": subjects.check_signal,
    "signal filter": names.check_signal_filter,
    "rule": subjects.check_rule,
    "control kind": lambda name: subjects.control(name, "acme"),
}


@pytest.mark.parametrize("case", cases("subjects", "build"))
def test_a_subject_is_built_and_taken_apart(case: dict[str, Any]) -> None:
    assert getattr(subjects, case["builder"])(**case["names"]) == case["subject"]
    if "parser" in case:
        assert PARSERS[case["parser"]](case["subject"]) == tuple(case["parsed"])


@pytest.mark.parametrize("case", cases("subjects", "refused_names"))
def test_a_name_outside_the_grammar_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(InvalidName):
        CHECKS[case["kind"]](case["name"])


@pytest.mark.parametrize("case", cases("subjects", "refused_subjects"))
def test_a_subject_outside_the_grammar_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(InvalidName):
        PARSERS[case["parser"]](case["subject"])


# Derived values


@pytest.mark.parametrize("case", cases("identifiers", "tasks"))
def test_a_key_stands_for_one_task(case: dict[str, Any]) -> None:
    assert identifiers.task_id_for_key(case["tenant"], case["idempotency_key"]) == case["task"]
    assert subjects.check_task(case["task"]) == case["task"]


@pytest.mark.parametrize("case", cases("identifiers", "derived"))
def test_an_id_is_derived_from_its_parts(case: dict[str, Any]) -> None:
    assert identifiers.derived_id(*case["parts"]) == case["id"]


@pytest.mark.parametrize("case", cases("identifiers", "messages"))
def test_a_message_id_names_task_step_and_gen(case: dict[str, Any]) -> None:
    if "call" in case:
        built = identifiers.call_message_id(case["task"], case["turn"], case["call"], case["gen"])
    else:
        built = identifiers.turn_message_id(case["task"], case["turn"], case["gen"])
    assert built == case["id"]


@pytest.mark.parametrize("case", cases("identifiers", "calls"))
def test_a_call_is_named_by_turn_and_index(case: dict[str, Any]) -> None:
    assert identifiers.call_id(case["turn"], case["index"]) == case["call"]
    assert subjects.check_call(case["call"]) == case["call"]


def test_different_names_have_different_ids() -> None:
    for section in ("tasks", "derived", "messages"):
        ids = [case.get("task" if section == "tasks" else "id") for case in vectors("identifiers")[section]]
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("case", cases("fingerprints"))
def test_a_fingerprint_is_the_same_for_the_same_request(case: dict[str, Any]) -> None:
    for body in case["requests"]:
        request = decode(body.encode(), TaskRequest)
        assert canonical(request).decode() == case["canonical"]
        assert fingerprint(request) == case["fingerprint"]


def test_different_requests_have_different_fingerprints() -> None:
    found = [case["fingerprint"] for case in vectors("fingerprints")["cases"]]
    assert len(set(found)) == len(found)


# Webhooks


@pytest.mark.parametrize("case", cases("webhooks", "signatures"))
def test_a_webhook_is_signed_with_each_of_its_secrets(case: dict[str, Any]) -> None:
    keys = [notifications.secret_key(secret) for secret in case["secrets"]]
    signed = notifications.signed_headers(keys, case["id"], case["timestamp"], case["body"].encode())
    assert signed == {
        "webhook-id": case["id"],
        "webhook-timestamp": str(case["timestamp"]),
        "webhook-signature": case["signature"],
    }


@pytest.mark.parametrize("secret", cases("webhooks", "refused_secrets"))
def test_what_is_no_secret_is_refused(secret: str) -> None:
    with pytest.raises(TaskmeshError):
        notifications.secret_key(secret)


@pytest.mark.parametrize("case", cases("webhooks"))
def test_a_notification_tells_of_its_event_within_a_bound(case: dict[str, Any]) -> None:
    links = links_of(case["event"]["task"], case["events_base_url"])
    body = encode(notifications.notification(encode(case["event"]), case["sequence"], links))
    assert json.loads(body) == case["body"]
    assert schema_accepts("webhook", body)
    assert len(encode(case["body"]["data"]["event"])) <= notifications.EVENT_BYTES_MAX


# Server-Sent Events


@pytest.mark.parametrize("case", cases("sse_frames", "encode"))
def test_a_frame_has_exactly_these_bytes(case: dict[str, Any]) -> None:
    framed = sse.frame(case["sequence"], case["type"], case["payload"].encode())
    assert framed == case["frame"].encode()


@pytest.mark.parametrize("event_type", cases("sse_frames", "refused_types"))
def test_a_type_outside_the_grammar_never_reaches_a_frame(event_type: str) -> None:
    with pytest.raises(InvalidName):
        sse.frame(1, event_type, b"{}")


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 10_000])
@pytest.mark.parametrize("case", cases("sse_frames", "decode"))
def test_a_stream_is_understood_however_it_is_cut(case: dict[str, Any], chunk_bytes: int) -> None:
    stream = base64.b64decode(case["base64"]) if "base64" in case else case["stream"].encode()
    decoder = sse.Decoder()
    frames = []
    for start in range(0, len(stream), chunk_bytes):
        frames += decoder.feed(stream[start : start + chunk_bytes])
    assert [frame._asdict() for frame in frames] == [
        {"last_event_id": frame["last_event_id"], "event_type": frame["event"], "data": frame["data"]}
        for frame in case["frames"]
    ]
    assert decoder.last_event_id == case["last_event_id"]
    assert decoder.retry_milliseconds == case["retry"]
