"""`python -m tests.chaos [--seed N] [--run NAME] [--points SUBSTRING] [--quick]`: kill matrix, `ledger`, `cluster`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from tests.benchmarks.figures import percentile
from tests.chaos import bookkeeping
from tests.chaos.bookkeeping import LedgerReport, run_ledger
from tests.chaos.cluster import INCIDENTS, ClusterReport, Load, row, run_cluster
from tests.chaos.matrix import CONTROLS, SCENARIOS, Matrix, Report
from tests.chaos.points import Point
from tests.chaos.runs import Outcome
from tests.chaos.scenario import Scenario
from tests.support import children
from tests.support.processes import ROOT

QUICK_SHARE = 0.1
CLUSTER = "cluster"
"""The run that is none of the matrix: its points are incidents of servers."""
LEDGER = "ledger"
"""Neither is this: whoever dies in it dies by chance."""
CLUSTER_LOAD, CLUSTER_QUICK_LOAD = Load(50, 180), Load(10, 20)
PROGRESS_RUNS = 20
"""After so many runs a line is printed."""


def main() -> int:
    """Exit status 1 if anything was found, or a point was not covered, or a control found nothing."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="order of the points, and choice of --quick")
    names = [*(each.name for each in SCENARIOS), LEDGER, CLUSTER]
    parser.add_argument("--run", default="", choices=names, help="only points of this run")
    parser.add_argument("--points", default="", help='only points whose name contains this, e.g. "kill steward"')
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SHARE:.0%}% of the points, little load")
    parser.add_argument("--rate", type=float, help=f"tasks a second of `{LEDGER}` and `{CLUSTER}`")
    parser.add_argument(
        "--seconds", type=float, help=f"how long `{LEDGER}`, and each incident of `{CLUSTER}`, has load"
    )
    parser.add_argument("--meshes", type=int, default=2 * (os.cpu_count() or 1), help="meshes beside each other")
    parser.add_argument("--keep", type=Path, help="folder for logs and stores of meshes in which something went wrong")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    # What the harness's own connections say of brokers that die is no news.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    _say(f"seed {seed}, commit {_commit()}")
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        folder = arguments.keep or Path(scratch)
        reports = asyncio.run(_run(folder, seed, arguments))
        ledger = asyncio.run(_run_ledger(folder / LEDGER, seed, arguments))
        clusters = asyncio.run(_run_clusters(folder / CLUSTER, seed, arguments))
    if reports:
        _say(f"\n{table(reports)}\n")
    for problem in ledger.violations if ledger is not None else ():
        _say(f"VIOLATION {LEDGER}: {problem}")
    for each in clusters:
        for problem in each.violations:
            _say(f"VIOLATION {CLUSTER}: {each.incident}: {problem}")
    for name, report in reports.items():
        for point, problem in report.violations:
            _say(f"VIOLATION {name}: {point or 'undisturbed'}: {problem}")
        for traceback in report.tracebacks:
            _say(f"UNHANDLED {name}: {traceback}")
        for wrong in report.ledger:
            _say(f"LEDGER {name}: {wrong}")
        for point in report.missed:
            _say(f"NOT COVERED {name}: {point}")
        for safeguard, found in report.controls.items():
            _say(f"{name} without {safeguard}: {_found(found)}")
    unknown = sum(outcome.unknown_calls for report in reports.values() for outcome in report.outcomes)
    _say(f"{unknown} calls that must not run twice ended as unknown, since their runner died or slept meanwhile")
    took_seconds = time.monotonic() - started_at
    passed = all(report.passed for report in reports.values())
    passed = passed and not any(each.violations for each in clusters)
    passed = passed and (ledger is None or not ledger.violations)
    _say(f"{took_seconds:.0f} s, seed {seed}, commit {_commit()}: {'ok' if passed else 'FAILED'}")
    if not passed:
        run = f"--run {arguments.run} " if arguments.run else ""
        _say(f'again: make chaos ARGS="{run}--seed {seed}", or --points "…" for some of the points')
    return 0 if passed else 1


async def _run(folder: Path, seed: int, arguments: argparse.Namespace) -> dict[str, Report]:
    """The matrix of each scenario, one after the other, each with its controls."""
    reports: dict[str, Report] = {}
    for scenario in SCENARIOS:
        if arguments.run in ("", scenario.name):
            reports[scenario.name] = await _run_scenario(folder / scenario.name, scenario, seed, arguments)
    return {name: report for name, report in reports.items() if report.points or not arguments.points}


