"""Triggers: rules that turn a signal, or a time of day, into a task. They lie in the bucket `triggers`.

Pure: what a rule makes of a signal is a function of the two. A signal is anybody's words who may publish one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from contracts import subject_filters, subjects
from contracts.codec import decode, encode, exactly
from contracts.errors import InvalidPayload, TaskmeshError
from contracts.fields import Count, SignalFilter, Tenant
from contracts.identifiers import derived_id
from contracts.journal.parts import CHAIN_RULES_MAX, SENDS_MAX, Trigger
from contracts.records.tools import SEND_SIGNAL
from contracts.subjects import LANE_NAME_PATTERN, SIGNAL_FILTER_PATTERN
from contracts.tasks import BODY_BYTES_MAX, TaskRequest
from contracts.triggers import conditions, templates
from contracts.triggers.conditions import CONDITIONS_MAX, Condition

SIGNAL_BYTES_MAX = 256 * 1024
SIGNAL_DEPTH_MAX = 100
"""Deepest nesting of a signal: whoever writes it into a task has to be able to, however deep in a stack it is."""
"""Largest payload of a signal: twice as much must fit into a request."""
RULES_MAX = 1_000
"""Rules of a mesh: each signal is held against those of its tenant."""
MINUTE_SECONDS = 60.0
PER_MINUTE_MAX_DEFAULT = 60
PER_MINUTE_MAX = 600
TEMPLATED = ("input", "instructions", "metadata")
"""Fields of a template that may have placeholders: what a signal says chooses no tools, no limits and no lane."""
_SCHEDULE = re.compile(
    r"@(hourly|daily|midnight|weekly|monthly|yearly|annually)"
    r"|@every ([0-9]+(\.[0-9]+)?(h|m|s))+"
    r"|[0-9*?,/A-Za-z-]+( [0-9*?,/A-Za-z-]+){5}"
)
_TIME_ZONE_PATTERN = r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}"

RuleName = Annotated[str, exactly(LANE_NAME_PATTERN, 48)]


class TriggerSource(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What sets a rule off: signals, or a schedule.

    `signal` is a filter below `signals.<tenant>.`. `schedule` is `@every 1h30m` (1 s at least), `@hourly` and its like,
    or six cron fields, seconds first; `time_zone` is the IANA time zone of those six, UTC without one.
    """

    signal: Annotated[str, exactly(SIGNAL_FILTER_PATTERN, 256)] | None = None
    schedule: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    time_zone: Annotated[str, exactly(_TIME_ZONE_PATTERN, 64)] | None = None


class TriggerRule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A rule. `task` is a template of a task request, `when` conditions that must all hold for the payload.

    `per_minute_max` bounds the tasks that it starts in any minute; signals beyond it wait. `sends`: the signals that
    its tasks may send, as filters below the tenant; absent, any. `after`: it acts on signals behind this sequence in
    SIGNALS; who adds the rule writes it.
    """

    name: RuleName
    tenant: Tenant
    on: TriggerSource
    task: dict[str, Any]
    when: Annotated[list[Condition], Meta(max_length=CONDITIONS_MAX)] = []
    per_minute_max: Annotated[int, Meta(ge=1, le=PER_MINUTE_MAX)] = PER_MINUTE_MAX_DEFAULT
    sends: Annotated[list[SignalFilter], Meta(max_length=SENDS_MAX)] | None = None
    after: Count = 0

    @property
    def may_send(self) -> list[str]:
        """Filters of what a task of this rule may send; the tenant's own are all that there can be."""
        if SEND_SIGNAL not in (self.task.get("tools") or ()):
            return []
        return [">"] if self.sends is None else self.sends


class TriggerPace(msgspec.Struct, frozen=True):
    """What a rule has let through in the last minute, as `[sequence, Unix time in seconds]`, the oldest first."""

    started: list[tuple[int, float]] = []


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal, or the firing of a schedule, as rules see it. `chain` is the rules that led to it."""

    subject: str
    payload: Any
    sequence: int
    time: datetime
    chain: tuple[str, ...] = ()


class TriggerRefused(TaskmeshError):
    """A rule and a signal that would make no task: it is not started, and the reason is kept."""


class RuleInvalid(InvalidPayload):
    """A rule that can't be added."""


