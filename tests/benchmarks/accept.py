"""How fast the ingress accepts and refuses, beside a route that does one awaited publish."""

from __future__ import annotations

import statistics
from typing import Any

import msgspec

from contracts.codec import encode
from contracts.streams import LANE_BACKLOG_MAX, TASKS
from mesh.budgets.account import spend
from mesh.budgets.accounts import Accounts
from mesh.budgets.limits import Amount
from mesh.clock import now
from mesh.errors import BrokerError
from tests.benchmarks.bench import LIMIT_SERVER, Run, Stage, cpu_seconds, run_load, stage
from tests.benchmarks.figures import Figure, at_least, beside, interleaved, percentile
from tests.support.tasks import turn_work

CLIENTS = 64
BODY = '{"input": "Say what this mesh is for, in one sentence."}'
TENANT_PER_CLIENT = "Mesh-Tenant: bench{client}\r\n"
"""A tenant's part of a lane holds 5,000 tasks, and no worker runs: spread over tenants, none of them fills up."""
BUDGET_PER_CLIENT = "Mesh-Tenant: paid{client}\r\n"
BUDGETS = "".join(
    f"[tenants.paid{client}]\ntokens_per_minute = 1_000_000_000\ntokens_per_month = 1_000_000_000_000\n"
    for client in range(CLIENTS)
)
"""The same, each with budgets that none of them uses up."""
SPENT = "Mesh-Tenant: spent\r\n"
SPENT_BUDGET = "[tenants.spent]\ntokens_per_month = 1\n"
FULL = "Mesh-Tenant: full\r\n"
P99_MILLISECONDS_MAX = 50.0


