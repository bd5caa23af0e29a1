"""What the fleet knows of a tenant's budgets: its account, in the bucket `budgets`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.fields import Count, Tenant, Time

HELD_MAX = 16
"""Slots of reservations in an account."""
RUNNING_MAX = 1_024
"""Processes in an account that have turns of the tenant under way."""


class WindowSpent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What turns have used in a window, those that still run included. `since` is when the window began."""

    since: Time
    tokens: Count = 0
    cost_micros: Count = 0


class HeldSlot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What tasks that were accepted in some minutes, from `since` on, are thought to use, and have not begun."""

    since: Time
    tokens: Count = 0
    cost_micros: Count = 0


class RunningTurns(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a process's turns under way are thought to use beyond what the windows have of them.

    `flush` is the number of the process's last write: by it one that got no answer knows whether it was stored.
    """

    worker: Annotated[str, Meta(min_length=1, max_length=255)]
    time: Time
    flush: Count = 0
    expected_tokens: Count = 0
    expected_cost_micros: Count = 0


class BudgetAccount(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a tenant has used of its budgets, and reserved, in the bucket `budgets` under its name.

    Times are the mesh's. A window that is over counts as empty; so do reservations of more than an hour ago, and the
    turns of a process that has not written for half a minute.
    """

    tenant: Tenant
    time: Time
    minute: WindowSpent | None = None
    day: WindowSpent | None = None
    month: WindowSpent | None = None
    held: Annotated[list[HeldSlot], Meta(max_length=HELD_MAX)] = []
    running: Annotated[list[RunningTurns], Meta(max_length=RUNNING_MAX)] = []
