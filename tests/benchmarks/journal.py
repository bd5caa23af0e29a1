"""What a durable event costs: appends beside bare publishes, tokens beside the model alone, folding beside decoding."""

from __future__ import annotations

import asyncio
import statistics
import time

import httpx
import msgspec

from contracts.codec import encode
from contracts.identifiers import new_id
from contracts.journal.events import OutputDelta, decode_event
from contracts.streams import EVENTS
from inference_worker.dialects.scripted.model import ScriptedProvider
from mesh.broker.direct_get import read_page
from mesh.clock import now
from mesh.task.fold import fold
from mesh.task.state import TaskState
from tests.benchmarks.bench import Run, Stage, cpu_seconds, stage
from tests.benchmarks.figures import Figure, at_least, beside, interleaved
from tests.benchmarks.limit_server import turn_input
from tests.support.clients import post_task
from tests.support.tasks import append_text, begin_journal, turn_work
from tests.support.waiting import until_no_work_is_left

WRITERS = 64
TOKENS = 20_000
ALL_ON = """
[providers.scripted]
kind = "scripted"
pace = { requests_per_minute = 1_000_000, tokens_per_minute = 1_000_000_000 }
prices."*" = { input = 0.25, output = 2.0 }

[providers.other]
kind = "scripted"
prices."*" = { input = 0.5, output = 4.0 }

[pools.default]
provider = "scripted"
prefer = "cost"
fallbacks = [{ provider = "other" }]

[tenants.default]
tokens_per_minute = 1_000_000_000
cost_per_month = 100_000_000.0
"""
"""Nothing of it is ever reached: what is measured is that it is watched."""


async def measure_append(run: Run) -> list[Figure]:
    """One writer, whose next append waits for the last one's answer; then 64 journals at once."""
    count = run.scale(2000, 500)
    figures: list[Figure] = []
    async with stage(run.folder / "append") as on:
        requests = on.connection.requests
        config = msgspec.structs.replace(
            EVENTS, name="LIMIT", subjects=("limit.>",), republish=("limit.>", "live.limit.>")
        )
        await requests.api("STREAM.CREATE.LIMIT", config.as_config())
        for writers in (1, WRITERS):
            each = count // writers if writers == 1 else 2 * count // writers

            async def append(writers: int = writers, each: int = each) -> float:
                journals = [await begin_journal(requests, turn_work()) for _ in range(writers)]

                async def one(number: int) -> None:
                    for token in range(each):
                        await append_text(journals[number], f"t{token} ")

                return await _rate(writers * each, [one(number) for number in range(writers)])

            async def publish(writers: int = writers, each: int = each) -> float:
                payload = encode(OutputDelta(new_id(), new_id(), "default", 7, now(), turn=1, text="t100 "))

                async def one(number: int) -> None:
                    for _ in range(each):
                        await requests.publish(f"limit.{number}", payload)

                return await _rate(writers * each, [one(number) for number in range(writers)])

            appended, published = await interleaved(run.scale(5, 2), append, publish)
            noun = "writer" if writers == 1 else "writers"
            figures.append(
                beside(f"append rate, {writers} {noun}", "/s", appended, "/s, bare awaited publish", published)
            )
    return figures


async def _rate(count: int, work: list[object]) -> float:
    began_at = time.perf_counter()
    await asyncio.gather(*work)  # type: ignore[call-overload]  # coroutines, whatever they return
    return count / (time.perf_counter() - began_at)


async def measure_tokens(run: Run) -> list[Figure]:
    """Tokens that one worker journals, per second of CPU of worker and broker together, as fast as the model goes."""
    tasks = run.scale(8, 2)
    provider = ScriptedProvider(exit_allowed=False)
    events: list[float] = []
    worker_only: list[float] = []
    config = run.folder / "mesh.toml"
    config.write_text(ALL_ON)
    async with (
        stage(run.folder / "tokens", "ingress", "inference_worker") as plain,
        stage(run.folder / "all-on", "ingress", "inference_worker", MESH_CONFIG=str(config)) as all_on,
    ):

        async def durable(on: Stage) -> float:
            worker, broker = on.process("inference_worker"), on.mesh.broker.process
            assert broker is not None
            last = (await on.connection.requests.api("STREAM.INFO.EVENTS"))["state"]["last_seq"]
            before = cpu_seconds(worker.pid), cpu_seconds(broker.pid)
            async with httpx.AsyncClient() as client:
                for _ in range(tasks):
                    (await post_task(client, on.mesh.ingress_url, f"!say {TOKENS}")).raise_for_status()
            await until_no_work_is_left(on.connection)
            of_worker = cpu_seconds(worker.pid) - before[0]
            of_broker = cpu_seconds(broker.pid) - before[1]
            now_last = (await on.connection.requests.api("STREAM.INFO.EVENTS"))["state"]["last_seq"]
            if on is plain:
                events.append((now_last - last) / tasks)
                worker_only.append(tasks * TOKENS / of_worker)
            return tasks * TOKENS / (of_worker + of_broker)

        async def alone() -> float:
            cpu = time.process_time()
            for _ in range(tasks):
                async for chunk in provider.stream(turn_input(f"!say {TOKENS}")):
                    assert chunk is not None
            return tasks * TOKENS / (time.process_time() - cpu)

        tokens, limited, model = await interleaved(
            run.scale(4, 2), lambda: durable(plain), lambda: durable(all_on), alone
        )
    figure = beside("durable tokens per core", "/s", tokens, "/s, the scripted model alone", model)
    figure.note = (
        f"CPU of worker and broker; per CPU-second of the worker alone {statistics.median(worker_only):,.0f}. "
        f"An unpaced model outruns the journal, so tokens gather: {statistics.median(events):.0f} events "
        f"for {TOKENS} tokens"
    )
    beside_plain = beside("  with limits, a budget and a choice", "/s", limited, "/s without", tokens, "≥ 0.95")
    beside_plain.met = at_least(beside_plain.ratio, 0.95)
    return [figure, beside_plain]


async def measure_fold(run: Run) -> list[Figure]:
    """Decode and fold a stored journal, in process; the limit decodes the same bytes as plain JSON."""
    figures: list[Figure] = []
    async with stage(run.folder / "fold") as on:
        for length in (100, 10_000):
            journal = await begin_journal(on.connection.requests, turn_work())
            head, _ = await read_page(on.connection.requests, "EVENTS", "events.>", journal.state.revision - 2)
            payloads = [message.payload for message in head]
            state = journal.state
            payloads += [
                encode(OutputDelta(new_id(), state.task, state.tenant, n, now(), turn=1, text=f"t{n} "))
                for n in range(state.next_n, length)
            ]
            repeats = max(1, 20_000 // length)

            async def folding(
                payloads: list[bytes] = payloads, task: str = state.task, repeats: int = repeats
            ) -> float:
                began_at = time.perf_counter()
                for _ in range(repeats):
                    folded = TaskState("default", task)
                    for sequence, payload in enumerate(payloads, 1):
                        fold(folded, sequence, decode_event(payload))
                return (time.perf_counter() - began_at) / repeats / len(payloads) * 1e6

            async def decoding(payloads: list[bytes] = payloads, repeats: int = repeats) -> float:
                began_at = time.perf_counter()
                for _ in range(repeats):
                    for payload in payloads:
                        msgspec.json.decode(payload)
                return (time.perf_counter() - began_at) / repeats / len(payloads) * 1e6

            folds, decodes = await interleaved(run.scale(7, 3), folding, decoding)
            figures.append(beside(f"fold, {length} events", "µs/event", folds, "µs, plain JSON decode", decodes))
    return figures