async def measure(run: Run) -> list[Figure]:
    """Rates at 64 clients, latency at half of that, and what a refusal costs."""
    seconds = run.scale(3, 1)
    config = run.folder / "mesh.toml"
    config.write_text(BUDGETS + SPENT_BUDGET)
    async with stage(run.folder / "accept", "ingress", LIMIT_SERVER, MESH_CONFIG=str(config)) as on:
        stream = msgspec.structs.replace(TASKS, name="LIMIT", subjects=("limit.*.*.*",), max_msgs_per_subject=-1)
        await on.connection.requests.api(
            "STREAM.CREATE.LIMIT", {**stream.as_config(), "discard_new_per_subject": False}
        )
        await _fill_a_lane(on)
        ingress, limit = on.process("ingress"), on.process(LIMIT_SERVER)
        cpu: dict[str, list[float]] = {"accept": [], "budget": [], "refuse": [], "exhausted": []}
        load_cpu: list[float] = []

        async def posts(
            address: str, path: str, headers: str, expected: str, body: str = BODY, name: str | None = None
        ) -> float:
            before = cpu_seconds(ingress.pid)
            result = await run_load(
                "closed_loop",
                address=address,
                path=path,
                headers=headers,
                body=body,
                clients=CLIENTS,
                seconds=seconds,
            )
            if list(result["statuses"]) != [expected]:
                raise RuntimeError(f"{path} answered {result['statuses']}")
            if name is not None:
                cpu[name].append((cpu_seconds(ingress.pid) - before) / result["count"] * 1e6)
            load_cpu.append(result["load_cpu"])
            await _empty(on)
            return float(result["rate"])

        work = encode(turn_work()).decode()
        await _use_up(on)
        accepts, budgeted, publishes, noops, refusals, exhausted = await interleaved(
            run.scale(4, 2),
            lambda: posts(ingress.address, "/v1/tasks", TENANT_PER_CLIENT, "202", name="accept"),
            lambda: posts(ingress.address, "/v1/tasks", BUDGET_PER_CLIENT, "202", name="budget"),
            lambda: posts(limit.address, "/publish", "", "202", work),
            lambda: posts(limit.address, "/noop", "", "202"),
            lambda: posts(ingress.address, "/v1/tasks", FULL, "503", name="refuse"),
            lambda: posts(ingress.address, "/v1/tasks", SPENT, "429", name="exhausted"),
            warm_up=not run.quick,
        )
        half = statistics.median(accepts) / 2
        latencies: list[float] = []
        for _ in range(run.scale(3, 1)):
            result = await run_load("open_loop", **_open_loop(ingress.address, half, seconds))
            latencies += result["latencies"]
            await _empty(on)
    accept = beside("accept rate, 64 clients", "/s", accepts, "/s, one awaited publish", publishes, "≥ 0.6")
    accept.met = at_least(accept.ratio, 0.6)
    accept.note = f"the load generator, its own process, took at most {max(load_cpu):.0%} of a core in any round"
    p99 = percentile(latencies, 99) * 1000
    accept_cpu, budget_cpu, refuse_cpu, exhausted_cpu = (statistics.median(each) for each in cpu.values())
    return [
        accept,
        beside("  the no-op route", "/s", noops, "/s, one awaited publish", publishes),
        Figure("accept p50 at half of saturation", "ms", percentile(latencies, 50) * 1000, note=f"at {half:.0f}/s"),
        Figure(
            "accept p99 at half of saturation",
            "ms",
            p99,
            target=f"< {P99_MILLISECONDS_MAX:.0f} ms",
            met=p99 < P99_MILLISECONDS_MAX,
        ),
        beside("accept rate with a budget, 64 clients", "/s", budgeted, "/s without", accepts),
        Figure(
            "ingress CPU of an acceptance with a budget",
            "µs",
            budget_cpu,
            "µs without",
            accept_cpu,
            "≤ 1.05",
            budget_cpu <= 1.05 * accept_cpu,
        ),
        beside("refuse rate, 64 clients", "/s", refusals, "/s accepted", accepts),
        Figure(
            "ingress CPU of a refusal",
            "µs",
            refuse_cpu,
            "µs of an acceptance",
            accept_cpu,
            "≤ 0.5",
            refuse_cpu <= accept_cpu / 2,
            rounds=cpu,
        ),
        beside("refuse rate for want of a budget, 64 clients", "/s", exhausted, "/s accepted", accepts),
        Figure(
            "ingress CPU of a refusal for want of a budget",
            "µs",
            exhausted_cpu,
            "µs of an acceptance",
            accept_cpu,
            "≤ 0.5",
            exhausted_cpu <= 0.5 * accept_cpu,
        ),
    ]


def _open_loop(address: str, rate: float, seconds: int) -> dict[str, Any]:
    return {
        "address": address,
        "path": "/v1/tasks",
        "headers": TENANT_PER_CLIENT,
        "body": BODY,
        "clients": CLIENTS,
        "rate": rate,
        "seconds": seconds,
    }


async def _fill_a_lane(on: Stage) -> None:
    """Until the lane of the tenant `full` takes no more, nor its backlog."""
    payload = encode(turn_work(tenant="full"))
    for subject in ("tasks.default.normal.full", "backlog.default.normal.full"):
        for _ in range(LANE_BACKLOG_MAX):
            await on.connection.client.publish(subject, payload)
        try:
            await on.connection.requests.publish(subject, payload)
        except BrokerError:
            continue
        raise RuntimeError("the lane has not filled up")


async def _use_up(on: Stage) -> None:
    """Let the tenant `spent` have its one token."""
    accounts = Accounts(on.connection.requests)
    await accounts.change("spent", lambda account: spend(account, now(), Amount(1)))


async def _empty(on: Stage) -> None:
    """Take away what was accepted, so that each round begins alike; the full lane stays full."""
    await on.connection.requests.api("STREAM.PURGE.LIMIT")
    for client in range(CLIENTS):
        for tenant in (f"bench{client}", f"paid{client}"):
            await on.connection.requests.api("STREAM.PURGE.TASKS", {"filter": f"tasks.*.*.{tenant}"})
