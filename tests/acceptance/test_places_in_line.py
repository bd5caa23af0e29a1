"""What a mesh says of its queues, against real processes: places in line, times, pools, and refusals that say when."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from mesh.broker.connection import Connection, connect
from mesh.clock import now
from tests.support.commands import MESHCTL, environment_of, meshctl
from tests.support.http_client import PatientClient
from tests.support.processes import ROOT, running_mesh
from tests.support.submitter import Submitter
from tests.support.terminal import Terminal
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

PLACES = 2
WAITING = 6


@dataclass
class Bench(Submitter):
    """A mesh whose worker has two places, both taken for as long as the tests last; and six tasks that wait."""

    connection: Connection
    waiting: list[dict[str, Any]]

    async def pool(self, name: str = "default", **headers: str) -> dict[str, Any]:
        """A pool, as `GET /v1/pools` has it."""
        answer = await self.client.get("/v1/pools", headers=headers)
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store"), answer.text
        return next(pool for pool in answer.json()["pools"] if pool["pool"] == name)

    async def until_pool(self, condition: Callable[[dict[str, Any]], bool], name: str = "default") -> dict[str, Any]:
        """Wait until a pool is told so."""
        seen: dict[str, Any] = {}

        async def says() -> bool:
            seen.update(await self.pool(name))
            return condition(seen)

        try:
            await until(says)
        except TimeoutError:
            pytest.fail(f"it stands so: {seen}")
        return seen

    async def on_a_terminal(self, *arguments: str, until_printed: Callable[[str], bool] | None = None) -> str:
        """What a command of meshctl prints on a terminal."""
        terminal = Terminal([*MESHCTL, *arguments], environment_of(self.mesh), ROOT)
        assert await terminal.run(until_printed) == (0 if until_printed is None else 130), terminal.output
        return terminal.output.replace("\r\n", "\n")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    folder = tmp_path_factory.mktemp("places")
    (folder / "mesh.toml").write_text("[pools.default]\n[pools.idle]\n[pools.spare]\n[tenants.full]\nbacklog = 3\n")
    async with (
        running_mesh(folder, "ingress", "steward", MESH_CONFIG=str(folder / "mesh.toml")) as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        await mesh.start("inference_worker", MESH_WORKER_CONCURRENCY=str(PLACES))
        bench = Bench(mesh, client, connection, [])
        # What ends tells how long a task has a place; what hangs takes all of them.
        for number in range(4):
            await bench.post(f"!say {number + 1}")
        await bench.until_pool(lambda pool: pool["lanes"][1]["wait_seconds_p99"] is not None)
        for _ in range(PLACES):
            await bench.post("!hang 900")
        await bench.until_pool(lambda pool: (pool["running"], pool["places"], pool["free"]) == (PLACES, PLACES, 0))
        for _ in range(WAITING):
            bench.waiting.append(await bench.accepted("!say 1"))
        yield bench
        assert mesh.tracebacks() == []


async def test_each_202_has_a_place_in_line_and_says_what_its_time_was_worked_out_from(bench: Bench) -> None:
    queues = [task["queue"] for task in bench.waiting]
    # Nobody looked at the lane between them: what this ingress has accepted counts all the same.
    assert [queue["position"] for queue in queues] == [1, 2, 3, 4, 5, 6]
    assert {queue["basis"] for queue in queues} <= {"places", "drain"}
    assert all(queue["eta_seconds"] > 0 for queue in queues)


async def test_the_record_of_a_task_that_waits_has_its_exact_place(bench: Bench) -> None:
    await bench.until_pool(lambda pool: pool["lanes"][1]["depth"] == WAITING)
    for number, task in enumerate(bench.waiting):
        shown = await bench.record(task)
        assert (shown["status"], shown["waiting"]["on"], shown["waiting"]["ahead"]) == ("queued", "worker", number)
        assert (shown["queue"]["depth"], shown["queue"]["position"]) == (WAITING, number + 1)
        assert shown["queue"]["basis"] in ("places", "drain")


async def test_a_submission_that_is_repeated_is_told_the_place_that_its_task_has(bench: Bench) -> None:
    # A worker has one more in hand than it works on, which is in no queue.
    until_then = (now() + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    await bench.connection.requests.api("CONSUMER.PAUSE.TASKS.spare-normal", {"pause_until": until_then})

    async def post(key: str) -> dict[str, Any]:
        body = {"input": "!say 1", "pool": "spare"}
        answer = await bench.client.post("/v1/tasks", json=body, headers={"Idempotency-Key": key})
        told: dict[str, Any] = answer.json()
        return told

    first, _ = await post("one"), await post("two")
    await bench.until_pool(lambda pool: pool["depth"] == 2, "spare")
    again = await post("one")
    assert (again["id"], again["queue"]["position"]) == (first["id"], 1)
    assert (await post("three"))["queue"]["position"] == 3
    await bench.until_pool(lambda pool: pool["lanes"][1]["basis"] == "paused", "spare")
    told = (await post("four"))["queue"]
    assert (told["position"], told["eta_seconds"], told["basis"]) == (4, None, "paused")
    await bench.until_pool(lambda pool: pool["depth"] == 4, "spare")


async def test_a_task_that_runs_has_no_place_in_line(bench: Bench) -> None:
    tasks = (await bench.client.get("/v1/tasks", params={"status": "running"})).json()["tasks"]
    assert len(tasks) == PLACES
    assert "queue" not in await bench.record(tasks[0])


async def test_all_pools_are_on_one_page(bench: Bench) -> None:
    pool = await bench.until_pool(lambda pool: pool["lanes"][1]["depth"] == WAITING)
    assert (pool["depth"], pool["running"], pool["workers"], pool["places"], pool["free"]) == (WAITING, 2, 1, 2, 0)
    normal = pool["lanes"][1]
    assert (normal["priority"], normal["waiting_tasks"]) == ("normal", WAITING)
    assert 0 < normal["wait_seconds_p50"] <= normal["wait_seconds_p95"] <= normal["wait_seconds_p99"]
    assert pool["providers"] == [
        {"provider": "scripted", "breaker": "closed", "since": None, "retry_at": None, "room": None}
    ]
    assert [(tenant["tenant"], tenant["share"]) for tenant in pool["tenants"]] == [("default", 1.0)]
    idle = await bench.until_pool(lambda pool: pool["places"] == PLACES, "idle")
    # Its one worker serves both pools, and is busy with the other.
    assert (idle["depth"], idle["free"], idle["lanes"][0]["basis"]) == (0, 0, "unknown")


async def test_meshctl_shows_pools_to_people_and_to_pipes(bench: Bench) -> None:
    await bench.until_pool(lambda pool: pool["lanes"][1]["depth"] == WAITING)
    piped = await meshctl(bench.mesh, "pools")
    assert [(pool["pool"], pool["depth"]) for pool in piped] == [("default", WAITING), ("idle", 0), ("spare", 4)]
    shown = await bench.on_a_terminal("pools")
    assert "default 100%" in shown
    assert "default, normal" in shown


async def test_top_is_live_on_a_terminal_and_one_frame_elsewhere(bench: Bench) -> None:
    live = await bench.on_a_terminal("top", "--interval", "0.5", until_printed=lambda text: text.count("PROVIDERS") > 2)
    assert "\x1b[?1049h" in live, "it has a screen of its own"
    assert "\x1b[?1049l" in live, "and leaves it"
    terminal = Terminal(["sh", "-c", f"{' '.join(MESHCTL)} top | cat"], environment_of(bench.mesh), ROOT)
    assert await terminal.run() == 0, terminal.output
    for text in (
        "default, normal",
        "scripted",
        "TENANT",
        "inference_worker-",
        "steward-",
        "10 waiting, 2 running",
        "paused",
    ):
        assert text in terminal.output, terminal.output
    assert "\x1b" not in terminal.output


async def test_top_is_laid_out_anew_at_once_when_its_terminal_changes(bench: Bench) -> None:
    # Nobody waits for the next look.
    command = [*MESHCTL, "top", "--interval", "3600"]
    terminal = Terminal(command, environment_of(bench.mesh) | {"NO_COLOR": "1"}, ROOT, size=(180, 50))

    home, heads = "\x1b[H", " running, "

    def is_narrow_at_last(text: str) -> bool:
        if "steward-" in text and not resized:
            resized.append(text.count(heads))
            terminal.resize(70, 20)
        return bool(resized) and text.count(heads) > resized[0]

    resized: list[int] = []
    assert await terminal.run(is_narrow_at_last) == 130, terminal.output
    frames = [frame for frame in terminal.output.split(home) if heads in frame]
    texts = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", frame) for frame in (frames[0], frames[-1])]
    wide, narrow = [max(len(line.strip("\r")) for line in text.split("\n")) for text in texts]
    assert (70 < wide <= 180, narrow <= 70) == (True, True), (wide, narrow)
    assert "\x1b[?1049l" in terminal.output, "it leaves its screen"
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", terminal.output) is None, "nobody wants colours"


async def test_why_says_place_time_and_share(bench: Bench) -> None:
    task = bench.waiting[2]["id"]
    (piped,) = await meshctl(bench.mesh, "why", task)
    assert (piped["queue"]["position"], piped["share"]["tenant"], piped["lane"]["priority"]) == (3, "default", "normal")
    shown = await bench.on_a_terminal("why", task)
    assert "Its place in line: 3. By what is known now it begins in about" in shown
    assert "100% were tenant default's." in shown


async def test_a_refusal_says_what_is_full_how_deep_it_is_and_when_to_come_again(bench: Bench) -> None:
    # Nothing has begun for a while, and that is what the next ones are told.
    await bench.until_pool(lambda pool: (pool["lanes"][1]["tasks_per_second"] or 1) < 0.2)

    async def is_full() -> bool:
        return (await bench.post("one more", "full")).status_code == 503

    await until(is_full)
    refused = await asyncio.gather(*(bench.post("one more", "full") for _ in range(40)))
    assert {answer.status_code for answer in refused} == {503}
    problems = [answer.json() for answer in refused]
    assert {(problem["code"], problem["cause"]) for problem in problems} == {("queue-full", "lane")}
    assert all(problem["depth"] >= WAITING for problem in problems)
    assert len({answer.headers["retry-after"] for answer in refused}) > 1, "they would come back together"
    assert (await bench.post("of another", "others")).status_code == 202


async def test_who_has_little_is_told_a_better_place_than_who_has_much(bench: Bench) -> None:
    """The lane is the stewards' to order by now: tenants take turns in it."""
    for _ in range(30):
        await bench.accepted("!say 1", "flood")

    async def is_seen() -> bool:
        last = (await bench.accepted("!say 1", "flood"))["queue"]["position"]
        few = await bench.accepted("!say 1", "few")
        exact = (await bench.record(few))["queue"]["position"]
        return bool(exact is not None and exact < last - 15 and few["queue"]["position"] < last - 15)

    await until(is_seen)
