"""A digest of what has to be alike in all processes of a fleet."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from mesh.configuration.settings import Settings

DIGITS: Final = 12
ALIKE: Final = (
    "ack_wait_seconds",
    "max_tries",
    "max_deliver",
    "retention_days",
    "delta_retention_hours",
    "pack_after_hours",
    "hot_tasks_max",
    "reconcile_after_seconds",
    "waiting_hours",
    "high_water_percent",
)
"""The settings of which two values in one fleet are a mistake. Others, such as
addresses, folders and logs, are each process's own."""


def configuration_digest(settings: Settings) -> str:
    """12 hexadecimal digits: alike where the file says the same, in whatever order, and these settings are the same."""
    configuration = msgspec.structs.replace(settings.configuration, source="")
    values = {name: getattr(settings, name) for name in ALIKE}
    content = msgspec.json.encode([configuration, values], order="deterministic")
    return hashlib.sha256(content).hexdigest()[:DIGITS]
