"""Whatever lies in a stream, a bucket or a pack: it is read, or refused by a declared error. Nothing else is raised.

A payload is a real one, from the vectors of the protocol, in which something was changed: a value, a name, some bytes.
"""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.codec import decode, encode
from contracts.errors import TaskmeshError
from contracts.journal.events import UnknownEvent, decode_event, decode_head
from contracts.messages.control import decode_control
from contracts.messages.envelope import read_envelope
from contracts.messages.work import DeadLetter, decode_work
from contracts.records.archive import PackedTask
from contracts.records.status import TaskRecord
from contracts.records.storage import StoreRoom
from contracts.records.tools import ToolDeclaration
from contracts.result_objects import parse_chunks, parse_information
from contracts.triggers import conditions, rules, templates
from contracts.triggers.conditions import Condition
from contracts.triggers.rules import Signal, TriggerRule, TriggerSource
from mesh.archive import pack
from mesh.archive.lookup import places
from mesh.telemetry import traces

VECTORS = Path(__file__).resolve().parents[2] / "libs" / "contracts" / "spec" / "vectors"
TIME = datetime(2026, 1, 2, tzinfo=UTC)
DEEP = 2_000
"""Levels of nesting at most: the interpreter takes some of them, and of the others it does not."""
FEW = settings(max_examples=50)


def cases(name: str, key: str) -> list[tuple[str, Any]]:
    """The subjects and the payloads of the vectors that have a JSON value."""
    found = json.loads((VECTORS / f"{name}.json").read_text())["cases"]
    return [(each.get("subject", ""), each[key]) for each in found if key in each]


def nested(levels: int, kind: str) -> bytes:
    """Lists or objects in each other."""
    return b"[" * levels + b"]" * levels if kind == "list" else b'{"a":' * levels + b"1" + b"}" * levels


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "task.queued", "default", "1-0", "2026-01-01T00:00:00Z", "9" * 30, "a.b", "*", ">", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def changed(draw: st.DrawFn, originals: list[tuple[str, Any]]) -> tuple[str, bytes]:
    """A subject, and a payload that was changed in up to three places, in its values and then in its bytes."""
    subject, original = draw(st.sampled_from(originals))
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(0, 3))):
        value = _replaced(draw, value)
    payload = json.dumps(value).encode()
    match draw(st.sampled_from(["whole", "whole", "cut", "byte", "deep"])):
        case "cut":
            payload = payload[: draw(st.integers(0, len(payload)))]
        case "byte":
            at = draw(st.integers(0, len(payload) - 1)) if payload else 0
            payload = payload[:at] + draw(st.binary(min_size=1, max_size=3)) + payload[at + 1 :]
        case "deep":
            deep = nested(draw(st.integers(1, DEEP)), draw(st.sampled_from(["list", "object"])))
            payload = payload.replace(b"{", b'{"deep":' + deep + b",", 1)
    return subject, payload


def _replaced(draw: st.DrawFn, value: Any) -> Any:
    """The value with something else at one place of it."""
    if isinstance(value, dict) and value and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(value)))
        if draw(st.booleans()):
            return {**value, name: _replaced(draw, value[name])}
        return {key: each for key, each in value.items() if key != name}
    if isinstance(value, list) and value and draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], _replaced(draw, value[at]), *value[at + 1 :]]
    return draw(JUNK)


def is_read_or_refused(read: Callable[[], object]) -> None:
    """Nothing but a declared error may come of it."""
    with suppress(TaskmeshError):
        read()


@FEW
@given(changed(cases("events", "event")))
def test_an_event_of_a_journal(given_: tuple[str, bytes]) -> None:
    _, payload = given_

    def read() -> None:
        event = decode_event(payload)
        assert isinstance(event, UnknownEvent) or decode_event(encode(event)) == event

    is_read_or_refused(read)
    is_read_or_refused(lambda: decode_head(payload))


@FEW
@given(changed(cases("work", "message")))
def test_a_work_message(given_: tuple[str, bytes]) -> None:
    subject, payload = given_
    is_read_or_refused(lambda: encode(decode_work(payload, subject)))
    envelope = read_envelope(payload, subject)
    if envelope is not None:
        assert len(envelope.epoch) == 2


@FEW
@given(changed(cases("control", "message")))
def test_a_command(given_: tuple[str, bytes]) -> None:
    subject, payload = given_
    is_read_or_refused(lambda: encode(decode_control(payload, subject)))
    read_envelope(payload, subject)


@FEW
@given(changed([*cases("trigger_rules", "rule"), *cases("events", "event")]))
def test_a_rule_of_the_bucket(given_: tuple[str, bytes]) -> None:
    is_read_or_refused(lambda: rules.check_rule(rules.decode_rule(given_[1])))


