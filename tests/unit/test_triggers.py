"""Trigger rules: conditions, templates, what a signal comes to, cycles, pace. All of it pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import subject_filters
from contracts.codec import decode, encode
from contracts.errors import InvalidName, InvalidPayload
from contracts.journal.parts import CHAIN_RULES_MAX
from contracts.triggers import conditions, rules, templates
from contracts.triggers.conditions import Condition
from contracts.triggers.rules import SIGNAL_DEPTH_MAX, Signal, TriggerPace, TriggerRefused, TriggerRule
from contracts.triggers.templates import FieldMissing
from mesh.broker.direct_get import Stored
from mesh.rules.broker_schedules import PutSchedule, RemoveSchedule, decide_schedules

TIME = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
PAYLOAD = {
    "sku": "a-1",
    "stock": 0,
    "price": 9.5,
    "urgent": True,
    "note": None,
    "tags": ["red", 7],
    "line": {"a/b": 1, "m~n": 2, "": 3},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def rule(name: str = "low", signal: str | None = "inventory.*", **fields: Any) -> TriggerRule:
    """A rule of the tenant acme."""
    source = {"signal": signal} if signal is not None else {}
    given_fields = {"tenant": "acme", "name": name, "on": source, "task": {"input": "go"}, **fields}
    return msgspec.convert(given_fields, TriggerRule)


def signal(payload: Any = None, name: str = "inventory.zero", sequence: int = 7, chain: tuple[str, ...] = ()) -> Signal:
    """A signal of the tenant acme."""
    return Signal(f"signals.acme.{name}", payload, sequence, TIME, chain)


# Conditions


@pytest.mark.parametrize(
    ("field", "op", "value", "expected"),
    [
        ("/sku", "eq", "a-1", True),
        ("/sku", "eq", "a-2", False),
        ("/stock", "eq", 0, True),
        ("/stock", "eq", 0.0, True),
        ("/stock", "eq", False, False),
        ("/urgent", "eq", 1, False),
        ("/urgent", "eq", True, True),
        ("/note", "eq", None, True),
        ("/tags", "eq", ["red", 7], True),
        ("/tags", "eq", ["red", True], False),
        ("/line", "eq", {"a/b": 1, "m~n": 2, "": 3}, True),
        ("/sku", "ne", "a-2", True),
        ("/sku", "ne", "a-1", False),
        ("/absent", "ne", "a-1", False),
        ("/stock", "lt", 1, True),
        ("/stock", "lt", 0, False),
        ("/stock", "le", 0, True),
        ("/price", "gt", 9, True),
        ("/price", "ge", 9.5, True),
        ("/price", "ge", 9.6, False),
        ("/sku", "lt", "b", True),
        ("/sku", "lt", 5, False),
        ("/urgent", "ge", 0, False),
        ("/stock", "in", [1, 0], True),
        ("/stock", "in", [], False),
        ("/stock", "in", [False], False),
        ("/tags", "contains", "red", True),
        ("/tags", "contains", "re", False),
        ("/sku", "contains", "-1", True),
        ("/line", "contains", "a/b", True),
        ("/stock", "contains", 0, False),
        ("/note", "exists", True, True),
        ("/absent", "exists", True, False),
        ("/absent", "exists", False, True),
        ("/note", "exists", False, False),
        ("/tags/1", "eq", 7, True),
        ("/tags/01", "eq", 7, False),
        ("/tags/2", "exists", True, False),
        ("/tags/-", "exists", True, False),
        ("/tags/" + "9" * 300, "exists", True, False),
        ("/line/a~1b", "eq", 1, True),
        ("/line/m~0n", "eq", 2, True),
        ("/line/", "eq", 3, True),
        ("", "contains", "sku", True),
        ("/sku/0", "exists", True, False),
    ],
)
def test_a_condition(field: str, op: Any, value: Any, expected: bool) -> None:
    assert conditions.holds(Condition(field=field, op=op, value=value), PAYLOAD) is expected


def test_exists_needs_no_value() -> None:
    assert conditions.holds(decode(b'{"field": "/sku", "op": "exists"}', Condition), PAYLOAD)


def test_all_conditions_must_hold() -> None:
    yes, no = Condition(field="/stock", op="eq", value=0), Condition(field="/stock", op="eq", value=1)
    assert conditions.hold([yes, yes], PAYLOAD)
    assert not conditions.hold([yes, no], PAYLOAD)
    assert conditions.hold([], PAYLOAD)


@given(JSON, st.text(max_size=8), st.sampled_from(["eq", "ne", "lt", "in", "contains", "exists"]), JSON)
def test_a_condition_is_never_an_error(payload: Any, field: str, op: Any, value: Any) -> None:
    assert conditions.holds(Condition(field=f"/{field}", op=op, value=value), payload) in (True, False)


# Templates


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("none", "none"),
        ("{{payload.stock}}", 0),
        ("{{ payload.tags }}", ["red", 7]),
        ("{{payload.tags.0}}!", "red!"),
        ("{{payload.sku}} has {{payload.stock}}", "a-1 has 0"),
        ("{{payload.tags}} {{payload.urgent}} {{payload.note}}", '["red",7] true null'),
        ("{{subject}} at {{time}}", "signals.acme.inventory.zero at 2026-03-01T09:00:00Z"),
        ({"a": ["{{payload.price}}", 1, None]}, {"a": [9.5, 1, None]}),
        ("{ {x} }", "{ {x} }"),
        ('{"stock":{{payload.stock}}}', '{"stock":0}'),
    ],
)
def test_a_template(template: Any, expected: Any) -> None:
    filled = templates.render(template, PAYLOAD, "signals.acme.inventory.zero", "2026-03-01T09:00:00Z")
    assert filled == expected


def test_what_a_signal_says_is_no_template() -> None:
    assert templates.render("{{payload.x}} {{payload.y}}", {"x": "{{payload.y}}", "y": "z"}, "s", "t") == (
        "{{payload.y}} z"
    )


def test_a_signal_without_the_field_is_refused() -> None:
    with pytest.raises(FieldMissing, match=r"payload\.absent") as refused:
        templates.render("x {{payload.absent}}", PAYLOAD, "s", "t")
    assert refused.value.code == "trigger-field-missing"


@pytest.mark.parametrize("text", ["{{sku}}", "{{payload.}}", "{{payload.a b}}", "{{", "{{time.x}}"])
def test_what_only_looks_like_a_placeholder_is_none(text: str) -> None:
    with pytest.raises(InvalidPayload, match="no placeholder"):
        templates.placeholders(text)


# Rules


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"on": {}}, "on: takes either"),
        ({"on": {"signal": "a", "schedule": "@daily"}}, "on: takes either"),
        ({"on": {"signal": "a", "time_zone": "UTC"}}, "on.time_zone"),
        ({"on": {"schedule": "0 9 * * *"}}, "on.schedule"),
        ({"on": {"schedule": "@every 500ms"}}, "on.schedule"),
        ({"on": {"schedule": "@daily\n"}}, "on.schedule"),
        ({"on": {"schedule": "@daily", "time_zone": "UTC"}}, "on.time_zone"),
        ({"on": {"schedule": "@daily"}, "when": [{"field": "/a", "op": "exists"}]}, "when: is for signals"),
        ({"on": {"schedule": "@daily"}, "task": {"input": "{{payload.a}}"}}, "no payload"),
        ({"when": [{"field": "/a", "op": "eq"}]}, "needs a value"),
        ({"when": [{"field": "/a", "op": "in", "value": 3}]}, "needs a list"),
        ({"when": [{"field": "/a", "op": "lt", "value": None}]}, "needs a number"),
        ({"when": [{"field": "/a", "op": "exists", "value": 3}]}, "true, false"),
        ({"task": {}}, "task:"),
        ({"task": {"input": ""}}, "task:"),
        ({"task": {"input": "x", "tool": ["a"]}}, "task:"),
        ({"task": {"input": "{{sku}}"}}, "task.input"),
        ({"task": {"input": "x", "tools": ["{{payload.tool}}"]}}, "task.tools: takes no placeholder"),
        ({"task": {"input": "x", "approval": "{{payload.approval}}"}}, "task.approval: takes no placeholder"),
        ({"task": {"input": "x", "metadata": {"{{payload.a}}": 1}}}, "a name takes no placeholder"),
        ({"task": {"input": "x", "continues": "0" * 26}}, "task.continues"),
        ({"sends": ["a"]}, "sends: is for"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidPayload, match=reason):
        rules.decode_rule(
            encode({"tenant": "acme", "name": "r", "on": {"signal": "a"}, "task": {"input": "x"}} | fields)
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "A"},
        {"tenant": "*"},
        {"on": {"signal": "a.>.b"}},
        {"on": {"signal": "a..b"}},
        {"on": {"signal": "signals.*x"}},
        {"when": [{"field": "a", "op": "exists"}]},
        {"when": [{"field": "/a~2", "op": "exists"}]},
        {"when": [{"field": "/a", "op": "matches", "value": 1}]},
        {"per_minute_max": 0},
        {"per_minute_max": 601},
        {"unknown": 1},
    ],
)
def test_a_rule_of_the_wrong_shape_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidPayload):
        rules.decode_rule(
            encode({"tenant": "acme", "name": "r", "on": {"signal": "a"}, "task": {"input": "x"}} | fields)
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"on": {"schedule": "0 0 9 * * MON-FRI", "time_zone": "Europe/Berlin"}},
        {"on": {"schedule": "@every 1h30m"}, "task": {"input": "{{time}} {{subject}}"}},
        {"on": {"signal": ">"}, "task": {"input": "{{payload}}", "metadata": {"sku": "{{payload.sku}}"}}},
        {"task": {"input": [{"role": "user", "content": "{{payload.sku}}"}], "tools": ["send_signal"]}, "sends": ["b"]},
    ],
)
def test_a_rule_goes_there_and_back(fields: dict[str, Any]) -> None:
    written = {"tenant": "acme", "name": "r", "on": {"signal": "a"}, "task": {"input": "x"}} | fields
    checked = rules.decode_rule(encode(written))
    assert rules.decode_rule(encode(checked)) == checked


def test_what_sets_a_rule_off() -> None:
    watching = rule(when=[{"field": "/stock", "op": "eq", "value": 0}], after=5)
    assert rules.takes(watching, signal(PAYLOAD, sequence=6))
    assert not rules.takes(watching, signal(PAYLOAD, sequence=5)), "it was stored before the rule"
    assert not rules.takes(watching, signal({"stock": 1}, sequence=6))
    assert not rules.takes(watching, signal(PAYLOAD, "inventory.a.b", sequence=6))
    assert not rules.takes(watching, Signal("signals.other.inventory.zero", PAYLOAD, 6, TIME))
    assert not rules.takes(rule(signal=None, on={"schedule": "@daily"}), signal(PAYLOAD))


def test_the_task_of_a_signal() -> None:
    buying = rule(task={"input": "Buy {{payload.sku}}", "metadata": {"urgent": "{{payload.urgent}}"}, "tools": ["add"]})
    request = rules.request_for(buying, signal(PAYLOAD))
    assert (request.input, request.metadata, request.tools) == ("Buy a-1", {"urgent": True}, ["add"])
    assert rules.trigger_for(buying, signal(PAYLOAD, chain=("a",))).chain == ["a", "low"]
    assert rules.task_id(buying, 7) == rules.task_id(buying, 7) != rules.task_id(buying, 8)
    assert rules.task_id(rule("other"), 7) != rules.task_id(rule("low"), 7)
    on_schedule = rule(signal=None, on={"schedule": "@daily"})
    assert rules.task_id(on_schedule, 7) != rules.task_id(buying, 7), "sequences of two streams"


@pytest.mark.parametrize(
    ("payload", "chain", "code"),
    [
        ({}, (), "trigger-field-missing"),
        ({"sku": 5}, (), "trigger-request-invalid"),
        ({"sku": "x" * 600_000}, (), "trigger-request-invalid"),
        (PAYLOAD, ("a", "low"), "trigger-loop"),
        (PAYLOAD, tuple(f"r{number}" for number in range(CHAIN_RULES_MAX)), "trigger-chain-too-long"),
    ],
)
def test_a_signal_that_makes_no_task(payload: Any, chain: tuple[str, ...], code: str) -> None:
    with pytest.raises((TriggerRefused, FieldMissing)) as refused:
        rules.request_for(rule(task={"input": "{{payload.sku}}"}), signal(payload, chain=chain))
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("subject", "payload", "chain"),
    [
        ("signals.acme", b"{}", None),
        ("signals.ACME.x", b"{}", None),
        ("signals.acme.x y", b"{}", None),
        ("signals.acme.x", b"rubbish", None),
        ("signals.acme.x", b"", None),
        ("signals.acme.x", b'"\xff"', None),
        ("signals.acme.x", b"[" * 100_000, None),
        ("signals.acme.x", b'"' + b"x" * rules.SIGNAL_BYTES_MAX + b'"', None),
        ("signals.acme.x", b"{}", "a,,b"),
        ("signals.acme.x", b"{}", "A"),
    ],
)
def test_rubbish_is_no_signal(subject: str, payload: bytes, chain: str | None) -> None:
    with pytest.raises((InvalidName, InvalidPayload)):
        rules.read_signal(subject, payload, 1, TIME, chain)


def test_any_json_is_a_signal() -> None:
    tenant, read = rules.read_signal("signals.acme.a.b", b"[1]", 3, TIME, "first,second")
    assert tenant == "acme"
    assert read == Signal("signals.acme.a.b", [1], 3, TIME, ("first", "second"))


# Filters and cycles


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.*", "a.b", True),
        ("a.*", "*.b", True),
        ("a.*", "b.*", False),
        ("a.*", "a.b.c", False),
        (">", "a", True),
        ("a.>", "a", False),
        ("a.>", "a.b.c", True),
        ("a.>", "*.b", True),
        ("a.>", "b.>", False),
        ("*.x.>", "a.*.c", True),
        ("*", "a.>", False),
    ],
)
def test_filters_overlap(one: str, other: str, expected: bool) -> None:
    assert subject_filters.overlap(one, other) is subject_filters.overlap(other, one) is expected


_TOKENS = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=3)
_FILTERS = st.builds(lambda tokens, tail: ".".join([*tokens, *tail]), _TOKENS, st.sampled_from([[], [">"]]))
_NAMES = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=4).map(".".join)


@given(_FILTERS, _FILTERS, _NAMES)
def test_what_two_filters_take_they_overlap_in(one: str, other: str, name: str) -> None:
    if subject_filters.matches(one, name) and subject_filters.matches(other, name):
        assert subject_filters.overlap(one, other)


def sending(name: str, takes: str, *sends: str) -> TriggerRule:
    """A rule whose tasks may send these signals; without any, all."""
    return rule(name, takes, task={"input": "x", "tools": ["send_signal"]}, sends=list(sends) or None)


@pytest.mark.parametrize(
    ("added", "others", "cycle"),
    [
        (rule("a", "x"), [], None),
        (sending("a", "x"), [], ["a"]),
        (sending("a", "x", "y"), [], None),
        (sending("a", "x.*", "x.>"), [], ["a"]),
        (sending("a", "x", "y"), [sending("b", "y", "x")], ["a", "b"]),
        (sending("a", "x", "y"), [sending("b", "y", "z"), sending("c", "z", "*")], ["a", "b", "c"]),
        (sending("a", "x", "y"), [sending("b", "y", "z"), rule("c", "z")], None),
        (sending("a", "x", "y"), [sending("b", "z", "x")], None),
        (sending("a", "x", "y"), [msgspec.structs.replace(sending("b", "y", "x"), tenant="other")], None),
        (sending("a", "x", "y"), [sending("a", "y", "x")], None),
        (rule("a", signal=None, on={"schedule": "@daily"}, task={"input": "x", "tools": ["send_signal"]}), [], None),
    ],
)
def test_a_rule_that_could_set_itself_off_is_found(
    added: TriggerRule, others: list[TriggerRule], cycle: list[str] | None
) -> None:
    found = rules.cycle_of(added, others)
    assert (None if found is None else [each.name for each in found]) == cycle


def test_a_cycle_is_explained() -> None:
    cycle = rules.cycle_of(sending("a", "x", "y"), [sending("b", "y", "x")])
    assert cycle is not None
    assert rules.explain(cycle) == (
        "rule a would set itself off: a may send y, and b takes y; b may send x, and a takes x. Narrow it with `sends`"
    )


# Pace


def test_no_minute_has_more_than_the_pace_allows() -> None:
    pace, started = TriggerPace(), []
    now = 1_000.0
    for sequence in range(1, 40):
        while not isinstance(admitted := rules.admitted(pace, sequence, 3, now), TriggerPace):
            assert admitted > 0
            now += admitted
        pace = admitted
        started.append(now)
        now += 0.5
    assert all(later - earlier >= 60 for earlier, later in zip(started, started[3:], strict=False))


def test_a_signal_that_comes_again_takes_no_second_place() -> None:
    pace = rules.admitted(TriggerPace(), 1, 1, 1_000.0)
    assert isinstance(pace, TriggerPace)
    assert rules.admitted(pace, 1, 1, 1_001.0) is pace
    assert rules.admitted(pace, 2, 1, 1_001.0) == 59.0


def test_a_clock_that_was_wrong_holds_nobody_up() -> None:
    assert isinstance(rules.admitted(TriggerPace([(1, 9_999.0)]), 2, 1, 1_000.0), TriggerPace)


# Schedules


def schedule(sequence: int, name: str, expression: str = "@daily", zone: str | None = None) -> Stored:
    """A schedule as it lies in TIMERS."""
    more = {"Nats-Schedule-Time-Zone": zone} if zone else {}
    target = {"Nats-Schedule": expression, "Nats-Schedule-Target": f"timers.fired.cron.acme.{name}"}
    return Stored(sequence, f"timers.at.cron.acme.{name}", b"{}", {**target, **more})


def test_schedules_are_made_those_of_the_rules() -> None:
    rules = [
        rule(name, signal=None, on={"schedule": "@daily"}) for name in ("changed", "missing", "right", "zoned")
    ] + [rule("signal")]
    stored = [
        schedule(3, "right"),
        schedule(4, "changed", "@hourly"),
        schedule(5, "zoned", zone="UTC"),
        schedule(6, "gone"),
        Stored(8, "timers.at.cron.acme.*", b"{}", {}),
    ]
    steps = decide_schedules(rules, stored)
    put = {step.rule.name: step.revision for step in steps if isinstance(step, PutSchedule)}
    assert put == {"missing": 0, "changed": 4, "zoned": 5}
    assert [step for step in steps if isinstance(step, RemoveSchedule)] == [RemoveSchedule("acme", "gone", 6)]


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_a_signal_may_be_nested_so_deep_and_no_deeper(opening: str, closing: str) -> None:
    def payload(levels: int) -> bytes:
        return (opening * levels + "1" + closing * levels).encode()

    rules.read_signal("signals.acme.x", payload(SIGNAL_DEPTH_MAX), 1, TIME, None)
    with pytest.raises(InvalidPayload, match="at most 100 levels"):
        rules.read_signal("signals.acme.x", payload(SIGNAL_DEPTH_MAX + 1), 1, TIME, None)


def test_equal_values_are_equal_however_deep_they_are_nested() -> None:
    value: Any = 1
    for _ in range(5_000):
        value = [value]
    assert conditions.holds(Condition(field="", op="eq", value=value), value)
    assert not conditions.holds(Condition(field="", op="eq", value=[value]), value)
