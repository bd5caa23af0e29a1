"""Types of fields that messages, records and events share: their patterns and bounds."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from contracts.codec import exactly
from contracts.subjects import (
    CALL_PATTERN,
    LANE_NAME_PATTERN,
    SIGNAL_FILTER_PATTERN,
    STEP_PATTERN,
    TASK_PATTERN,
    TENANT_PATTERN,
)

# What reaches a subject is checked once more by contracts.subjects.
Id = Annotated[str, exactly(TASK_PATTERN, 26)]
Tenant = Annotated[str, exactly(TENANT_PATTERN)]
LaneName = Annotated[str, exactly(LANE_NAME_PATTERN)]
Call = Annotated[str, exactly(CALL_PATTERN)]
SignalFilter = Annotated[str, exactly(SIGNAL_FILTER_PATTERN, 256)]
"""Signals below a tenant: `inventory.*`."""
Step = Annotated[str, exactly(STEP_PATTERN)]
"""A turn (`"1"`) or a call (`"1-0"`)."""
Count = Annotated[int, Meta(ge=0)]
Ordinal = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]
Time = Annotated[datetime, Meta(tz=True)]
BY_CHARACTERS_MAX = 256
By = Annotated[str, Meta(min_length=1, max_length=BY_CHARACTERS_MAX)]
"""Who wants something: a caller's name, such as `key:<id>`, or what of the mesh does (`contracts.actors`)."""
DIGITS_MAX = 19
"""Of a number of 63 bits."""


def whole_number(text: str, digits_max: int = DIGITS_MAX) -> int | None:
    """The number that a stranger's text of digits stands for; None if it is another text, or longer.

    `isdigit` takes digits of other scripts, which `int` does not all read, nor does it read thousands of digits.
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) <= digits_max else None
