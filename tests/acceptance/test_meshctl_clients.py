"""`meshctl` as a client, beside a mesh that several tests share: what it prints, and what it survives."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from contracts import VERSION
from contracts.build import BUILD
from tests.support import children
from tests.support.patience import ended, within
from tests.support.up import FREE_PORTS, MESHCTL, Up, meshctl, runs, up

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Up]:
    """A mesh that is ready."""
    async with up(tmp_path_factory.mktemp("up") / "home") as running:
        yield running


async def test_what_is_killed_comes_back_where_it_was(mesh: Up) -> None:
    died_before = mesh.log.read_text().count('"process.died"')
    await mesh.killed("stream_edge")
    await mesh.killed("ingress")
    await mesh.killed("nats_server")
    await mesh.killed("inference_worker")
    # The same addresses as ever: a task through all four.
    answer = await meshctl("submit", "--wait", "!say 3", environment=mesh.environment)
    assert json.loads(answer.stdout)["output"] == "t0 t1 t2 "
    assert mesh.log.read_text().count('"process.died"') == died_before + 4


async def test_a_second_mesh_on_the_same_home_is_refused(mesh: Up) -> None:
    answer = await meshctl("up", "--home", str(mesh.home), *FREE_PORTS)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == f"meshctl: conflict: another meshctl (pid {mesh.process.pid}) runs on {mesh.home}\n"
    assert all(map(runs, mesh.all_pids))


@pytest_asyncio.fixture(loop_scope="module")
async def fresh(tmp_path: Path) -> AsyncIterator[Up]:
    """A mesh that has not seen a task yet."""
    async with up(tmp_path / "home") as running:
        yield running


async def test_a_client_submits_follows_and_lists(fresh: Up) -> None:
    environment = fresh.environment
    submitted = await meshctl("submit", "-", "--metadata", "a=b", "--key", "k1", environment=environment, text="!say 4")
    task = json.loads(submitted.stdout)["id"]
    twice = await meshctl("submit", "!say 4", "--metadata", "a=b", "--key", "k1", environment=environment)
    assert json.loads(twice.stdout)["id"] == task
    other = await meshctl("submit", "!say 5", "--key", "k1", environment=environment)
    assert (other.returncode, other.stdout) == (1, "")
    assert other.stderr.startswith("meshctl: idempotency-mismatch: ")

    watched = await meshctl("watch", task, environment=environment)
    events = [json.loads(line) for line in watched.stdout.splitlines()]
    assert [event["n"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "task.completed"
    frames = (await meshctl("watch", task, "--raw", environment=environment)).stdout.split("\n\n")
    first = int(frames[0].splitlines()[0].removeprefix("id: "))
    rest = await meshctl("watch", task, "--after", str(first), environment=environment)
    assert rest.stdout.splitlines() == watched.stdout.splitlines()[1:]

    got = json.loads((await meshctl("get", task, environment=environment)).stdout)
    assert (got["status"], got["output"], got["metadata"]) == ("completed", "t0 t1 t2 t3 ", {"a": "b"})
    failed = await meshctl("submit", "--watch", "!no such thing", environment=environment)
    assert failed.returncode == 1
    assert json.loads(failed.stdout.splitlines()[-1])["type"] == "task.failed"

    listed = await meshctl("list", "--all", environment=environment)
    assert [json.loads(line)["status"] for line in listed.stdout.splitlines()] == ["failed", "completed"]
    assert len((await meshctl("list", "--limit", "1", environment=environment)).stdout.splitlines()) == 1
    only = await meshctl("list", "--status", "completed", environment=environment)
    assert [json.loads(line)["id"] for line in only.stdout.splitlines()] == [task]
    strangers = await meshctl("--tenant", "acme", "list", environment=environment)
    assert strangers.stdout == ""
    missing = await meshctl("get", task, "--tenant", "acme", environment=environment)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith("meshctl: not-found: ")


async def test_a_watch_survives_its_edge_and_the_broker(mesh: Up) -> None:
    command = [*MESHCTL, "submit", "--watch", "!rate 20\n!say 80"]
    watch = await children.begin(command, mesh.environment, stdout=children.PIPE)
    assert watch.stdout is not None
    async with within(60):
        lines = [await watch.stdout.readline() for _ in range(10)]
        await mesh.killed("stream_edge")
        lines += [await watch.stdout.readline() for _ in range(10)]
        await mesh.killed("nats_server")
        rest, _ = await watch.communicate()
    events = [json.loads(line) for line in [*lines, *rest.splitlines()]]
    assert watch.returncode == 0
    assert [event["n"] for event in events] == list(range(len(events)))
    text = "".join(event["text"] for event in events if event["type"] == "output.delta")
    assert text == events[-1]["output"] == "".join(f"t{number} " for number in range(80))


async def test_ctrl_c_and_a_closed_pipe_end_a_watch_quietly(mesh: Up) -> None:
    async def watching() -> asyncio.subprocess.Process:
        command = [*MESHCTL, "submit", "--watch", "!rate 20\n!say 100"]
        process = await children.begin(command, mesh.environment, stdout=children.PIPE, stderr=children.PIPE)
        assert process.stdout is not None
        await process.stdout.readline()
        return process

    async with within(30):
        interrupted = await watching()
        interrupted.send_signal(signal.SIGINT)
        _, errors = await interrupted.communicate()
        assert (interrupted.returncode, errors) == (130, b"")

        cut = await watching()
        cut._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # asyncio has no public way to hang up
        assert cut.stderr is not None
        assert await cut.stderr.read() == b""
        assert await cut.wait() == 141


async def on_a_terminal(*arguments: str, environment: Mapping[str, str]) -> str:
    """What a command that works shows on a terminal."""
    master, slave = pty.openpty()
    process = children.start([*MESHCTL, *arguments], environment, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    with suppress(OSError):  # The other side of the terminal is closed: EIO.
        while chunk := await asyncio.to_thread(os.read, master, 4096):
            shown += chunk
    os.close(master)
    assert await ended(process, 10) == 0
    return shown.decode()


async def test_a_terminal_gets_text(mesh: Up) -> None:
    plain = {**mesh.environment, "NO_COLOR": "1", "TERM": "xterm-256color"}
    shown = await on_a_terminal("submit", "--watch", "!say 3", environment=plain)
    lines = shown.splitlines()
    assert lines[0] == "· queued in default, normal"
    assert lines[2:] == ["t0 t1 t2 ", "· turn 1 completed: stop, 3 tokens", "· completed"]
    for command in (["list"], ["workers"], ["lanes"], ["providers"], ["doctor"]):
        assert "\x1b" not in await on_a_terminal(*command, environment=plain)


async def test_a_terminal_gets_colour_and_progress(mesh: Up) -> None:
    coloured = {**mesh.environment, "TERM": "xterm-256color"}
    coloured.pop("NO_COLOR", None)
    shown = await on_a_terminal("submit", "--watch", "!rate 10\n!say 3", environment=coloured)
    assert "\x1b[2m· completed" in shown
    assert "running  about " in shown
    assert "t2 " in shown
    assert "\x1b[32m" in await on_a_terminal("list", environment=coloured)
    assert "\x1b[32mok" in await on_a_terminal("doctor", environment=coloured)


async def test_nobody_there_is_one_line(tmp_path: Path) -> None:
    answer = await meshctl("--url", "http://127.0.0.1:1", "list")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.startswith("meshctl: unreachable: http://127.0.0.1:1: ")
    assert len(answer.stderr.splitlines()) == 1
    version = await meshctl("--version")
    assert version.stdout == f"meshctl {VERSION} (build {BUILD})\n"
