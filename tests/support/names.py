"""Names taken apart that only their readers in other languages take apart: keys of buckets, and filters of signals."""

from __future__ import annotations

import msgspec

from contracts import subjects
from contracts.errors import InvalidName
from contracts.fields import SignalFilter


def parse_task_key(key: str) -> tuple[str, str]:
    """Tenant and task of a key in the bucket `tasks`."""
    tenant, dot, task = key.partition(".")
    if not dot:
        raise InvalidName(f"not a task key: {key!r:.120}")
    return subjects.check_tenant(tenant), subjects.check_task(task)


def parse_trigger_key(key: str) -> tuple[str, str]:
    """Tenant and rule of a key in the bucket `triggers`."""
    tenant, _, rule = key.partition(".")
    return subjects.check_tenant(tenant), subjects.check_rule(rule)


def check_signal_filter(value: str) -> str:
    """A filter of signals as messages hold it (`inventory.*`, `orders.>`), unchanged; else `InvalidName`."""
    try:
        return msgspec.convert(value, SignalFilter)
    except msgspec.ValidationError as error:
        raise InvalidName(str(error)) from None
