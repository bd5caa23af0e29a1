"""A mesh on a disk of 2 GiB: it starts, runs, warns, refuses in time, and goes on as soon as there is room."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from contracts.sizes import LEAST_TOTAL_BYTES, MIB
from mesh.broker.connection import Connection, connect
from mesh.broker.levels import read_all_levels
from mesh.configuration.settings import Settings
from meshctl.supervision.store_room import measure
from tests.support import children
from tests.support.http_client import PatientClient
from tests.support.small_disk import small_disk
from tests.support.up import ENVIRONMENT, FREE_PORTS, MESHCTL, Up, meshctl, up
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

DISK_BYTES = 2048 * MIB
TINY_DISK_BYTES = 200 * MIB
MESSAGE_BYTES = 900_000
FILLED_PERCENT, FULL_PERCENT = 75, 93
LEFT_BYTES = 60 * MIB
"""What somebody else has left of the disk for the store."""
INSTRUCTIONS_CHARACTERS = 60_000
POSTS_AT_ONCE = 8


@dataclass
class Small:
    """A mesh whose home is a disk of its own, and who asks it."""

    mesh: Up
    connection: Connection
    client: PatientClient
    filler: Path

    @property
    def store(self) -> Path:
        return self.mesh.home / "jetstream"

    async def post(self, text: str, **more: Any) -> tuple[int, dict[str, Any]]:
        """A new task: the status and the body of the answer."""
        answer = await self.client.post(f"{self.mesh.ready['ingress_url']}/v1/tasks", json={"input": text, **more})
        return answer.status_code, answer.json()

    async def status(self, task: str) -> str:
        """How a task stands."""
        answer = await self.client.get(f"{self.mesh.ready['ingress_url']}/v1/tasks/{task}")
        return str(answer.json()["status"])

    async def red(self) -> set[str]:
        """What readiness says is not well."""
        answer = await self.client.get(f"{self.mesh.ready['ingress_url']}/health/ready")
        return {check["name"] for check in answer.json()["checks"] if not check["ok"]}

    def said(self, event: str) -> list[dict[str, Any]]:
        """Lines of the ingress with this event."""
        lines = (self.mesh.home / "logs" / "ingress.log").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == event]

    def warned_of(self) -> list[str]:
        """What was said to be filling, in this order."""
        return [line["name"] for line in self.said("storage.filling")]

    async def told(self, *command: str) -> list[dict[str, Any]]:
        """What a command of meshctl prints."""
        answer = await meshctl(*command, environment=self.mesh.environment)
        return [json.loads(line) for line in answer.stdout.splitlines()]

    async def storage_check(self) -> dict[str, Any]:
        """The doctor's line of storage."""
        [line] = [line for line in await self.told("doctor") if line["check"] == "storage"]
        return line

    def fill_disk(self, percent: float) -> None:
        """Somebody else takes so much of the disk that the store is so full."""
        room = measure(self.store)
        self.leave(int(room.used_bytes * 100 / percent) - room.used_bytes)

    def leave(self, left_bytes: int) -> None:
        """Somebody else takes all of the disk but so much, which the store may have; no less than before."""
        room = measure(self.store)
        with self.filler.open("ab") as file:
            os.posix_fallocate(file.fileno(), file.tell(), room.free_bytes - room.reserve_bytes - left_bytes)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def small(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Small]:
    with small_disk(tmp_path_factory.mktemp("small") / "disk", DISK_BYTES) as disk:
        async with up(disk / "home") as mesh, PatientClient() as client:
            settings = Settings(nats_url=mesh.ready["nats_url"], home=mesh.home)
            async with connect(settings, "test") as connection:
                yield Small(mesh, connection, client, disk / "filler")


async def test_it_starts_and_runs_with_sizes_that_fit(small: Small) -> None:
    status, accepted = await small.post("!say 3")
    assert status == 202

    async def is_done() -> bool:
        return await small.status(accepted["id"]) == "completed"

    await until(is_done)
    levels = await read_all_levels(small.connection.requests)
    sizes = [level.limit_bytes for level in levels if level.name not in ("account", "disk")]
    assert all(size > 0 for size in sizes)
    assert DISK_BYTES * 0.65 < sum(sizes) < DISK_BYTES * 0.75
    assert (await small.storage_check())["status"] == "ok"
    assert (await small.told("streams", "plan"))[-1]["event"] == "streams.as_declared"
    *lines, capacity = await small.told("storage")
    assert {line["name"] for line in lines} == {level.name for level in levels}
    assert {line["state"] for line in lines} == {"ok"}
    assert capacity["tasks_a_day"] > 0


