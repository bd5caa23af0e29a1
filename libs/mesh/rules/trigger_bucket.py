"""The bucket `triggers`: rules as they are now, adding one, taking one away, and the pace of each."""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from contracts import headers, subjects
from contracts.codec import decode, encode
from contracts.errors import InvalidPayload, TaskmeshError
from contracts.streams import TRIGGERS_BUCKET
from contracts.triggers import rules as trigger_rules
from contracts.triggers.rules import RULES_MAX, RuleInvalid, TriggerPace, TriggerRule
from mesh import faults
from mesh.broker import key_value
from mesh.broker.direct_get import Stored, last_from_leader, last_sequence, read_page
from mesh.broker.requests import Requests
from mesh.errors import BrokerUnavailable
from mesh.rules import broker_schedules

log = structlog.get_logger("mesh.rules.trigger_bucket")

BUCKET = TRIGGERS_BUCKET.name
WHOLE_SECONDS = 30.0
"""How often all rules are read anew: a bucket that was made again begins with sequences that were seen before."""
BEHIND_SECONDS_MAX = 5.0
"""How long the replicas may be behind the leader before a signal waits for its next delivery."""
BEHIND_PAUSE_SECONDS = 0.05
PACE_TRIES_MAX = 16
"""How often a pace is written before it counts as contended: each try that fails let somebody else's through."""


class RuleExists(TaskmeshError):
    """There is a rule of that name, or it has just been changed by somebody else."""

    code = "conflict"


class RuleUnknown(TaskmeshError):
    """There is no rule of that name."""

    code = "not-found"


class RuleBook:
    """All rules, kept up with by reading what has changed in the bucket: two requests, mostly without an answer."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._rules: dict[str, TriggerRule] = {}
        self._unreadable: frozenset[str] = frozenset()
        self._cursor = 0
        self._whole_at = -WHOLE_SECONDS
        self._lock = asyncio.Lock()
        self._begun = 0
        self._done = 0

    @property
    def rules(self) -> list[TriggerRule]:
        """Every rule, in the order of tenant and name."""
        return [self._rules[key] for key in sorted(self._rules)]

    def of(self, tenant: str) -> list[TriggerRule]:
        """A tenant's rules, by name."""
        return [rule for rule in self.rules if rule.tenant == tenant]

    def has_unreadable(self, tenant: str) -> bool:
        """Whether one of a tenant's rules can't be read: a steward of another version may know it."""
        return any(key.startswith(f"{tenant}.") for key in self._unreadable)

    def get(self, tenant: str, name: str) -> TriggerRule | None:
        """One rule."""
        return self._rules.get(subjects.trigger_key(tenant, name))

    async def refresh(self) -> None:
        """Have the rules as they are now, or later: by a read that begins after this is called.

        Those who ask while a read is under way share the next one. Raises `BrokerUnavailable`.
        """
        wanted = self._begun + 1
        async with self._lock:
            if self._done >= wanted:
                return
            self._begun += 1
            await self._read()
            self._done = self._begun

    async def _read(self) -> None:
        time = asyncio.get_running_loop().time()
        whole = time - self._whole_at >= WHOLE_SECONDS
        cursor = 0 if whole else self._cursor
        rules = {} if whole else dict(self._rules)
        unreadable = set[str]() if whole else set(self._unreadable)
        # A replica may be behind, and a signal whose rule is not seen is lost to it: the leader says what there is.
        last = await last_from_leader(self._requests, TRIGGERS_BUCKET.stream_name, subjects.TRIGGER_RULES)
        give_up_at = time + BEHIND_SECONDS_MAX
        # Nothing is read where nothing is new: a page of none would be searched for up to the bucket's end.
        while last is not None and cursor < last.sequence:
            messages, _ = await read_page(self._requests, TRIGGERS_BUCKET.stream_name, subjects.TRIGGER_RULES, cursor)
            for message in messages:
                cursor = message.sequence
                _enter(message, rules, unreadable)
            if not messages:
                if asyncio.get_running_loop().time() > give_up_at:
                    raise BrokerUnavailable("the rules can't be read yet")
                await asyncio.sleep(BEHIND_PAUSE_SECONDS)
        self._rules, self._unreadable, self._cursor = rules, frozenset(unreadable), cursor
        if whole:
            self._whole_at = time


