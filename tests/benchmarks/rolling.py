"""Rolling restarts under long generations that can't be continued: what is generated for each token delivered."""

from __future__ import annotations

import asyncio
import itertools
import time

import httpx

from tests.benchmarks.bench import Run
from tests.benchmarks.figures import Figure
from tests.support.model_server import model_server
from tests.support.slow_model import SlowModel
from tests.support.up import Up, meshctl, up

RATIO_MAX = 1.05
TOKENS = 120
"""Of one generation, evenly spread."""
AT_ONCE = 8
DRAIN_SECONDS = 120.0
RESTART_SECONDS_MAX = DRAIN_SECONDS + 60.0
"""A drain, and the starts of six successors beside that."""
POLL_SECONDS = 0.5


def seconds_max(run: Run) -> float:
    """How long this may take."""
    return _restarts(run) * RESTART_SECONDS_MAX + 300


async def measure(run: Run) -> list[Figure]:
    """So many restarts one after another, with tasks that are under way all the time."""
    generation_seconds, restarts = run.scale(60, 20), _restarts(run)
    model = SlowModel(TOKENS, generation_seconds / TOKENS)
    async with model_server(model) as server:
        file = run.folder / "mesh.toml"
        file.write_text(
            f'[providers.local]\nkind = "openai"\nbase_url = "{server.base_url}"\n'
            '[pools.default]\nprovider = "local"\nmodel = "tiny"\n'
        )
        variables = {"MESH_CONFIG": str(file), "MESH_DRAIN_SECONDS": str(DRAIN_SECONDS), "MESH_LOG_FORMAT": "json"}
        async with (
            up(run.folder / "home", "--workers", "2", variables=variables) as mesh,
            httpx.AsyncClient(base_url=mesh.ready["ingress_url"], timeout=60) as client,
        ):
            feeding = _Feeding(client)
            feeders = [asyncio.create_task(feeding.run()) for _ in range(AT_ONCE)]
            try:
                took = [await _restart(mesh) for _ in range(restarts)]
            except BaseException:
                for feeder in feeders:
                    feeder.cancel()
                await asyncio.gather(*feeders, return_exceptions=True)
                raise
            feeding.is_over = True
            await asyncio.gather(*feeders)
            counts = (await client.get("/v1/tasks/counts")).json()["counts"]
            letters = (await client.get("/v1/dead-letters")).json()["dead_letters"]
    completed = counts.get("completed", 0)
    ratio = model.said / (TOKENS * completed)
    others = {status: count for status, count in counts.items() if count and status != "completed"}
    return [
        Figure(
            f"tokens generated for one delivered, {restarts} rolling restarts, {generation_seconds} s each",
            "tokens",
            ratio,
            target=f"≤ {RATIO_MAX}",
            met=ratio <= RATIO_MAX and not others and not letters and feeding.refused == 0,
            note=f"{completed} tasks completed, {len(letters)} dead letters, {feeding.refused} requests failed, "
            f"others: {others or 'none'}",
        ),
        Figure(
            "a rolling restart, the longest",
            "s",
            max(took),
            target=f"≤ {RESTART_SECONDS_MAX:.0f} s",
            met=max(took) <= RESTART_SECONDS_MAX,
            note=f"with drains of {DRAIN_SECONDS:.0f} s at most",
            rounds={"seconds": took},
        ),
    ]


def _restarts(run: Run) -> int:
    return run.scale(20, 3)


async def _restart(mesh: Up) -> float:
    began_at = time.perf_counter()
    ended = await meshctl("restart", "--rolling", environment=mesh.environment, seconds=RESTART_SECONDS_MAX)
    if ended.returncode != 0:
        raise RuntimeError(ended.stderr)
    return time.perf_counter() - began_at


class _Feeding:
    """Keeps tasks under way, each with its successor, and counts what was not answered."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.is_over = False
        self.refused = 0
        self._client = client
        self._numbers = itertools.count()

    async def run(self) -> None:
        """One task after another."""
        while not self.is_over:
            answer = await self._asked("POST", "/v1/tasks", {"input": f"Say {next(self._numbers)}"})
            if answer is not None:
                await self._until_ended(answer.json()["id"])

    async def _until_ended(self, task: str) -> None:
        while True:
            answer = await self._asked("GET", f"/v1/tasks/{task}", None)
            if answer is not None and answer.json()["status"] not in ("queued", "running"):
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _asked(self, method: str, path: str, body: dict[str, str] | None) -> httpx.Response | None:
        try:
            answer = await self._client.request(method, path, json=body)
        except httpx.TransportError:
            self.refused += 1
            return None
        if answer.is_success:
            return answer
        self.refused += 1
        return None
