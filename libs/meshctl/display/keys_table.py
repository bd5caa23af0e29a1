"""API keys as a table for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from rich.table import Table

from contracts.access import KeyRecord
from mesh.access.keys import state_of
from meshctl.display.rendering import time_text
from meshctl.display.tables import cell, plain_table

_STYLES: Final = {"valid": "green", "revoked": "red", "expired": "yellow"}


def keys_table(records: Sequence[KeyRecord], at: datetime) -> Table:
    """Keys, one on each line, as they are at this time."""
    table = plain_table("KEY", "STATE", "TENANT", "SCOPES", "EXPIRES", "LIMITS", "NAME")
    for record in records:
        state = state_of(record, at)
        limits = [f"pool {record.pool}"] if record.pool is not None else []
        limits += [f"{record.budget_tokens:,} tokens"] if record.budget_tokens is not None else []
        table.add_row(
            cell(record.id),
            cell(state, _STYLES[state]),
            cell("any" if record.any_tenant else record.tenant),
            cell(",".join(record.scopes)),
            cell(time_text(record.expires_at) if record.expires_at is not None else "never"),
            cell(", ".join(limits)),
            cell(record.name or ""),
        )
    return table
