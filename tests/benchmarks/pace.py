"""A burst at a provider that enforces its limits: how much of them is used, and how much is refused.

600 requests and 60,000 tokens a minute, `TIMES` as fast; what is beyond gets 429. Tasks are of 20 tenants, and of
uneven length. One worker, eight, and eight of which one is killed in the middle. `--tasks 10000` takes 8 minutes.
"""

from __future__ import annotations

import asyncio
import json
import random

from mesh.broker.connection import connect
from tests.benchmarks.bench import Run, Stage, stage
from tests.benchmarks.figures import Figure
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import PostingConnection
from tests.support.limited_provider import LimitedProvider, asking, limited_server, mesh_toml
from tests.support.waiting import until, until_no_work_is_left

TIMES = 8
REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE = 600, 60_000
TASKS = 2_400
TENANTS = 20
CONNECTIONS = 16
REFUSED_MAX, USED_MIN = 0.01, 0.95
SETTLE_SECONDS = 60.0
_RUNS = ((1, False), (8, False), (8, True))


async def measure(run: Run) -> list[Figure]:
    """The three bursts."""
    figures: list[Figure] = []
    for workers, kills in _RUNS:
        figures += await _burst(run, workers, kills=kills)
    return figures


def seconds_max(run: Run) -> float:
    """How long it may take."""
    return len(_RUNS) * (SETTLE_SECONDS + 3 * tasks_of(run) / (TIMES * REQUESTS_PER_MINUTE / 60))


def tasks_of(run: Run) -> int:
    """How many tasks a burst has."""
    return run.tasks or run.scale(TASKS, 400)


async def _burst(run: Run, workers: int, *, kills: bool) -> list[Figure]:
    tasks = tasks_of(run)
    provider = LimitedProvider(
        TIMES * REQUESTS_PER_MINUTE / 60, TIMES * TOKENS_PER_MINUTE / 60, seconds=60 / TIMES, turn_seconds=0.2
    )
    name = f"{workers} workers{', one killed' if kills else ''}" if workers > 1 else "1 worker"
    folder = run.folder / f"{workers}-{kills}"
    folder.mkdir()
    async with limited_server(provider) as server:
        config = folder / "mesh.toml"
        config.write_text(mesh_toml(server.base_url, provider))
        variables = {"MESH_CONFIG": str(config), "MESH_LOG_LEVEL": "error"}
        async with stage(folder, "ingress", "steward", **variables) as opened:
            processes = [await opened.mesh.start("inference_worker") for _ in range(workers)]
            recorded = Recorded()
            await _post(opened, recorded, tasks, run.seed)
            if kills:
                await until(lambda: provider.taken >= tasks // 2, seconds=seconds_max(run))
                await processes[0].kill()
            async with connect(opened.mesh.settings, "bench") as connection:
                await until_no_work_is_left(connection, seconds_max(run))
                stored = await read_stored(connection.requests)
                written = await connection.requests.api("STREAM.INFO.KV_providers")
    broken = check(recorded, stored)
    lost = sum(each["status"] != "completed" for each in stored.records.values()) + tasks - len(stored.records)
    refused = provider.refused / max(1, provider.taken)
    used = max(provider.part_used("requests"), provider.part_used("tokens"))
    seconds = provider.last_at - provider.first_at
    return [
        Figure(
            f"a provider's limit that is used, {name}",
            "of it",
            used,
            target=f"≥ {USED_MIN}",
            met=used >= USED_MIN and not broken and not lost,
            note=f"{tasks} tasks in {seconds:.0f} s, {provider.taken} requests, {provider.used['tokens']:.0f} tokens; "
            f"the record was written {written['state']['last_seq'] / seconds:.1f} times a second; "
            f"not completed: {lost}; what the checker found: {len(broken)}",
        ),
        Figure(
            f"requests that a provider refused, {name}",
            "of all",
            refused,
            target=f"≤ {REFUSED_MAX}",
            met=refused <= REFUSED_MAX,
            note=f"{provider.refused} answers of 429",
        ),
    ]


async def _post(opened: Stage, recorded: Recorded, tasks: int, seed: int) -> None:
    chance = random.Random(seed)
    numbers = iter(range(tasks))

    async def post_some() -> None:
        connection = PostingConnection(str(opened.mesh.settings.ingress_address))
        for number in numbers:
            body = asking(put_out=1 + min(400, int(chance.expovariate(1 / 55))), read=chance.randint(10, 90))
            status, _, payload = await connection.post(body, f"Mesh-Tenant: tenant-{number % TENANTS}\r\n")
            if status != 202:
                raise RuntimeError(f"a task was refused: {status} {payload!r}")
            recorded.accepted.add(json.loads(payload)["id"])
        connection.close()

    await asyncio.gather(*(post_some() for _ in range(CONNECTIONS)))
