"""`python -m tests.soak [--seed N] [--minutes M] [--rate R] [--quick]`: random kills under load, and what grows."""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import tempfile
from pathlib import Path

import structlog

from tests.soak.levels import BOUNDS
from tests.soak.soak import SoakReport, soak

MINUTES, QUICK_MINUTES = 20.0, 2.0
RATE, QUICK_RATE = 20.0, 10.0


def main() -> int:
    """Exit status 1 if anything was lost, doubled, stuck or wrong, or if anything grows."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seed", type=int, help="who is killed, when, and which tasks there are")
    parser.add_argument("--minutes", type=float, help=f"how long; {MINUTES:g} if not said")
    parser.add_argument("--rate", type=float, help=f"tasks a second; {RATE:g} if not said")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_MINUTES:g} minutes, {QUICK_RATE:g} tasks a second"
    )
    parser.add_argument("--keep", type=Path, help="folder for logs and the store")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    minutes = arguments.minutes or (QUICK_MINUTES if arguments.quick else MINUTES)
    rate = arguments.rate or (QUICK_RATE if arguments.quick else RATE)
    # What the harness's own connections say of brokers that die is no news.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    _say(f"seed {seed}, {minutes:g} minutes, {rate:g} tasks a second")
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        report = asyncio.run(soak(arguments.keep or Path(scratch), minutes * 60, rate, seed))
    _say(described(report))
    _say("ok" if not report.violations else f'FAILED; again: make soak ARGS="--seed {seed}"')
    return 1 if report.violations else 0


def described(report: SoakReport) -> str:
    """What came of it, in lines."""
    lines = [
        f"{report.accepted:,} tasks accepted in {report.seconds:.0f} s; ended: {dict(report.ended)}",
        f"{report.killed.total()} kills: {dict(report.killed)}; refused: {dict(report.refused)}",
    ]
    for name, bound in BOUNDS.items():
        before, after = report.levels.quarters(name, report.seconds)
        lines.append(f"{name}: {before:,.0f} in the second quarter, {after:,.0f} in the last {bound.unit}".rstrip())
    return "\n".join([*lines, *(f"VIOLATION {problem}" for problem in report.violations)])


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - to whoever runs it


if __name__ == "__main__":
    sys.exit(main())
