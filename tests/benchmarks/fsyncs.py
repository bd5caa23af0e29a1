"""What a one-turn task makes the broker sync, with `sync_interval: always`: counted, not timed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import httpx

from tests.benchmarks.bench import Run, Stage, stage
from tests.benchmarks.figures import Figure
from tests.support import children
from tests.support.clients import post_task
from tests.support.waiting import until, until_no_work_is_left

_FSYNC = re.compile(r"\bf(?:data)?sync\(\d+<([^>]*)>")
_WRITE = re.compile(r"\bp?write(?:64|v)?\(\d+<([^>]*/jetstream/[^>]*)>")
_OPEN_SYNC = re.compile(r"openat\(.*O_D?SYNC.*= \d+<([^>]*)>")


async def measure(run: Run) -> list[Figure]:
    """One task at a time, so that no two share a sync."""
    tasks = run.scale(20, 5)
    async with (
        stage(run.folder / "fsyncs", "ingress", "inference_worker", "steward", sync_interval="always") as on,
        httpx.AsyncClient() as client,
    ):

        async def run_tasks() -> None:
            for _ in range(tasks):
                # The scripted model's three tokens, paced so that each is an event of its own.
                (await post_task(client, on.mesh.ingress_url, "!rate 50\n!say 3")).raise_for_status()
                await until_no_work_is_left(on.connection)

        await run_tasks()
        before = await _stored(on)
        traced = await _traced(on, run.folder / "strace.txt", run_tasks)
        messages = (await _stored(on) - before) / tasks
    if traced is None:
        return [
            Figure(
                "messages stored for a one-turn task",
                "",
                messages,
                note="no strace here: each is one sync, acks not counted",
            )
        ]
    synced, fsyncs, writes = (count / tasks for count in traced)
    return [
        Figure(
            "syncs of a one-turn task",
            "",
            fsyncs + synced,
            "messages stored",
            messages,
            note=f"strace of nats-server: {fsyncs:.1f} fsync/fdatasync and {synced:.1f} writes to files opened with "
            f"O_SYNC, of {writes:.1f} writes into the store, for a task of three tokens; lane statistics and "
            "heartbeats of the same time are in it",
        )
    ]


async def _stored(on: Stage) -> int:
    names = (await on.connection.requests.api("STREAM.NAMES"))["streams"]
    infos = [await on.connection.requests.api(f"STREAM.INFO.{name}") for name in names]
    return sum(info["state"]["last_seq"] for info in infos)


async def _traced(on: Stage, output: Path, run_tasks: object) -> tuple[int, int, int] | None:
    """O_SYNC writes, syncs and all writes into the store while tasks ran; None where strace can't attach."""
    broker = on.mesh.broker.process
    if shutil.which("strace") is None or broker is None or not callable(run_tasks):
        return None
    calls = "trace=fsync,fdatasync,write,pwrite64,writev,openat"
    command = ["strace", "-f", "-y", "-q", "-s", "0", "-e", calls, "-o", str(output), "-p", str(broker.pid)]
    strace = await children.begin(command, stderr=children.DEVNULL)
    try:
        try:
            await until(lambda: _is_traced(broker.pid) or strace.returncode is not None, seconds=5)
        except TimeoutError:
            return None
        if strace.returncode is not None:
            return None
        await run_tasks()
    finally:
        if strace.returncode is None:
            strace.terminate()
            await strace.wait()
    text = output.read_text(errors="replace")
    synchronous = set(_OPEN_SYNC.findall(text))
    writes = _WRITE.findall(text)
    return sum(path in synchronous for path in writes), len(_FSYNC.findall(text)), len(writes)


def _is_traced(pid: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