def task_id(rule: TriggerRule, sequence: int) -> str:
    """The task that a rule starts for a signal, or a firing: the same however often it comes."""
    kind = "trigger" if rule.on.signal is not None else "schedule"
    return derived_id(kind, rule.tenant, rule.name, str(sequence))


def takes(rule: TriggerRule, signal: Signal) -> bool:
    """Whether the rule is set off by a signal: subject, sequence and conditions. Never for a rule with a schedule."""
    if rule.on.signal is None or signal.sequence <= rule.after:
        return False
    whole_filter = f"signals.{rule.tenant}.{rule.on.signal}"
    return subject_filters.matches(whole_filter, signal.subject) and conditions.hold(rule.when, signal.payload)


def request_for(rule: TriggerRule, signal: Signal) -> TaskRequest:
    """The request that the rule makes of a signal. Raises `TriggerRefused` or `FieldMissing`."""
    if rule.name in signal.chain:
        loop = " → ".join((*signal.chain, rule.name))
        raise TriggerRefused(f"the rule led to this signal itself: {loop}", code="trigger-loop")
    if len(signal.chain) >= CHAIN_RULES_MAX:
        raise TriggerRefused(
            f"{len(signal.chain)} rules have set one another off: {' → '.join(signal.chain)}",
            code="trigger-chain-too-long",
        )
    return _rendered(rule, signal)


def _rendered(rule: TriggerRule, signal: Signal) -> TaskRequest:
    time = encode(signal.time).decode().strip('"')
    filled = templates.render(rule.task, signal.payload, signal.subject, time)
    try:
        request = msgspec.convert(filled, TaskRequest)
    except msgspec.ValidationError as error:
        raise TriggerRefused(f"the task is not valid: {error}", code="trigger-request-invalid") from None
    size = len(encode(request))
    if size > BODY_BYTES_MAX:
        raise TriggerRefused(
            f"the task has {size} bytes, and may have {BODY_BYTES_MAX}", code="trigger-request-invalid"
        )
    return request


def trigger_for(rule: TriggerRule, signal: Signal) -> Trigger:
    """What the task's journal says of its origin."""
    sends = rule.sends if rule.may_send else None
    return Trigger(rule=rule.name, signal=signal.sequence, chain=[*signal.chain, rule.name], sends=sends)


def decode_rule(payload: bytes) -> TriggerRule:
    """Decode a rule and check all of it. Raises `InvalidPayload`."""
    rule = decode(payload, TriggerRule)
    check_rule(rule)
    return rule


def check_rule(rule: TriggerRule) -> None:
    """Hold a rule against everything that can be known without its mesh. Raises `RuleInvalid`."""
    source = rule.on
    if (source.signal is None) == (source.schedule is None):
        raise RuleInvalid("on: takes either signal or schedule")
    try:
        for condition in rule.when:
            conditions.check(condition)
    except InvalidPayload as error:
        raise RuleInvalid(f"when: {error}") from None
    if source.schedule is not None:
        _check_schedule(source, rule)
    elif source.time_zone is not None:
        raise RuleInvalid("on.time_zone: is for a schedule")
    if rule.sends is not None and SEND_SIGNAL not in (rule.task.get("tools") or ()):
        raise RuleInvalid(f"sends: is for a task with the tool {SEND_SIGNAL}")
    _check_template(rule)


def _check_schedule(source: TriggerSource, rule: TriggerRule) -> None:
    schedule = source.schedule or ""
    if _SCHEDULE.fullmatch(schedule) is None:
        raise RuleInvalid("on.schedule: takes `@every 1h30m`, `@daily` and its like, or six cron fields, seconds first")
    if source.time_zone is not None and schedule.startswith("@"):
        raise RuleInvalid("on.time_zone: is for six cron fields")
    if rule.when:
        raise RuleInvalid("when: is for signals; a schedule has no payload")


