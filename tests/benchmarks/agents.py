"""What agents cost: a tool's round trip, a cancel, and ten thousand tasks that wait for a person."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import msgspec

from contracts.codec import encode
from contracts.records.tools import ToolDeclaration
from contracts.streams import TOOLS
from mesh.broker import key_value
from mesh.broker.direct_get import read_page
from mesh.errors import QueueFull
from tests.benchmarks.bench import Run, Stage, stage
from tests.benchmarks.figures import Figure, beside, interleaved, percentile
from tests.support.agents import Agents
from tests.support.processes import Process
from tests.support.waiting import until

SERVICES = ("ingress", "inference_worker", "tool_runner", "steward")
ROUND_TRIP = '!call add {"a": 1, "b": 2}\n!then\ndone'
CANCEL_MILLISECONDS_MAX = 300.0
SUBMITTED_AT_ONCE = 64
FULL_SECONDS = 0.1


async def measure_tools(run: Run) -> list[Figure]:
    """From the end of a turn to the claim of the next one, with a call in between; and from a cancel to its end."""
    async with stage(run.folder / "tools", *SERVICES) as on:
        await declare_add(on)
        agents = Agents(on.connection)
        chain = await _bare_chain(on)
        rounds = run.scale(100, 10)
        trips, bare = await interleaved(rounds, lambda: _trip(agents), chain)
        cancels = [await _cancel(on, agents) for _ in range(run.scale(30, 5))]
        await agents.close()
    figure = beside(
        "turn → tool → turn",
        "ms",
        trips,
        "ms, the bare broker operations of it",
        bare,
        note="as the journal's times tell",
    )
    worst = max(cancels)
    return [
        figure,
        Figure(
            "cancel to a silent model's end",
            "ms",
            percentile(cancels, 50),
            target=f"≤ {CANCEL_MILLISECONDS_MAX:.0f} ms",
            met=worst <= CANCEL_MILLISECONDS_MAX,
            note=f"from the POST until the worker's slot is free; worst of {len(cancels)}: {worst:.0f} ms",
            rounds={"subject": cancels},
        ),
    ]


async def measure_suspended(run: Run) -> list[Figure]:
    """Many tasks that wait for an answer: what they take of workers, connections and consumers."""
    count = run.scale(10_000, 500)
    async with stage(run.folder / "suspended", *SERVICES) as on:
        agents = Agents(on.connection)
        worker = on.process("inference_worker")
        await _answered(agents, await agents.submit("!ask Which?"))
        before = await _held(on, worker)
        tasks: list[str] = []
        free = asyncio.Semaphore(SUBMITTED_AT_ONCE)

        async def submit() -> None:
            async with free:
                while True:
                    try:
                        tasks.append(await agents.submit("!ask Which?"))
                        return
                    except QueueFull:
                        # As a client that is told to come back later.
                        await asyncio.sleep(FULL_SECONDS)

        await asyncio.gather(*(submit() for _ in range(count)))

        async def all_wait() -> bool:
            info = await on.connection.requests.api("STREAM.INFO.TASKS")
            return bool(info["state"]["messages"] == 0)

        await until(all_wait, 240)
        after = await _held(on, worker)
        took = [await _answered(agents, task) for task in tasks[:: max(1, len(tasks) // 20)]]
        await agents.close()
    note = f"{count:,} tasks wait; before: {before.consumers} consumers, {before.connections} connections"
    return [
        Figure("suspended: steps in hand", "", after.steps, target="0", met=after.steps == 0, note=note),
        _no_more("suspended: consumers", after.consumers, before.consumers),
        _no_more("suspended: connections to the broker", after.connections, before.connections),
        Figure("suspended: memory of the worker", "MiB", after.memory_mib, "MiB before", before.memory_mib),
        Figure("suspended: from an answer to the task's end", "ms", statistics.median(took)),
    ]


class _Held(msgspec.Struct):
    steps: int
    consumers: int
    connections: int
    memory_mib: float


async def _held(on: Stage, worker: Process) -> _Held:
    consumers = steps = 0
    for stream in ("TASKS", "TURNS", "TOOLS", "CONTROL", "EVENTS", "TIMERS"):
        info = await on.connection.requests.api(f"STREAM.INFO.{stream}")
        consumers += int(info["state"]["consumer_count"])
        for consumer in (await on.connection.requests.api(f"CONSUMER.LIST.{stream}"))["consumers"]:
            steps += int(consumer["num_ack_pending"]) if stream in ("TASKS", "TURNS", "TOOLS") else 0
    broker = on.mesh.broker.process
    assert broker is not None
    sockets = [path for path in Path(f"/proc/{broker.pid}/fd").iterdir() if str(path.readlink()).startswith("socket:")]
    return _Held(steps, consumers, len(sockets), worker.resident_bytes() / 1024**2)


def _no_more(name: str, after: int, before: int) -> Figure:
    return Figure(name, "", after, "before", before, "≤ 1", after <= before)


async def _answered(agents: Agents, task: str) -> float:
    """Milliseconds from an answer to the task's end."""
    await agents.until_status(task, "waiting")
    began_at = time.perf_counter()
    await agents.say(task, "that one")
    await agents.until_status(task, "completed")
    return (time.perf_counter() - began_at) * 1000