@pytest.mark.parametrize(
    "kind", [TaskRecord, DeadLetter, ToolDeclaration, StoreRoom, PackedTask], ids=lambda kind: kind.__name__
)
@FEW
@given(data=st.data())
def test_a_record_of_a_bucket(kind: type[Any], data: st.DataObject) -> None:
    _, payload = data.draw(changed([*cases("events", "event"), *cases("work", "message")]))
    is_read_or_refused(lambda: encode(decode(payload, kind)))


@FEW
@given(
    st.sampled_from(["signals.acme.stock", "signals.acme", "signals..x", "tasks.a", ""]) | st.text(max_size=20),
    changed([("", {"sku": "a", "lines": [{"n": 1}]})]),
    st.none() | st.text(max_size=30),
)
def test_a_signal(subject: str, given_: tuple[str, bytes], chain: str | None) -> None:
    is_read_or_refused(lambda: rules.read_signal(subject, given_[1], 7, TIME, chain))


PACKED = gzip.compress(b'{"tenant":"a","task":"t"}\n[]\n')


@FEW
@given(
    st.binary(max_size=64)
    | st.binary(max_size=40).map(gzip.compress)
    | changed([("", {"tasks": []})]).map(lambda each: gzip.compress(each[1])),
    st.integers(-3, 200),
    st.integers(0, len(PACKED)),
)
def test_a_pack(payload: bytes, offset: int, cut: int) -> None:
    for each in (payload, PACKED[:cut] + payload):
        is_read_or_refused(lambda each=each: pack.read_directory(each, offset))  # type: ignore[misc]
        is_read_or_refused(lambda each=each: pack.read_task(each, "a", "t"))  # type: ignore[misc]
        is_read_or_refused(lambda each=each: pack.read_tasks(each))  # type: ignore[misc]


@FEW
@given(changed([("", {"default.t": [17, 0, 1090, []]})]))
def test_a_place_in_the_archive(given_: tuple[str, bytes]) -> None:
    is_read_or_refused(lambda: places(given_[1]))


@FEW
@given(st.text(max_size=60) | st.from_regex(r"\$O\.results\.[CM]\.[a-zA-Z0-9_=.-]{0,40}"))
def test_a_subject_of_an_object(subject: str) -> None:
    parse_information(subject)
    parse_chunks(subject)


@FEW
@given(st.none() | st.text(max_size=60) | st.from_regex(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.?"))
def test_a_traceparent(value: str | None) -> None:
    traces.parse_traceparent(value)


POINTERS = st.sampled_from(["", "/", "/a", "/a/0", "/a/b", "/~0~1", "/0", "/00", "/" + "9" * 40])
OPERATORS = st.sampled_from(["eq", "ne", "lt", "le", "gt", "ge", "in", "contains", "exists"])
DEEP_JSON = st.tuples(st.integers(1, DEEP), st.sampled_from(["list", "object"])).map(lambda each: nested(*each))


VALUES = DEEP_JSON | JUNK.map(json.dumps).map(str.encode)


def read_json(payload: bytes) -> Any:
    """A payload as a steward has it; None if it would be refused."""
    try:
        return decode(payload, Any)
    except TaskmeshError:
        return None


@FEW
@given(
    POINTERS,
    OPERATORS,
    VALUES,
    VALUES,
)
def test_a_condition_holds_or_does_not(pointer: str, operator: Any, value: bytes, payload: bytes) -> None:
    condition = Condition(field=pointer, op=operator, value=read_json(value))
    is_read_or_refused(lambda: conditions.check(condition))
    assert conditions.hold([condition], read_json(payload)) in (True, False)
    assert conditions.hold([condition], read_json(value)) in (True, False)


PLACES = [
    "{{payload}}",
    "{{payload.a}}",
    "{{payload.a.0}}",
    "so {{payload}} and {{payload.a}}",
    "{{subject}}",
    "{{",
    "{{x}}",
]


@FEW
@given(st.sampled_from(PLACES) | st.text(max_size=20), VALUES)
def test_a_template_is_filled_or_refused(template: str, payload: bytes) -> None:
    task = {"input": template, "metadata": {"m": template}}
    is_read_or_refused(lambda: templates.placeholders(task))
    is_read_or_refused(lambda: encode(templates.render(task, read_json(payload), "signals.acme.x", "now")))
    rule = TriggerRule(name="r", tenant="acme", on=TriggerSource(signal="x"), task=task)
    is_read_or_refused(lambda: encode(rules.request_for(rule, Signal("signals.acme.x", read_json(payload), 1, TIME))))


def test_the_vectors_are_what_is_changed() -> None:
    assert len(cases("events", "event")) > 50
    assert msgspec.json.decode(nested(3, "object")) == {"a": {"a": {"a": 1}}}
