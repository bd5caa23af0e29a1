"""`python -m tests.benchmarks [names…] [--quick] [--tasks N] [--json FILE]`: measure, print a table, write JSON."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import structlog
import uvloop

from tests.benchmarks import (
    accept,
    agents,
    budgets,
    callers,
    capacity,
    commands,
    eta,
    fairness,
    fan_out,
    first_token,
    fleet,
    footprint,
    fsyncs,
    journal,
    ledger,
    long_runs,
    months,
    pace,
    packing,
    resume,
    retention,
    rolling,
    routing,
    takeover,
)
from tests.benchmarks.bench import Run
from tests.benchmarks.figures import Figure, table
from tests.support import children
from tests.support.broker import PROGRAM
from tests.support.patience import within

RESULTS = Path(__file__).parent / "results"
SECONDS_MAX = 900.0
"""How long one benchmark may take; one that takes longer fails, and the others go on."""

BENCHMARKS: dict[str, Callable[[Run], Awaitable[list[Figure]]]] = {
    "accept": accept.measure,
    "budgets": budgets.measure,
    "callers": callers.measure,
    "eta": eta.measure,
    "first_token": first_token.measure,
    "fan_out": fan_out.measure,
    "tokens": journal.measure_tokens,
    "append": journal.measure_append,
    "fairness": fairness.measure,
    "resume": resume.measure,
    "months": months.measure,
    "packing": packing.measure,
    "retention": retention.measure,
    "ledger": ledger.measure,
    "fold": journal.measure_fold,
    "takeover": takeover.measure,
    "rolling": rolling.measure,
    "routing": routing.measure,
    "capacity": capacity.measure,
    "tools": agents.measure_tools,
    "suspended": agents.measure_suspended,
    "long_runs": long_runs.measure,
    "commands": commands.measure,
    "commands_beside": commands.measure_beside,
    "fleet": fleet.measure,
    "footprint": footprint.measure,
    "fsyncs": fsyncs.measure,
    "pace": pace.measure,
}
ONLY_IF_NAMED = ("rolling",)
"""Longer than all others together, unless it is quick."""
SECONDS_MAX_BY_NAME: dict[str, Callable[[Run], float]] = {
    "months": months.seconds_max,
    "pace": pace.seconds_max,
    "rolling": rolling.seconds_max,
}
"""The same of those whose size can be chosen."""


async def measure(names: list[str], quick: bool, seed: int, tasks: int | None) -> tuple[list[Figure], list[str]]:
    """Run benchmarks one after the other: their figures, and what failed."""
    figures: list[Figure] = []
    failures: list[str] = []
    for name in names:
        began_at = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="taskmesh-bench-") as folder:
            run = Run(Path(folder), seed, quick, tasks)
            seconds_max = SECONDS_MAX_BY_NAME[name](run) if name in SECONDS_MAX_BY_NAME else SECONDS_MAX
            try:
                async with within(seconds_max):
                    figures += await BENCHMARKS[name](run)
            except Exception as error:  # one that can't be measured here must not hide the others
                failures.append(f"{name}: {type(error).__name__}: {error}")
        print(f"{name}: {time.perf_counter() - began_at:.0f} s", file=sys.stderr, flush=True)
    return figures, failures


def environment(seed: int, quick: bool) -> dict[str, Any]:
    """What a reader of the figures must know."""
    server = children.run_blocking([PROGRAM, "--version"]).stdout.strip()
    packages = ("nats-py", "litestar", "uvicorn", "uvloop", "msgspec")
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "quick": quick,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "nats_server": server,
        **{package: version(package) for package in packages},
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(BENCHMARKS)} (all but rolling)")
    parser.add_argument("--quick", action="store_true", help="few and short rounds: whether it works, not how well")
    parser.add_argument("--json", type=Path, help="where to write (tests/benchmarks/results/<time>.json)")
    parser.add_argument("--seed", type=int, default=0, help="of what is shuffled (0)")
    parser.add_argument("--tasks", type=int, help=f"how many `months` fills in ({months.TASKS:,})")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    names = arguments.names or [name for name in BENCHMARKS if arguments.quick or name not in ONLY_IF_NAMED]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    about = environment(arguments.seed, arguments.quick)
    figures, failures = uvloop.run(measure(names, arguments.quick, arguments.seed, arguments.tasks))
    print(table(figures))
    print(f"\n{about['cores']} cores, load {about['load_average'][0]:.1f} at the start; {about['nats_server']}")
    path = arguments.json or RESULTS / f"{about['time'].replace(':', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "about": about,
        "figures": [{**asdict(figure), "ratio": figure.ratio} for figure in figures],
        "failures": failures,
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
    print(f"written to {path}")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