async def _trip(agents: Agents) -> float:
    task = await agents.submit(ROUND_TRIP, tools=["add"])
    state = await agents.until_status(task, "completed")
    first, second = state.turn(1).completed, state.claims["2", 0]
    assert first is not None
    return (second.time - first.time).total_seconds() * 1000


async def _cancel(on: Stage, agents: Agents) -> float:
    """Milliseconds from a cancel to the moment when nobody has the task's message any more."""
    task = await agents.submit("!hang 600")
    await agents.until_status(task, "running")
    async with httpx.AsyncClient(base_url=on.mesh.ingress_url) as client:
        began_at = time.perf_counter()
        (await client.post(f"/v1/tasks/{task}/cancel")).raise_for_status()

    async def free() -> bool:
        info = await on.connection.requests.api("STREAM.INFO.TASKS")
        return bool(info["state"]["messages"] == 0)

    await until(free)
    return (time.perf_counter() - began_at) * 1000


async def declare_add(on: Stage) -> None:
    """Offer the tool `add` at once, though its runner has just begun."""
    declaration = ToolDeclaration(name="add", description="", parameters={}, idempotent=True, destructive=False)
    await key_value.put(on.connection.requests, "tools", "add", encode(declaration))


async def _bare_chain(on: Stage) -> Callable[[], Awaitable[float]]:
    """The same operations with nothing between them: two messages through a work queue, four appends, two reads."""
    config = msgspec.structs.replace(TOOLS, name="CHAIN", subjects=("chain.*",)).as_config()
    await on.connection.requests.api("STREAM.CREATE.CHAIN", config)
    await on.connection.requests.api(
        "CONSUMER.DURABLE.CREATE.CHAIN.chain",
        {
            "stream_name": "CHAIN",
            "config": {"durable_name": "chain", "ack_policy": "explicit", "filter_subject": "chain.*"},
        },
    )
    pull = await on.connection.client.jetstream().pull_subscribe_bind("chain", "CHAIN")
    requests = on.connection.requests
    number = 0

    async def one_message() -> None:
        waiting = asyncio.create_task(pull.fetch(1))
        await asyncio.sleep(0)
        await requests.publish("chain.work", b"{}")
        message = (await waiting)[0]
        await read_page(requests, "EVENTS", f"events.bench.{number}.*", 0)
        await requests.publish(f"events.bench.{number}.log", b"{}")
        await requests.publish(f"events.bench.{number}.log", b"{}")
        await message.ack()

    async def chain() -> float:
        nonlocal number
        number += 1
        began_at = time.perf_counter()
        await one_message()
        await one_message()
        return (time.perf_counter() - began_at) * 1000

    return chain