def _enter(message: Stored, rules: dict[str, TriggerRule], unreadable: set[str]) -> None:
    """What a message of the bucket makes of the rules. One that can't be read is no rule, and its log line says why."""
    key = message.subject.removeprefix(f"$KV.{BUCKET}.")
    rules.pop(key, None)
    unreadable.discard(key)
    if not message.payload or headers.KV_OPERATION in message.headers:
        return
    try:
        rule = trigger_rules.decode_rule(message.payload)
        if subjects.trigger_key(rule.tenant, rule.name) != key:
            raise InvalidPayload(f"it says that it is {rule.tenant}.{rule.name}")
    except TaskmeshError as error:
        log.warning("trigger.rule_unreadable", key=key, revision=message.sequence, error=str(error))
        unreadable.add(key)
        return
    if len(rules) < RULES_MAX:
        rules[key] = rule
    else:
        log.error("trigger.too_many_rules", key=key, rules_max=RULES_MAX)


async def add(requests: Requests, rule: TriggerRule, *, replace: bool) -> TriggerRule:
    """Add a rule, or put it in the place of the one that has its name; returns it as it is stored.

    A new rule acts on signals that are stored from now on; one that is replaced goes on where it was. The schedule is
    written before the rule: the server says whether it is one. Raises `RuleInvalid`, `RuleExists`, `BrokerUnavailable`.
    """
    trigger_rules.check_rule(rule)
    key = subjects.trigger_key(rule.tenant, rule.name)
    entry = await key_value.get_from_leader(requests, BUCKET, key)
    existing = _readable(entry.value) if entry is not None else None
    if entry is not None and entry.value is not None and not replace:
        raise RuleExists(f"there is a rule {rule.name} of tenant {rule.tenant}")
    book = RuleBook(requests)
    await book.refresh()
    if existing is None and len(book.rules) >= RULES_MAX:
        raise RuleInvalid(f"there are {RULES_MAX} rules, and no more may be")
    cycle = trigger_rules.cycle_of(rule, book.rules)
    if cycle is not None:
        raise RuleInvalid(trigger_rules.explain(cycle), code="trigger-cycle")
    if rule.on.signal is not None:
        went_on = existing is not None and existing.on.signal is not None
        after = existing.after if existing and went_on else await last_sequence(requests, "SIGNALS")
        rule = msgspec.structs.replace(rule, after=after)
    if rule.on.schedule is not None and (existing is None or existing.on != rule.on):
        await broker_schedules.put_schedule(requests, rule)
    if not await key_value.compare_and_set(requests, BUCKET, key, encode(rule), entry.revision if entry else 0):
        raise RuleExists(f"the rule {rule.name} of tenant {rule.tenant} has just been changed by somebody else")
    if rule.on.schedule is None and existing is not None and existing.on.schedule is not None:
        await broker_schedules.remove_schedule(requests, rule.tenant, rule.name)
    return rule


async def remove(requests: Requests, tenant: str, name: str) -> None:
    """Take a rule away, and its schedule. Raises `RuleUnknown`, `BrokerUnavailable`."""
    entry = await key_value.get_from_leader(requests, BUCKET, subjects.trigger_key(tenant, name))
    if entry is None or entry.value is None:
        raise RuleUnknown(f"tenant {tenant} has no rule {name}")
    await key_value.delete(requests, BUCKET, subjects.trigger_key(tenant, name))
    # Whether or not it has one: an unreadable rule's may be there too.
    await broker_schedules.remove_schedule(requests, tenant, name)


def _readable(value: bytes | None) -> TriggerRule | None:
    try:
        return decode(value, TriggerRule) if value is not None else None
    except InvalidPayload:
        return None


async def admit(requests: Requests, rule: TriggerRule, sequence: int, now: float) -> TriggerPace | float:
    """Count a task of the rule, if there is room for it in this minute; else the seconds until there may be.

    By compare-and-set, so that any number of stewards share one pace. Who dies between this and the task finds its
    place kept for a minute, and takes another one later: too few may start then, and never too many.
    Raises `BrokerUnavailable`.
    """
    key = subjects.trigger_pace_key(rule.tenant, rule.name)
    for _ in range(PACE_TRIES_MAX):
        entry = await key_value.get(requests, BUCKET, key)
        pace = _pace(entry.value if entry else None)
        admitted = trigger_rules.admitted(pace, sequence, rule.per_minute_max, now)
        if admitted is pace or not isinstance(admitted, TriggerPace):
            return admitted
        if await key_value.compare_and_set(requests, BUCKET, key, encode(admitted), entry.revision if entry else 0):
            faults.reach("after-admit", "triggers")
            return admitted
    raise BrokerUnavailable(f"the pace of rule {rule.name} is contended")


def _pace(value: bytes | None) -> TriggerPace:
    try:
        return decode(value, TriggerPace) if value else TriggerPace()
    except InvalidPayload:
        return TriggerPace()