async def test_a_stream_that_fills_up_is_told_then_refuses_then_goes_on(small: Small) -> None:
    requests = small.connection.requests

    async def fill_to(percent: float) -> None:
        info = await requests.api("STREAM.INFO.OBJ_results")
        wanted = info["config"]["max_bytes"] * percent / 100 - info["state"]["bytes"]
        for _ in range(int(wanted / MESSAGE_BYTES)):
            await requests.publish("$O.results.C.idle", b"x" * MESSAGE_BYTES)

    await fill_to(FILLED_PERCENT)
    await until(lambda: small.warned_of() == ["OBJ_results"])
    assert (await small.storage_check())["status"] == "warn"
    [line] = [line for line in await small.told("storage") if line.get("name") == "OBJ_results"]
    assert line["state"] == "filling"
    assert (await small.post("!say 1"))[0] == 202
    await fill_to(FULL_PERCENT)

    async def is_refused() -> bool:
        return await small.red() == {"OBJ_results"}

    await until(is_refused)
    status, problem = await small.post("!say 1")
    assert (status, problem["code"]) == (503, "queue-full")
    assert "storage of OBJ_results is 9" in problem["detail"]

    await requests.api("STREAM.PURGE.OBJ_results", {"filter": "$O.results.C.idle"})

    async def is_well() -> bool:
        return await small.red() == set()

    await until(is_well)
    assert (await small.post("!say 1"))[0] == 202


async def test_a_disk_that_fills_up_is_told_then_refuses_then_goes_on(small: Small) -> None:
    broker = small.mesh.pids()["nats_server"]
    status, running = await small.post("!rate 10\n!say 60")
    assert status == 202
    small.fill_disk(FILLED_PERCENT)
    await until(lambda: "disk" in small.warned_of())
    line = await small.storage_check()
    assert line["status"] == "warn"
    assert "make room on the disk" in line["remedy"]
    small.fill_disk(FULL_PERCENT)

    async def is_refused() -> bool:
        return await small.red() == {"disk"}

    await until(is_refused)
    status, problem = await small.post("!say 1")
    assert (status, problem["code"]) == (503, "queue-full")
    assert "the disk of the broker's store is 9" in problem["detail"]
    assert (await small.storage_check())["status"] == "fail"

    async def is_done() -> bool:
        return await small.status(running["id"]) == "completed"

    await until(is_done)
    assert await small.red() == {"disk"}
    small.filler.unlink()

    async def is_well() -> bool:
        return await small.red() == set()

    await until(is_well)
    assert (await small.post("!say 1"))[0] == 202
    assert small.warned_of().count("disk") == 1
    assert small.mesh.pids()["nats_server"] == broker, "nobody had to restart it"


async def test_tasks_that_fill_the_disk_themselves_are_refused_before_it_is_full(small: Small) -> None:
    broker = small.mesh.pids()["nats_server"]
    small.leave(LEFT_BYTES)
    refused: list[str] = []

    async def post_until_refused() -> None:
        while not refused:
            status, answer = await small.post("!say 1", instructions="x" * INSTRUCTIONS_CHARACTERS)
            if status != 202:
                assert (status, answer["code"]) == (503, "queue-full")
                refused.append(answer["detail"])

    await asyncio.gather(*(post_until_refused() for _ in range(POSTS_AT_ONCE)))
    assert all("disk" in detail for detail in refused), refused
    room = measure(small.store)
    assert room.free_bytes > room.reserve_bytes / 2, "what runs has room to end"
    small.filler.unlink()

    async def is_taken() -> bool:
        return (await small.post("!say 1"))[0] == 202

    await until(is_taken)
    assert small.mesh.pids()["nats_server"] == broker
    assert "no space left" not in (small.mesh.home / "logs" / "nats_server.log").read_text().lower()


async def test_a_disk_that_is_too_small_is_told_with_the_numbers(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", TINY_DISK_BYTES) as disk:
        answer = await children.run([*MESHCTL, "up", "--home", str(disk / "home"), *FREE_PORTS], ENVIRONMENT)
        assert answer.returncode == 2
        assert f"are for streams: they need {LEAST_TOTAL_BYTES // MIB}MiB at least" in answer.stderr
