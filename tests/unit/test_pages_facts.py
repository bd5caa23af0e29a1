"""Figures and names that pages have and that the code has too: neither can move without the other."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from contracts.retries import NAK_SECONDS_MAX, STEP_POLICY
from contracts.streams import LANE_BACKLOG_MAX, RESULTS, SIGNALS, SIGNALS_MAX, TASKS_MAX
from contracts.tasks import BODY_BYTES_MAX
from mesh.access.limits import BURST_SECONDS, FAILURES_PER_MINUTE, REQUESTS_PER_SECOND
from mesh.configuration.breaker_table import BreakerSettings
from mesh.configuration.critic_table import CriticConfiguration
from mesh.configuration.mesh_toml import PoolConfiguration
from mesh.configuration.results_table import ResultsConfiguration
from mesh.configuration.settings import Settings, variable_fields
from tests.benchmarks.__main__ import BENCHMARKS
from tests.chaos.cluster import INCIDENTS
from tests.chaos.matrix import SCENARIOS
from tests.support.pages import ROOT

SETTINGS = Settings()
BREAKER = BreakerSettings()
CRITIC = CriticConfiguration(codes=["tool-error"])
HOUR_SECONDS = 3600
BENCHMARK_HEADS = "| name | what it does | figures |"


def table(page: str, heads: str) -> list[list[str]]:
    """The rows of the table of a page with these heads, as the page has them."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    rows: list[list[str]] = []
    for line in lines[lines.index(heads) + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.split("|")[1:-1]])
    return rows


def column(rows: Sequence[Sequence[str]], number: int) -> list[str]:
    """One column of a table, without what is empty in it."""
    return [row[number] for row in rows if row[number]]


def names(cells: Sequence[str]) -> list[str]:
    """What stands in backquotes."""
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_the_limits_are_the_codes() -> None:
    assert column(table("operating.md", "| what | at most | then | setting |"), 1) == [
        f"{LANE_BACKLOG_MAX:,}",
        f"{TASKS_MAX:,}",
        f"{SETTINGS.high_water_percent:g} %",
        f"{PoolConfiguration().wait_seconds:g} s",
        f"{BODY_BYTES_MAX // 1024} KiB",
        f"{SETTINGS.edge_streams_max:,}",
        f"{REQUESTS_PER_SECOND:g} a second, {REQUESTS_PER_SECOND * BURST_SECONDS:,.0f} at once",
        f"{FAILURES_PER_MINUTE:g} a minute",
        f"{SETTINGS.worker_concurrency}",
        "what it bears",
        f"{SETTINGS.max_tries}",
        f"{SETTINGS.max_deliver}",
        "a quarter of the bucket `results`",
        f"{SETTINGS.waiting_hours:g} h",
    ]


def test_what_is_kept_is_kept_as_long() -> None:
    signals = SIGNALS.max_age_seconds / HOUR_SECONDS / 24
    assert RESULTS.max_age_seconds == 0
    assert ResultsConfiguration().tenant_share == 0.25
    assert SIGNALS_MAX == 1_000_000
    assert column(table("operating.md", "| what | how long | setting |"), 1)[:-1] == [
        f"{SETTINGS.retention_days:g} days",
        "for ever",
        f"{SETTINGS.delta_retention_hours:g} h",
        "as long as their task",
        f"{signals:g} days, and a million at most",
    ]


def test_every_variable_of_the_tables_is_one() -> None:
    known = {f"MESH_{field.name.upper()}" for field in variable_fields()}
    for heads in ("| what | at most | then | setting |", "| what | how long | setting |"):
        named = names(column(table("operating.md", heads), -1))
        assert {name for name in named if name.startswith("MESH_")} <= known


def test_every_event_and_code_of_the_tables_is_in_the_code() -> None:
    sources = "".join(path.read_text() for folder in ("libs", "services") for path in (ROOT / folder).rglob("*.py"))
    named = names(column(table("operating.md", "| event | it means |"), 0))
    named += names(column(table("failure.md", "| what failed | codes | what follows |"), 1))
    assert [name for name in named if f'"{name}"' not in sources] == []


@pytest.mark.parametrize(
    "said",
    [
        f"up to {STEP_POLICY.delay_seconds_first:g} s after the first try",
        f"never above {STEP_POLICY.delay_seconds_max:g} s",
        f"A longer delay than {NAK_SECONDS_MAX:g} s is a timer",
        f"within the lease of {SETTINGS.ack_wait_seconds:g} s",
        f"at most {CRITIC.per_hour_max} dead letters an hour",
        f"within {BREAKER.window_seconds:g} s have failed",
        f"the pool's `wait_seconds` ({PoolConfiguration().wait_seconds:g})",
        f"comes after {BREAKER.open_seconds:g} s, then after {2 * BREAKER.open_seconds:g} s",
    ],
)
def test_figures_of_failures_are_the_codes(said: str) -> None:
    assert said in " ".join((ROOT / "docs" / "failure.md").read_text().split())


def test_words_for_figures_of_failures_still_fit() -> None:
    assert (SETTINGS.max_tries, SETTINGS.max_deliver, CRITIC.proposals_max) == (5, 10, 3)
    assert (BREAKER.samples_min, BREAKER.failure_rate, BREAKER.open_seconds_max) == (10, 0.5, 60)
    assert STEP_POLICY.retry_after_seconds_max == HOUR_SECONDS


def test_every_benchmark_and_every_run_of_the_matrix_is_explained() -> None:
    assert names(column(table("performance.md", BENCHMARK_HEADS), 0)) == list(BENCHMARKS)
    runs = names(column(table("guarantees.md", "| run | what happens in it |"), 0))
    assert runs == [scenario.name for scenario in SCENARIOS]
    incidents = table("guarantees.md", "| incident | what is done | silent for at most |")
    assert names(column(incidents, 0)) == list(INCIDENTS)
    silent = [float(cell.split(" ")[0]) for cell in column(incidents, 2)]
    assert silent == [incident.gap_seconds_max for incident in INCIDENTS.values()]


def test_every_figure_of_the_table_has_its_benchmark() -> None:
    figures = column(table("performance.md", "| figure | measured | limit | ratio | which means |"), 0)
    measured = [words for cell in column(table("performance.md", BENCHMARK_HEADS), 2) for words in cell.split(", ")]
    assert [figure for figure in figures if not any(words in figure for words in measured)] == []
    assert [words for words in measured if not any(words in figure for figure in figures)] == []
