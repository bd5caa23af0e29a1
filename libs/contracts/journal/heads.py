"""What every event begins with, whatever its type."""

from __future__ import annotations

from typing import Annotated

import msgspec

from contracts.codec import exactly
from contracts.fields import Count, Id, Tenant

EVENT_TYPE_PATTERN = r"[a-z][a-z_]{0,31}(\.[a-z][a-z_]{0,31}){0,3}"


class EventHead(msgspec.Struct, frozen=True):
    """What must be known of any event, also of one whose type is news."""

    type: Annotated[str, exactly(EVENT_TYPE_PATTERN)]
    id: Id
    task: Id
    tenant: Tenant
    n: Count
