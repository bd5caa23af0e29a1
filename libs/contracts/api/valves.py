"""Valves over HTTP: what is asked of one, and the list of them; and the cancelling of many tasks."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.codec import exactly
from contracts.fields import Count, LaneName, Seconds, Time
from contracts.messages.control import Reason
from contracts.records.status import Metadata, Status, TaskRecord
from contracts.records.valves import Limits, TenantLimits, Valve, Why
from contracts.tasks import Priority

VALVE_SECONDS_MAX = 366 * 24 * 3600
"""A year: what is to be paused for longer is paused without an end."""
CANCEL_CURSOR_CHARACTERS_MAX = 256
CANCELLED_AT_ONCE_MAX = 200
"""Commands of one request: some seconds' work, after which its caller hears of it."""
SAMPLE_MAX = 10
"""Tasks that a dry run shows."""

HowLong = Annotated[float, Meta(gt=0, le=VALVE_SECONDS_MAX)]


class PauseRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a valve is to be shut: until a time, or for so many `seconds`; without either until somebody opens it."""

    reason: Why | None = None
    until: Time | None = None
    seconds: HowLong | None = None


class LimitsRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which limits a tenant is to have, until a time or for so many `seconds`: one of the two has to be there."""

    limits: Limits
    reason: Why | None = None
    until: Time | None = None
    seconds: HowLong | None = None


class ValveList(msgspec.Struct, frozen=True, kw_only=True):
    """All that is paused at present, and all limits that hold for a while."""

    valves: list[Valve]
    limits: list[TenantLimits]


class CancelRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which of a tenant's tasks are to be cancelled: those that fit all that is said, and have not ended.

    `older_than_seconds` since they were accepted; `created_before`: accepted before then, as a dry run's answer has it.
    `dry_run`: count them, and cancel none. `cursor`: that of the answer before, with the same filter.
    """

    status: Status | None = None
    pool: LaneName | None = None
    priority: Priority | None = None
    older_than_seconds: Seconds = 0
    created_before: Time | None = None
    metadata: Metadata = {}
    reason: Reason | None = None
    dry_run: bool = False
    cursor: Annotated[str, exactly(r"[A-Za-z0-9_-]+", CANCEL_CURSOR_CHARACTERS_MAX)] | None = None


class CancelAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a piece of it. `matched` tasks were met; of these `asked` were given to the steward to cancel,
    and `already` had been before.

    `cursor` is where to go on; null at the end. `sample`: some of them, of a dry run. `created_before`: only tasks that
    were accepted before then were met; a request with it meets none that came later.
    """

    matched: Count
    asked: Count
    already: Count
    by_status: dict[Status, Count]
    sample: list[TaskRecord]
    cursor: str | None
    created_before: Time | None = None
