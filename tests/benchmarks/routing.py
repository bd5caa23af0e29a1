"""A pool that chooses: of two providers the quicker one becomes five times slower, fails, and recovers; then prices,
caches of prompts, and eight workers that must not all move at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from tests.benchmarks.bench import Run, stage
from tests.benchmarks.figures import Figure
from tests.support.checker import Recorded
from tests.support.choosing import INPUT_TOKENS, OUTPUT_TOKENS, Asked, Load, Remembering, Server, configured
from tests.support.http_client import PatientClient
from tests.support.model_server import model_server

QUICK_SECONDS, STEADY_SECONDS = 0.3, 0.5
SLOWER = 5
PER_SECOND = 15.0
WORKERS = 2
CHEAP, DEAR = (1.0, 2.0), (5.0, 10.0)
"""Prices of a million tokens: read, and put out."""
CHEAP_SECONDS = 2.0
WINDOW, MOST = 12, 10
"""A share has followed when so many of so many calls are where they should be."""
TIME_MAX, COST_MAX, FOLLOW_SECONDS_MAX = 1.2, 1.1, 10.0
TURNS, PROMPT_TOKENS, SECONDS_PER_TOKEN = 6, 2_000, 0.0003
CACHED_MIN = 0.8
HERD, HERD_PLACES, HERD_CALLS, SHARE_MIN = 8, 3, 30, 0.2
"""Workers; places of each of two servers that are alike; and the least part that each has of so many calls in a row."""


async def measure(run: Run) -> list[Figure]:
    """All, one after the other."""
    figures = [*await _measure_time(run), *await _measure_cost(run)]
    return [*figures, await _measure_prefixes(run), await _measure_herd(run)]


async def _measure_time(run: Run) -> list[Figure]:
    asked: list[Asked] = []
    quick, steady = Server("quick", asked, QUICK_SECONDS), Server("steady", asked, STEADY_SECONDS)
    phase_seconds = run.scale(20, 6)
    turned: list[tuple[float, str]] = []
    folder = run.folder / "time"
    folder.mkdir()
    async with model_server(quick) as one, model_server(steady) as other:
        variables = configured(folder, {"quick": one, "steady": other}, _pool("latency"))
        async with stage(folder, *_services(), **variables) as mesh, PatientClient(timeout=60) as client:
            load = Load(mesh.mesh, Recorded())
            for seconds, fails, leader in (
                (QUICK_SECONDS, False, "quick"),
                (QUICK_SECONDS * SLOWER, False, "steady"),
                (QUICK_SECONDS, True, "steady"),
                (QUICK_SECONDS, False, "quick"),
            ):
                quick.seconds, quick.fails = seconds, fails
                turned.append((time.monotonic(), leader))
                await load.paced(client, phase_seconds, PER_SECOND)
    took = sum(each.seconds or 0.0 for each in asked)
    best_fixed = len(load.tasks) * STEADY_SECONDS
    phases = zip(turned, _ends(turned), strict=True)
    followed = [_followed(asked, begin, end, leader) for (begin, leader), end in phases]
    failed = len(asked) - len(load.tasks)
    return [
        Figure(
            "routing: time of all turns, a provider slow, failing, recovered",
            "s",
            took,
            "the best fixed choice",
            best_fixed,
            target=f"≤ {TIME_MAX}",
            met=took <= TIME_MAX * best_fixed or run.quick,
            note=f"{len(load.tasks)} tasks, {PER_SECOND:.0f}/s, {WORKERS} workers; {failed} calls failed and were "
            "made again elsewhere. The best fixed choice is the other provider: the quicker one fails for a quarter",
        ),
        Figure(
            "routing: until shares follow, the longest",
            "s",
            max(followed),
            target=f"≤ {FOLLOW_SECONDS_MAX:.0f} s",
            met=max(followed) <= FOLLOW_SECONDS_MAX or run.quick,
            note="at the start, slower, failing, recovered: " + ", ".join(f"{seconds:.1f}" for seconds in followed),
        ),
    ]


async def _measure_cost(run: Run) -> list[Figure]:
    asked: list[Asked] = []
    cheap, dear = Server("cheap", asked, CHEAP_SECONDS), Server("dear", asked, QUICK_SECONDS)
    folder = run.folder / "cost"
    folder.mkdir()
    prices = "".join(
        f'[providers.{name}.prices."*"]\ninput = {read}\noutput = {put}\n'
        for name, (read, put) in (("quick", DEAR), ("steady", CHEAP))
    )
    async with model_server(dear) as one, model_server(cheap) as other:
        variables = configured(folder, {"quick": one, "steady": other}, prices + _pool("cost"))
        async with stage(folder, *_services(), **variables) as mesh, PatientClient(timeout=60) as client:
            seconds = run.scale(30, 8)
            patient = Load(mesh.mesh, Recorded())
            await patient.paced(client, seconds, PER_SECOND)
            without = [each.server for each in asked]
            hurried = Load(mesh.mesh, Recorded(), deadline_seconds=CHEAP_SECONDS * 0.75)
            await hurried.paced(client, seconds, PER_SECOND)
            within = [each.server for each in asked[len(without) :]]
    ratios = [_cost(without) / _cost(["cheap"] * len(without)), _cost(within) / _cost(["dear"] * len(within))]
    return [
        Figure(
            f"routing by cost, {name}",
            "of the cheapest that meets it",
            ratio,
            target=f"≤ {COST_MAX}",
            met=ratio <= COST_MAX or run.quick,
            note=f"{servers.count('cheap')} of {len(servers)} calls went to the cheap one, and took {CHEAP_SECONDS} s",
        )
        for name, ratio, servers in (
            ("no deadline", ratios[0], without),
            (f"a deadline of {CHEAP_SECONDS * 0.75:.1f} s", ratios[1], within),
        )
    ]


async def _measure_prefixes(run: Run) -> Figure:
    """Conversations of some turns, on two servers that are alike: each turn's prompt begins with the one before."""
    asked: list[Asked] = []
    one, other = (Remembering(name, asked, TURNS, SECONDS_PER_TOKEN) for name in ("quick", "steady"))
    folder = run.folder / "prefixes"
    folder.mkdir()
    async with model_server(one) as first, model_server(other) as second:
        variables = configured(folder, {"quick": first, "steady": second}, _pool("latency"))
        async with stage(folder, *_services(), **variables) as mesh, PatientClient(timeout=60) as client:
            load = Load(mesh.mesh, Recorded())
            for round_ in range(run.scale(8, 2)):
                texts = [f"{round_} {number} " * PROMPT_TOKENS for number in range(8)]
                await asyncio.gather(*(load.one(client, text[: 4 * PROMPT_TOKENS]) for text in texts))
    read = one.cached_tokens + other.cached_tokens
    repeated = one.repeated_tokens + other.repeated_tokens
    return Figure(
        "routing: tokens that were in a cache, of those that were read before",
        "",
        read / repeated,
        target=f"≥ {CACHED_MIN}",
        met=read >= CACHED_MIN * repeated or run.quick,
        note=f"{len(load.tasks)} tasks of {TURNS} turns, two servers that are alike: by chance it would be about half. "
        f"{one.input_tokens / (one.input_tokens + other.input_tokens):.0%} of the tokens went to one of them",
    )


