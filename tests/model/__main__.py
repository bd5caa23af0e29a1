"""`python -m tests.model [--traces]`: search every configuration, then find what each rule prevents. Prints tables."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.model.checker import Result, TooLarge
from tests.model.configurations import ALL, SHOWN_BY
from tests.model.rules import MUST_BE_NEEDED, Off
from tests.model.searches import search_named
from tests.support import children

PROCESSES_MAX = 4
"""Each holds the states of one configuration: 150 MiB for 190,000, so about 350 at the most that may be searched."""


def _tell_trace(result: Result) -> None:
    for number, line in enumerate(result.trace, start=1):
        print(f"      {number:2}  {line}")


def _hold(pool: ProcessPoolExecutor) -> bool:
    """Search each configuration with all rules. True if none is violated."""
    print(f"{'with all rules':33} {'states':>8} {'depth':>6}  result", flush=True)
    holds, states = True, 0
    names = [configuration.name for configuration in ALL]
    for name, result in zip(names, pool.map(search_named, names, [None] * len(names)), strict=True):
        if isinstance(result, TooLarge):
            print(f"{name:33} {'':8} {'':6}  too large: {result}", flush=True)
            holds = False
            continue
        states += result.states
        print(f"{name:33} {result.states:8,} {result.depth:6}  {result.violation or 'holds'}", flush=True)
        if result.violation is not None:
            _tell_trace(result)
            holds = False
    print(f"{'together':33} {states:8,}")
    return holds


def _break(pool: ProcessPoolExecutor, traces: bool) -> bool:
    """Search with one switch off at a time. True if each is found."""
    print(f"\n{'rule':>4}  {'a writer, or a follower, who …':78} {'steps':>5}  found, and where")
    names = [SHOWN_BY[off] for off in Off]
    rules_found: set[int | str] = set()
    missed = False
    for off, name, result in zip(Off, names, pool.map(search_named, names, list(Off)), strict=True):
        if isinstance(result, TooLarge) or result.violation is None:
            print(f"{off.rule:>4}  {off.meaning:78} {'':5}  NOT FOUND in {name}", flush=True)
            missed = True
            continue
        rules_found.add(off.rule)
        print(f"{off.rule:>4}  {off.meaning:78} {len(result.trace):5}  {result.violation} ({name})", flush=True)
        if traces:
            _tell_trace(result)
    return not missed and rules_found >= set(MUST_BE_NEEDED)


def main() -> int:
    """0 if the model holds with all rules, and the absence of each is found."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=main.__doc__)
    parser.add_argument("--traces", action="store_true", help="print the steps to each violation")
    arguments = parser.parse_args()
    began_at = time.perf_counter()
    children.guard()
    # Not forked: a copy of this process would keep its guardian waiting.
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(PROCESSES_MAX, os.cpu_count() or 1), mp_context=spawned) as pool:
        holds = _hold(pool)
        needed = _break(pool, arguments.traces)
    print(f"\n{time.perf_counter() - began_at:.0f} s: ", end="")
    if holds and needed:
        print("all rules hold what they promise, and each is needed")
        return 0
    print("FAILED: " + ("a rule can be left out unnoticed" if holds else "the rules don't hold"))
    return 1


if __name__ == "__main__":
    sys.exit(main())
