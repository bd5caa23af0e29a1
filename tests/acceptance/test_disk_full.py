"""The broker's disk gives out: who gets 202 has a task all the same, and everybody else is told at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from contracts.identifiers import task_id_for_key
from mesh.broker.connection import Connection, connect
from mesh.broker.dead_streams import dead_streams
from mesh.broker.provisioning import apply, declared
from mesh.journal.submission import COMMIT_SECONDS_MAX
from tests.support.broker import Broker
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import PostingConnection
from tests.support.http_client import PatientClient
from tests.support.patience import within
from tests.support.processes import Mesh
from tests.support.small_disk import fill, small_disk
from tests.support.up import runs, up
from tests.support.waiting import until, until_no_work_is_left

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

DISK_BYTES = 24 * 1024 * 1024
FILLER_BYTES = 14 * 1024 * 1024
INSTRUCTIONS_CHARACTERS = 60_000
"""Of a task's instructions: stored twice, in TASKS and in the journal, and not answered to at length."""
POSTS_MAX = 2 * DISK_BYTES // INSTRUCTIONS_CHARACTERS
"""After so many the disk must have given out."""
HOME_BYTES = 4 * 1024 * 1024
ANSWER_SECONDS_MAX = COMMIT_SECONDS_MAX + 2.0
REFUSALS = 2


@pytest.fixture
def broker_disk(tmp_path: Path) -> Iterator[Path]:
    """Where the broker keeps its streams, and nothing else of it."""
    with small_disk(tmp_path / "broker" / "jetstream", DISK_BYTES) as store:
        yield store


def children_of(parent: int, service: str) -> list[int]:
    """The processes of a service that meshctl has started, whatever it has written down."""
    found = []
    for entry in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with suppress(OSError):
            if Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")[-2:-1] == [service.encode()]:
                found.append(int(entry))
    return found


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
    tmp_path: Path, broker_disk: Path, worker_is_there: bool
) -> None:
    recorded = Recorded()
    broker = Broker(tmp_path / "broker")
    mesh = Mesh(tmp_path, broker, {"MESH_LOG_LEVEL": "warning"})
    filler = broker_disk / "filler"
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

            async def dead_ones_are_named() -> bool:
                """Which gave out depends on what was written: a task behind others goes to BACKLOG, not to TASKS."""
                dead = {each.stream for each in await dead_streams(connection.requests)}
                _, well = await client.checks()
                return bool(dead) and {name for name, is_well in well.items() if not is_well} == dead

            await until(dead_ones_are_named)
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


async def test_a_process_that_dies_while_the_disk_of_meshctl_is_full_is_replaced(
    tmp_path: Path, broker: Broker
) -> None:
    """Pids can't be written then, nor a line of any log. The broker is elsewhere: this is about who restarts."""
    with small_disk(tmp_path / "disk", HOME_BYTES) as disk:
        async with up(disk / "home", variables={"MESH_NATS_URL": broker.url}) as mesh, PatientClient() as client:
            before = mesh.pids()
            filler = fill(disk)
            for service in ("stream_edge", "steward", "stream_edge"):
                [dead] = set(children_of(mesh.process.pid, service))
                os.kill(dead, signal.SIGKILL)

                def is_replaced(service: str = service, dead: int = dead) -> bool:
                    now = children_of(mesh.process.pid, service)
                    return now not in ([], [dead])

                await until(is_replaced)

            async def serves() -> bool:
                with suppress(httpx.TransportError):
                    return (await client.get(f"{mesh.ready['edge_url']}/health/ready")).status_code == 200
                return False

            await until(serves)
            filler.unlink()
            await until(lambda: mesh.pids()["stream_edge"] == children_of(mesh.process.pid, "stream_edge"))
            after = mesh.pids()
            assert after["stream_edge"] != before["stream_edge"]
            assert after["steward"] == children_of(mesh.process.pid, "steward") != before["steward"]
            assert after["ingress"] == before["ingress"], "nobody else was restarted"
            log = mesh.log.read_text()
            assert "Traceback" not in log
            assert "loop.well_again" in log, "what was said meanwhile is lost, and harmed nobody"
            assert all(map(runs, mesh.all_pids))
