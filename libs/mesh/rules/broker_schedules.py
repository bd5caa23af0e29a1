"""Schedules of trigger rules: messages in TIMERS that the broker stores again and again (NATS ADR-51).

The rule in the bucket is the truth; its schedule follows. One that is not as its rule says is made so, by whoever sees
it, and one without a rule is taken away.
"""

from __future__ import annotations

from dataclasses import dataclass

from contracts import headers, subjects
from contracts.codec import encode
from contracts.errors import InvalidName
from contracts.streams import FIRED_TTL_SECONDS
from contracts.triggers.rules import RuleInvalid, TriggerRule
from mesh.broker.direct_get import LAST_SUBJECTS_MAX, Stored, last_of_each, subjects_of
from mesh.broker.requests import WRONG_LAST_SEQUENCE, Requests
from mesh.errors import BrokerError

_REFUSED = (10189, 10223)
"""The server's error numbers for a schedule, or a time zone, that is none."""


@dataclass(frozen=True, slots=True)
class PutSchedule:
    """Write a rule's schedule if the last one is still at `revision` (0: there is none)."""

    rule: TriggerRule
    revision: int


@dataclass(frozen=True, slots=True)
class RemoveSchedule:
    """Take a schedule away, up to the revision that was seen."""

    tenant: str
    rule: str
    revision: int


def decide_schedules(rules: list[TriggerRule], stored: list[Stored]) -> list[PutSchedule | RemoveSchedule]:
    """What makes the schedules those of the rules. What lies there under no rule's name is left alone."""
    wanted = {subjects.cron_at(rule.tenant, rule.name): rule for rule in rules if rule.on.schedule is not None}
    there = {message.subject: message for message in stored}
    steps: list[PutSchedule | RemoveSchedule] = []
    for subject, rule in sorted(wanted.items()):
        message = there.get(subject)
        if message is None or not _is_of(message, rule):
            steps.append(PutSchedule(rule, message.sequence if message else 0))
    for subject, message in sorted(there.items()):
        if subject in wanted:
            continue
        try:
            steps.append(RemoveSchedule(*subjects.parse_cron(subject), message.sequence))
        except InvalidName:
            continue
    return steps


async def read_schedules(requests: Requests) -> list[Stored]:
    """Every schedule that is there. Raises `BrokerUnavailable`."""
    # Few among half a million timers: a page of them would be searched for up to the stream's end.
    names = list(await subjects_of(requests, "TIMERS", subjects.CRON_ALL))
    found: list[Stored] = []
    for start in range(0, len(names), LAST_SUBJECTS_MAX):
        found += await last_of_each(requests, "TIMERS", *names[start : start + LAST_SUBJECTS_MAX])
    return found


async def put_schedule(requests: Requests, rule: TriggerRule, revision: int | None = None) -> None:
    """Write a rule's schedule; with `revision` only if nobody else has meanwhile.

    Raises `RuleInvalid` for a schedule that the server does not take, and `BrokerError`, `BrokerUnavailable`.
    """
    message_headers = _headers_of(rule)
    if revision is not None:
        message_headers[headers.EXPECTED_LAST_SUBJECT_SEQUENCE] = str(revision)
    try:
        await requests.publish(subjects.cron_at(rule.tenant, rule.name), _BODY, message_headers)
    except BrokerError as error:
        if error.number in _REFUSED:
            raise RuleInvalid(f"on.schedule: the server does not take it: {error}") from None
        if revision is None or error.number not in WRONG_LAST_SEQUENCE:
            raise


async def remove_schedule(requests: Requests, tenant: str, rule: str, revision: int | None = None) -> None:
    """Take a schedule away, up to a revision. None that is there is fine. Raises `BrokerError`, `BrokerUnavailable`."""
    await requests.purge("TIMERS", subjects.cron_at(tenant, rule), revision + 1 if revision is not None else None)


_BODY = encode({})


def _headers_of(rule: TriggerRule) -> dict[str, str]:
    message_headers = {
        headers.SCHEDULE: rule.on.schedule or "",
        headers.SCHEDULE_TARGET: subjects.cron_fired(rule.tenant, rule.name),
        headers.SCHEDULE_TTL: f"{FIRED_TTL_SECONDS}s",
    }
    if rule.on.time_zone is not None:
        message_headers[headers.SCHEDULE_TIME_ZONE] = rule.on.time_zone
    return message_headers


def _is_of(message: Stored, rule: TriggerRule) -> bool:
    wanted = _headers_of(rule)
    names = (headers.SCHEDULE, headers.SCHEDULE_TARGET, headers.SCHEDULE_TIME_ZONE)
    return all(message.headers.get(name) == wanted.get(name) for name in names)
