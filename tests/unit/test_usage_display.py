"""Usage as people read it: costs, tables, a comparison's verdict; and as rows of a report."""

from __future__ import annotations

from datetime import date

import msgspec
import pytest
from rich.console import Console
from rich.table import Table

from contracts.api.usage import UsageRow
from contracts.journal.parts import Usage
from contracts.records.usage import Counter, Place
from mesh.ledger.audit import Audit, Difference, by_month, compared, corrections
from mesh.ledger.reports import periods, rows, total
from meshctl.commands.usage import verdict
from meshctl.display.rendering import cost_text
from meshctl.display.usage_table import differences_table, usage_table

HERE = Place("acme", "2026-11-27", "mine", "m", "default")
VALUES = {
    Counter(HERE, "input"): 1_200,
    Counter(HERE, "output"): 30,
    Counter(HERE, "cost"): 2_500_000,
    Counter(HERE, "turns"): 2,
    Counter(HERE._replace(provider="other"), "output"): 7,
    Counter(HERE._replace(provider="other"), "unpriced"): 7,
    Counter(HERE._replace(provider="other", period="2026-11-28"), "untold"): 1,
}


def printed(table: Table) -> list[list[str]]:
    console = Console(color_system=None, width=160)
    with console.capture() as captured:
        console.print(table)
    return [line.split() for line in captured.get().splitlines()]


@pytest.mark.parametrize(
    ("usage", "text"),
    [
        (Usage(1, 2, cost_micros=1_234_567), "1.234567"),
        (Usage(1, 2, cost_micros=0), "0.000000"),
        (Usage(1, 2, cost_micros=5, unpriced_tokens=2_000), "0.000005, and 2,000 tokens without a price"),
        (Usage(untold_calls=1), "unknown, and 1 call that told no usage"),
        (Usage(1, 2, cost_micros=5, untold_calls=2), "0.000005, and 2 calls that told no usage"),
    ],
)
def test_a_cost_says_what_is_not_in_it(usage: Usage, text: str) -> None:
    assert cost_text(usage) == text


def test_rows_are_sums_by_what_was_asked_for() -> None:
    mine, other = rows(VALUES, "provider")
    assert (mine.name, mine.input_tokens, mine.output_tokens, mine.cost_micros) == ("mine", 1_200, 30, 2_500_000)
    assert (other.name, other.unpriced_tokens, other.untold_calls) == ("other", 7, 1)
    assert other.cost_micros is msgspec.UNSET
    assert [row.name for row in rows(VALUES, "day")] == ["2026-11-27", "2026-11-28"]
    assert [row.name for row in rows(VALUES, "model")] == ["mine/m", "other/m"]
    assert [row.name for row in rows(VALUES, "tenant")] == ["acme"]
    assert total(VALUES) == UsageRow(
        input_tokens=1_200, output_tokens=37, turns=2, cost_micros=2_500_000, unpriced_tokens=7, untold_calls=1
    )
    assert total({}) == UsageRow(input_tokens=0, output_tokens=0)
    free = {Counter(HERE, "input"): 5}  # at a price of 0 there is no counter of costs, nor any without a price
    assert total(free).cost_micros == 0


def test_the_table_has_a_line_for_each_row_and_one_for_all() -> None:
    lines = printed(usage_table("provider", rows(VALUES, "provider"), total(VALUES)))
    assert lines[0][:2] == ["PROVIDER", "IN"]
    assert lines[1] == ["mine", "1,200", "-", "30", "-", "2", "2.500000", "-", "-"]
    assert lines[2] == ["other", "-", "-", "7", "-", "-", "unknown", "7", "1"]
    assert lines[3] == ["total", "1,200", "-", "37", "-", "2", "2.500000", "7", "1"]


def test_a_comparison_tells_what_differs_and_what_to_do() -> None:
    difference = Difference(Counter(HERE, "input"), 5, 6)
    same = Audit(date(2026, 11, 1), date(2026, 11, 27), 1_234, [], 0)
    assert verdict(same, rebuilt=False) == (
        "The counters agree with the journals: 1,234 turns since 2026-11-01. Of days before that no journals are kept."
    )
    assert verdict(same._replace(since=date(2026, 11, 28)), rebuilt=False).startswith("No day can be held against")
    wrong = same._replace(differences=[difference])
    assert "`meshctl usage --rebuild` sets them right" in verdict(wrong, rebuilt=False)
    assert verdict(wrong, rebuilt=True).startswith("1 counters were set")
    assert printed(differences_table([difference]))[1] == ["usage.acme.2026-11-27.mine.m.default.input", "5", "6"]


def test_counters_are_compared_both_ways_and_months_are_sums_of_their_days() -> None:
    day, month = Counter(HERE, "input"), Counter(HERE._replace(period="2026-11"), "input")
    other = Counter(HERE._replace(period="2026-11-28"), "input")
    assert by_month({day: 3, other: 4}, {"2026-11"}) == {month: 7}
    assert by_month({day: 3, other: 4}, {"2026-12"}) == {}
    found = compared({day: 3, other: 4}, {day: 3, month: 7})
    assert found == [Difference(month, 0, 7), Difference(other, 4, 0)]
    assert corrections(found) == {month: -7, other: 4}


def test_a_report_is_of_days_or_whole_months_and_no_more_than_there_are() -> None:
    assert periods("day", date(2026, 11, 30), date(2026, 12, 1)) == ["2026-11-30", "2026-12-01"]
    assert periods("model", date(2026, 11, 30), date(2026, 11, 30)) == ["2026-11-30"]
    assert periods("month", date(2026, 11, 30), date(2026, 12, 1)) == ["2026-11", "2026-12"]
    for by, since in (("day", date(2025, 1, 1)), ("month", date(2000, 1, 1)), ("pool", date(2026, 12, 2))):
        with pytest.raises(ValueError, match="since"):
            periods(by, since, date(2026, 12, 1))  # type: ignore[arg-type]  # one of the words
