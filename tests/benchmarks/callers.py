"""What it costs an ingress to know who asks: accepting with API keys, beside accepting where anybody is let in."""

from __future__ import annotations

from tests.benchmarks.accept import BODY, CLIENTS, TENANT_PER_CLIENT
from tests.benchmarks.bench import Run, Stage, cpu_seconds, run_load, stage
from tests.benchmarks.figures import Figure, at_least, beside, interleaved
from tests.support.keys import write_key
from tests.support.processes import Process

SHARE_MIN = 0.95
"""Of the rate of `open`."""
CPU_MAX = 1.05
"""Of its processor time."""
_LIMITS = "requests_per_second = 1000000\n"
"""Counted, and never reached."""


async def measure(run: Run) -> list[Figure]:
    """Rates at 64 clients, and processor time of an acceptance, of both in turn, before one broker."""
    seconds = run.scale(2, 1)
    folder = run.folder / "callers"
    folder.mkdir()
    file = folder / "keys.toml"
    file.write_text(f'[auth]\nmode = "keys"\n{_LIMITS}')
    async with stage(folder, "ingress") as on:
        unasked = on.process("ingress")
        asked = await on.start("ingress", MESH_CONFIG=str(file), MESH_INGRESS_ADDRESS="127.0.0.1:0")
        key = await write_key(on.connection.requests, any_tenant=True)
        shown = f"Authorization: Bearer {key}\r\n{TENANT_PER_CLIENT}"
        cpu: dict[Process, list[float]] = {asked: [], unasked: []}

        async def posts(ingress: Process, headers: str) -> float:
            before = cpu_seconds(ingress.pid)
            result = await run_load(
                "closed_loop",
                address=ingress.address,
                path="/v1/tasks",
                headers=headers,
                body=BODY,
                clients=CLIENTS,
                seconds=seconds,
            )
            if list(result["statuses"]) != ["202"]:
                raise RuntimeError(f"an acceptance was answered {result['statuses']}")
            cpu[ingress].append((cpu_seconds(ingress.pid) - before) / result["count"] * 1e6)
            await _empty(on)
            return float(result["rate"])

        with_keys, without = await interleaved(
            run.scale(10, 2),
            lambda: posts(asked, shown),
            lambda: posts(unasked, TENANT_PER_CLIENT),
            warm_up=not run.quick,
        )
    rate = beside("accept rate with keys, 64 clients", "/s", with_keys, "/s, open", without, f"≥ {SHARE_MIN}")
    rate.met = at_least(rate.ratio, SHARE_MIN)
    # The least of the rounds: what else the machine does only adds to it.
    took, limit = min(cpu[asked]), min(cpu[unasked])
    return [
        rate,
        Figure(
            "CPU of an acceptance with keys",
            "µs",
            took,
            "µs, open",
            limit,
            f"≤ {CPU_MAX}",
            took <= CPU_MAX * limit,
            rounds={"subject": cpu[asked], "limit": cpu[unasked]},
        ),
    ]


async def _empty(on: Stage) -> None:
    """Take away what was accepted, so that each round begins alike."""
    await on.connection.requests.api("STREAM.PURGE.TASKS", {"filter": "tasks.>"})