async def _run_ledger(folder: Path, seed: int, arguments: argparse.Namespace) -> LedgerReport | None:
    """Accounts under load and deaths; with `--points` it is not meant."""
    if arguments.run not in ("", LEDGER) or arguments.points:
        return None
    rate, seconds = bookkeeping.QUICK_LOAD if arguments.quick else bookkeeping.LOAD
    load = Load(arguments.rate or rate, arguments.seconds or seconds)
    report = await run_ledger(folder, load, seed)
    for line in report.lines:
        _say(f"  {LEDGER}: {line}")
    return report


async def _run_clusters(folder: Path, seed: int, arguments: argparse.Namespace) -> list[ClusterReport]:
    """Each incident of a cluster, one after the other, each on a mesh of its own."""
    reports: list[ClusterReport] = []
    rate, seconds = CLUSTER_QUICK_LOAD if arguments.quick else CLUSTER_LOAD
    load = Load(arguments.rate or rate, arguments.seconds or seconds)
    for name in INCIDENTS if arguments.run == CLUSTER else ():
        if arguments.points in name:
            reports.append(await run_cluster(folder / name.replace(" ", "-"), name, load, seed))
            _say(f"  {CLUSTER}: {row(reports[-1])}")
    return reports


async def _run_scenario(folder: Path, scenario: Scenario, seed: int, arguments: argparse.Namespace) -> Report:
    runs = 0

    def tell(outcome: Outcome) -> None:
        nonlocal runs
        runs += 1
        for problem in outcome.violations:
            _say(f"  {scenario.name}: {outcome.point or 'undisturbed'}: {problem}")
        if runs % PROGRESS_RUNS == 0:
            _say(f"  {scenario.name}: {runs} runs, {len(matrix.report.covered)} of {len(matrix.report.points)} points")

    def choose(points: list[Point], chance: random.Random) -> list[Point]:
        points = [point for point in points if arguments.points in str(point)]
        return chance.sample(points, math.ceil(len(points) * QUICK_SHARE)) if arguments.quick else points

    slots = arguments.meshes * scenario.meshes
    matrix = Matrix(folder, seed, scenario, slots=slots, on_outcome=tell)
    await matrix.run(choose)
    for safeguard, control in CONTROLS.items():
        if control.scenario is scenario:
            await matrix.control(safeguard)
    return matrix.report


def _found(violations: list[str]) -> str:
    if not violations:
        return "THE CHECKER FOUND NOTHING"
    kinds = ", ".join(sorted({problem.partition(":")[0] for problem in violations}))
    return f"the checker found {kinds}; such as {violations[-1]}"


def table(reports: dict[str, Report]) -> str:
    """For each run a line for each fault and service, and one for all."""
    rows = [("run", "fault", "points", "covered", "runs", "violations", "takeover p50", "max")]
    for run, report in reports.items():
        for fault, service in sorted({(point.fault, point.service) for point in report.points}):
            chosen = [
                each
                for each in report.outcomes
                if each.point and (each.point.fault, each.point.service) == (fault, service)
            ]
            name = f"nats-server dies, {service} writes" if fault == "broker" else f"{service} {_PAST[fault]}"
            points = [point for point in report.points if (point.fault, point.service) == (fault, service)]
            rows.append((run, *_row(name, points, chosen)))
        rows.append((run, *_row("nothing", [], [each for each in report.outcomes if each.point is None])))
        rows.append((run, *_row("all", report.points, report.outcomes)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


_PAST = {"kill": "is killed", "pause": "sleeps past its lease", "drain": "is told to stop"}


def _row(name: str, points: Sequence[Point], outcomes: Sequence[Outcome]) -> tuple[str, str, str, str, str, str, str]:
    covered = {outcome.point for outcome in outcomes if outcome.reached}
    seconds = [outcome.takeover_seconds for outcome in outcomes if outcome.takeover_seconds is not None]
    return (
        name,
        str(len(points)),
        str(len(covered)),
        str(len(outcomes)),
        str(sum(bool(outcome.violations) for outcome in outcomes)),
        f"{percentile(seconds, 50):.2f} s" if seconds else "-",
        f"{max(seconds):.2f} s" if seconds else "-",
    )


def _commit() -> str:
    """The commit that is checked out, `+` if the tree has changes beside it."""
    told = children.run_blocking(["git", "-C", ROOT, "describe", "--always", "--dirty=+", "--abbrev=12"])
    return told.stdout.strip() or "unknown"


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - for people


if __name__ == "__main__":
    sys.exit(main())
