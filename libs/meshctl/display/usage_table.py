"""What `meshctl usage` shows people: a line for each day, model or tenant, and what differs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from rich.table import Table

from contracts.api.usage import UsageRow
from mesh.ledger.audit import Difference
from mesh.ledger.counters import MICROS
from meshctl.display.tables import cell, plain_table

_UNKNOWN: Final = "unknown"


def usage_table(head: str, rows: Sequence[UsageRow], total: UsageRow) -> Table:
    """One line for each row, and one for all of them."""
    table = plain_table()
    table.add_column(head.upper(), overflow="fold")
    for each in ("IN", "CACHED", "OUT", "REASONING", "TURNS", "COST", "NO PRICE", "NOT TOLD"):
        table.add_column(each, no_wrap=True, justify="right")
    table.show_header = True
    for row in (*rows, msgspec.structs.replace(total, name="total")):
        style = "bold" if row.name == "total" and row is not total else ""
        table.add_row(
            cell(row.name, style),
            _number(row.input_tokens),
            _number(row.cached_tokens),
            _number(row.output_tokens),
            _number(row.reasoning_tokens),
            _number(row.turns),
            cost(row),
            _number(row.unpriced_tokens),
            _number(row.untold_calls),
        )
    return table


def cost(row: UsageRow) -> str:
    """What a row has cost, in the currency of the prices."""
    if not (row.input_tokens or row.output_tokens):
        return "-"
    return _UNKNOWN if row.cost_micros is msgspec.UNSET else f"{row.cost_micros / MICROS:,.6f}"


def differences_table(differences: Sequence[Difference]) -> Table:
    """One line for each counter that is not what it should be."""
    table = plain_table("COUNTER", "SHOULD BE", "IS")
    for each in differences:
        table.add_row(cell(each.counter.subject), f"{each.should_be:,}", f"{each.is_:,}")
    return table


def _number(value: int) -> str:
    return f"{value:,}" if value else "-"
