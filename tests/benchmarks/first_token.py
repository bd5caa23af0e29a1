"""Submission to first token, through all of the mesh, over a direct call of the same model on the same server."""

from __future__ import annotations

from tests.benchmarks.bench import LIMIT_SERVER, Run, run_load, stage
from tests.benchmarks.figures import Figure, percentile

OVERHEAD_MILLISECONDS_MAX = 3.0
TEXT = "!say 3"


async def measure(run: Run) -> list[Figure]:
    """With an idle mesh: once with a broker that syncs each second, once with one that syncs each write."""
    figures: list[Figure] = []
    for sync_interval in ("1s", "always"):
        services = ("ingress", "stream_edge", "inference_worker", LIMIT_SERVER)
        async with stage(run.folder / f"first-{sync_interval}", *services, sync_interval=sync_interval) as on:
            result = await run_load(
                "first_token",
                ingress=on.process("ingress").address,
                edge=on.process("stream_edge").address,
                limit=on.process(LIMIT_SERVER).address,
                text=TEXT,
                calls=run.scale(200, 40),
                warm_up=20,
            )
        mesh = [seconds * 1000 for seconds in result["mesh"]]
        direct = [seconds * 1000 for seconds in result["direct"]]
        over = [through - alone for through, alone in zip(mesh, direct, strict=True)]
        median = percentile(over, 50)
        figures.append(
            Figure(
                f"first token over direct, sync {sync_interval}",
                "ms",
                median,
                target=f"≤ {OVERHEAD_MILLISECONDS_MAX:.0f} ms" if sync_interval == "1s" else "",
                met=median <= OVERHEAD_MILLISECONDS_MAX if sync_interval == "1s" else None,
                note=f"mesh {percentile(mesh, 50):.2f} ms (p99 {percentile(mesh, 99):.2f}), "
                f"direct {percentile(direct, 50):.2f} ms (p99 {percentile(direct, 99):.2f})",
                rounds={"mesh": mesh, "direct": direct},
            )
        )
    return figures