def _check_template(rule: TriggerRule) -> None:
    for name, value in rule.task.items():
        try:
            asked = templates.placeholders(value)
        except InvalidPayload as error:
            raise RuleInvalid(f"task.{name}: {error}") from None
        if asked and name not in TEMPLATED:
            raise RuleInvalid(f"task.{name}: takes no placeholder; {', '.join(TEMPLATED)} do")
        if rule.on.schedule is not None and any(path.startswith("payload") for path in asked):
            raise RuleInvalid(f"task.{name}: a schedule has no payload")
    if "continues" in rule.task:
        raise RuleInvalid("task.continues: a rule starts tasks of their own")
    try:
        # With a text in every place. What a signal's own values make of it is seen when it comes.
        filled = {name: _probed(value) for name, value in rule.task.items()}
        msgspec.convert(filled, TaskRequest)
    except msgspec.ValidationError as error:
        raise RuleInvalid(f"task: {error}") from None


def _probed(template: Any) -> Any:
    if isinstance(template, str):
        return "x" if template.startswith("{{") and template.endswith("}}") else template
    if isinstance(template, list):
        return [_probed(each) for each in template]
    return {name: _probed(each) for name, each in template.items()} if isinstance(template, dict) else template


def cycle_of(rule: TriggerRule, others: list[TriggerRule]) -> list[TriggerRule] | None:
    """How the rule could set itself off: rules of which each may send what the next takes, the last one what the
    first does. The shortest there is; None if it can't.
    """
    rules = [other for other in others if other.tenant == rule.tenant and other.name != rule.name]
    paths = [[rule]]
    seen: set[str] = set()
    while paths:
        path = paths.pop(0)
        if _sets_off(path[-1], rule):
            return path
        for each in rules:
            if each.name not in seen and _sets_off(path[-1], each):
                seen.add(each.name)
                paths.append([*path, each])
    return None


def explain(cycle: list[TriggerRule]) -> str:
    """A cycle in words."""
    steps = [
        f"{one.name} may send {' '.join(one.may_send)}, and {other.name} takes {other.on.signal}"
        for one, other in zip(cycle, [*cycle[1:], cycle[0]], strict=True)
    ]
    return f"rule {cycle[0].name} would set itself off: {'; '.join(steps)}. Narrow it with `sends`"


def _sets_off(one: TriggerRule, other: TriggerRule) -> bool:
    taken = other.on.signal
    return taken is not None and any(subject_filters.overlap(sent, taken) for sent in one.may_send)


def admitted(pace: TriggerPace, sequence: int, per_minute_max: int, now: float) -> TriggerPace | float:
    """What the pace is once the rule has started a task for `sequence`; or the seconds until there is room for it.

    A signal that was let through in the last minute already needs no room again. In no minute are there more than
    `per_minute_max`. What lies more than a minute ahead was written by a clock that was wrong, and counts for nothing.
    """
    kept = [(each, time) for each, time in pace.started if now - MINUTE_SECONDS < time <= now + MINUTE_SECONDS]
    if any(each == sequence for each, _ in kept):
        return pace
    if len(kept) < per_minute_max:
        return TriggerPace([*kept, (sequence, now)])
    free_at = sorted(time for _, time in kept)[len(kept) - per_minute_max] + MINUTE_SECONDS
    return max(free_at - now, 0.0)


def chain_of(header: str | None) -> tuple[str, ...]:
    """The rules of the header `Mesh-Trigger-Chain`. Raises `InvalidName`."""
    if not header:
        return ()
    return tuple(subjects.check_rule(name) for name in header.split(",", CHAIN_RULES_MAX + 1))


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether a JSON value has more levels of lists and objects than that."""
    level = [value]
    for _ in range(levels + 1):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def read_signal(
    subject: str, payload: bytes, sequence: int, time: datetime, chain_header: str | None
) -> tuple[str, Signal]:
    """The tenant of a signal, and what rules see of it. Raises `InvalidName` or `InvalidPayload`."""
    tenant, _ = subjects.parse_signal(subject)
    if len(payload) > SIGNAL_BYTES_MAX:
        raise InvalidPayload(f"a signal has at most {SIGNAL_BYTES_MAX} bytes, and not {len(payload)}")
    value: Any = decode(payload, Any)
    if _is_deeper(value, SIGNAL_DEPTH_MAX):
        raise InvalidPayload(f"a signal is nested at most {SIGNAL_DEPTH_MAX} levels deep")
    return tenant, Signal(subject, value, sequence, time, chain_of(chain_header))
