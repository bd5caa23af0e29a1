"""The broker's disk gives out: who gets 202 has a task all the same, and everybody else is told at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts.identifiers import task_id_for_key
from mesh.broker.connection import Connection, connect
from mesh.broker.provisioning import apply, declared
from mesh.journal.submission import COMMIT_SECONDS_MAX
from tests.support import children
from tests.support.broker import Broker
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import PostingConnection
from tests.support.http_client import PatientClient
from tests.support.patience import within
from tests.support.processes import Mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

DISK_BYTES = 24 * 1024 * 1024
FILLER_BYTES = 14 * 1024 * 1024
INSTRUCTIONS_CHARACTERS = 60_000
"""Of a task's instructions: stored twice, in TASKS and in the journal, and not answered to at length."""
POSTS_MAX = 2 * DISK_BYTES // INSTRUCTIONS_CHARACTERS
"""After so many the disk must have given out."""
ANSWER_SECONDS_MAX = COMMIT_SECONDS_MAX + 2.0
REFUSALS = 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB where the broker keeps its streams, and nothing else of it."""
    store = tmp_path / "broker" / "jetstream"
    store.mkdir(parents=True)
    if sys.platform != "linux":
        pytest.skip("no small disk: tmpfs is Linux's")
    mounted = children.run_blocking(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", store])
    if mounted.returncode != 0:
        pytest.skip(f"no small disk: {mounted.stderr.strip() or 'mount failed'} (user {os.getuid()})")
    try:
        yield store
    finally:
        # Lazily: whatever of the broker is still there must not keep the disk mounted.
        children.run_blocking(["umount", "--lazy", store]).check_returncode()


class Client:
    """Posts large tasks, each under a key of its own, so that the id is known even if no answer comes."""

    def __init__(self, mesh: Mesh, recorded: Recorded) -> None:
        self.refused_keys: list[str] = []
        self._mesh = mesh
        self._recorded = recorded
        self._connection = PostingConnection(str(mesh.settings.ingress_address))
        self._posted = 0

    async def post(self, key: str | None = None) -> tuple[int, dict[str, Any]]:
        """One post, which must be answered in time: status and body."""
        if key is None:
            key = f"disk-{self._posted}"
            self._posted += 1
        body = msgspec.json.encode({"input": "!say 3", "instructions": "x" * INSTRUCTIONS_CHARACTERS})
        async with within(ANSWER_SECONDS_MAX):
            status, _, payload = await self._connection.post(body, f"Idempotency-Key: {key}\r\n")
        task = task_id_for_key("default", key)
        answer = msgspec.json.decode(payload)
        if status == 202:
            assert answer["id"] == task
            self._recorded.accepted.add(task)
            self._recorded.uncertain.discard(task)
        else:
            assert (status, answer["code"]) in ((503, "broker-unavailable"), (503, "queue-full")), answer
            self._recorded.uncertain.add(task)
            self.refused_keys.append(key)
        return status, answer

    async def until_refused(self) -> None:
        """Post until the disk has given out."""
        for _ in range(POSTS_MAX):
            status, _ = await self.post()
            if status != 202:
                return
        pytest.fail(f"{POSTS_MAX} tasks were accepted onto a disk that can't hold them")

    async def checks(self) -> tuple[int, dict[str, bool]]:
        """Readiness: the status, and whether each stream is well."""
        async with PatientClient() as client:
            answer = await client.get(f"{self._mesh.ingress_url}/health/ready")
        return answer.status_code, {check["name"]: check["ok"] for check in answer.json()["checks"]}

    def close(self) -> None:
        """Drop the connection."""
        self._connection.close()


async def assert_all_accepted_are_stored(connection: Connection, recorded: Recorded) -> None:
    """Nobody got 202 for a task that is not in TASKS."""
    stored = await read_stored(connection.requests)
    assert recorded.accepted <= {work["task"] for work in stored.work} | set(stored.journals)


@pytest.mark.parametrize("worker_is_there", [False, True], ids=["waiting tasks", "running tasks"])
async def test_a_full_disk_refuses_in_time_and_loses_nothing_that_was_accepted(
    tmp_path: Path, small_disk: Path, worker_is_there: bool
) -> None:
    recorded = Recorded()
    broker = Broker(tmp_path / "broker")
    mesh = Mesh(tmp_path, broker, {"MESH_LOG_LEVEL": "warning"})
    filler = small_disk / "filler"
    client = Client(mesh, recorded)
    try:
        await broker.start()
        async with connect(mesh.settings, "test") as connection:
            await apply(connection.requests, declared(mesh.settings), update=False)
            await mesh.start("ingress")
            await mesh.start("steward")
            if worker_is_there:
                await mesh.start("inference_worker")
            assert (await client.checks())[0] == 200
            filler.write_bytes(b"x" * FILLER_BYTES)

            await client.until_refused()
            for _ in range(REFUSALS - 1):
                # Once its disk has given out, a stream takes nothing until its server starts again.
                assert (await client.post())[0] == 503
            status, well = await client.checks()
            assert status == 503
            assert well["broker"], "the broker is there; it is its streams that are not"
            assert not well["TASKS"]
            await assert_all_accepted_are_stored(connection, recorded)

            filler.unlink()
            await broker.stop()
            await broker.start()
            await until(lambda: connection.is_connected)
            if not worker_is_there:
                await mesh.start("inference_worker")

            async def ready() -> bool:
                return (await client.checks())[0] == 200

            await until(ready)
            for key in client.refused_keys:
                assert (await client.post(key))[0] == 202, "a client that comes back with its key has its task"
            await until_no_work_is_left(connection, seconds=90)
            assert check(recorded, await read_stored(connection.requests)) == []
            assert mesh.tracebacks() == []
    finally:
        client.close()
        for process in mesh.processes:
            await process.stop()
        await broker.stop()