async def _measure_herd(run: Run) -> Figure:
    """Eight workers, and two servers that are alike, three quarters taken: who has more is slower."""
    asked: list[Asked] = []
    one, other = (Server(name, asked, QUICK_SECONDS, HERD_PLACES) for name in ("quick", "steady"))
    folder = run.folder / "herd"
    folder.mkdir()
    async with model_server(one) as first, model_server(other) as second:
        variables = configured(folder, {"quick": first, "steady": second}, _pool("latency"))
        async with stage(folder, *_services(HERD), **variables) as mesh, PatientClient(timeout=60) as client:
            await Load(mesh.mesh, Recorded()).paced(client, run.scale(20, 6), PER_SECOND)
    calls = asked[HERD_CALLS:]  # At first nobody knows anything.
    windows = [calls[at : at + HERD_CALLS] for at in range(0, len(calls) - HERD_CALLS + 1, HERD_CALLS // 2)]
    shares = [sum(each.server == "quick" for each in window) / HERD_CALLS for window in windows]
    least = min((min(share, 1 - share) for share in shares), default=0.0)
    return Figure(
        "routing: the smaller share of two servers that are alike",
        "",
        least,
        target=f"≥ {SHARE_MIN}",
        met=least >= SHARE_MIN or run.quick,
        note=f"{HERD} workers, the worst of {len(windows)} windows of {HERD_CALLS} calls",
    )


def _services(workers: int = WORKERS) -> list[str]:
    return ["ingress", "stream_edge", "steward", *["inference_worker"] * workers]


def _pool(prefer: str) -> str:
    return (
        '[pools.default]\nprovider = "steady"\nmodel = "m"\n'
        f'fallbacks = [{{ provider = "quick", model = "m" }}]\nprefer = "{prefer}"\nwait_seconds = 3600\n'
    )


def _ends(turned: Sequence[tuple[float, str]]) -> list[float]:
    return [*(begin for begin, _ in turned[1:]), float("inf")]


def _followed(asked: Sequence[Asked], begin: float, end: float, leader: str) -> float:
    """How long after the beginning of a phase most calls went where they should."""
    calls = [each for each in asked if begin <= each.at < end]
    for at in range(len(calls) - WINDOW + 1):
        if sum(each.server == leader for each in calls[at : at + WINDOW]) >= MOST:
            return calls[at].at - begin
    return float("inf")


def _cost(servers: Sequence[str]) -> float:
    prices = {"cheap": CHEAP, "dear": DEAR}
    return sum(INPUT_TOKENS * prices[name][0] + OUTPUT_TOKENS * prices[name][1] for name in servers)
