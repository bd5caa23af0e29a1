"""`meshctl`, as an operator has it: real processes, real signals, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from contracts import VERSION
from tests.support import children
from tests.support.broker import Broker
from tests.support.http_client import PatientClient
from tests.support.patience import ended, within
from tests.support.up import ENVIRONMENT, FREE_PORTS, MESHCTL, SERVICES, Up, meshctl, runs, up
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Up]:
    """A mesh that is ready."""
    async with up(tmp_path / "home") as running:
        yield running


async def test_up_prints_one_line_into_a_pipe_and_sigint_ends_it_all(mesh: Up) -> None:
    assert mesh.ready.keys() == {"event", "nats_url", "ingress_url", "edge_url", "pids"}
    assert mesh.ready["event"] == "mesh.ready"
    assert mesh.ready["pids"].keys() == SERVICES
    assert mesh.pids() == {"meshctl": [mesh.process.pid], **mesh.ready["pids"]}
    pids = mesh.all_pids
    assert len(pids) == 7
    assert all(map(runs, pids))
    async with PatientClient() as http:
        for url in (mesh.ready["ingress_url"], mesh.ready["edge_url"]):
            assert (await http.get(f"{url}/health/ready")).status_code == 200
    await mesh.end(signal.SIGINT)
    assert mesh.process.returncode == 0
    assert mesh.rest == b""
    assert [pid for pid in pids if runs(pid)] == []
    assert not (mesh.home / "pids.json").exists()
    assert {path.stem for path in (mesh.home / "logs").glob("*.log")} == {
        "ingress", "stream_edge", "inference_worker-1", "tool_runner-1", "steward", "nats_server",
    }  # fmt: skip


async def test_sigterm_ends_it_too_also_with_a_service_that_does_not_listen(mesh: Up) -> None:
    pids = mesh.all_pids
    os.kill(mesh.pids()["steward"][0], signal.SIGSTOP)
    await mesh.end(signal.SIGTERM)
    assert mesh.process.returncode == 0
    assert "process.killed" in mesh.log.read_text()
    assert [pid for pid in pids if runs(pid)] == []


async def test_a_second_sigint_does_not_wait(mesh: Up) -> None:
    pids = mesh.all_pids
    os.kill(mesh.pids()["steward"][0], signal.SIGSTOP)
    mesh.process.send_signal(signal.SIGINT)
    await until(lambda: "mesh.stopping" in mesh.log.read_text())
    await mesh.end(signal.SIGINT, seconds=3)
    assert mesh.process.returncode == 130
    assert [pid for pid in pids if runs(pid)] == []


async def test_kill_9_of_meshctl_leaves_nothing_and_the_home_is_free_again(mesh: Up) -> None:
    pids = mesh.all_pids
    await mesh.end(signal.SIGKILL)
    async with up(mesh.home) as successor:
        assert not set(successor.all_pids) & set(pids)
        await until(lambda: not any(map(runs, pids)), 5)


async def test_what_is_killed_comes_back_where_it_was(mesh: Up) -> None:
    await mesh.killed("stream_edge")
    await mesh.killed("ingress")
    await mesh.killed("nats_server")
    await mesh.killed("inference_worker")
    # The same addresses as ever: a task through all four.
    answer = await meshctl("submit", "--wait", "!say 3", environment=mesh.environment)
    assert json.loads(answer.stdout)["output"] == "t0 t1 t2 "
    assert mesh.log.read_text().count('"process.died"') == 4


async def test_as_many_workers_and_runners_as_asked_for_in_a_home_of_any_name(tmp_path: Path) -> None:
    async with up(tmp_path / 'the "home" {é}', "--workers", "3", variables={"MESH_RUNNERS": "0"}) as mesh:
        assert {name: len(pids) for name, pids in mesh.ready["pids"].items()} == {
            **dict.fromkeys(SERVICES, 1),
            "inference_worker": 3,
            "tool_runner": 0,
        }


async def test_a_broker_of_ones_own_is_used_and_left_alone(tmp_path: Path, broker: Broker) -> None:
    async with up(tmp_path / "home", variables={"MESH_NATS_URL": broker.url}) as mesh:
        assert mesh.ready["nats_url"] == broker.url
        assert mesh.ready["pids"]["nats_server"] == []
        await mesh.end(signal.SIGINT)
    assert broker.process is not None
    assert broker.process.poll() is None
    assert not (mesh.home / "nats.conf").exists()


@pytest.mark.parametrize("flag", ["--nats-port", "--ingress-address", "--edge-address"])
async def test_a_taken_port_is_one_clear_line(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        value = str(port) if flag == "--nats-port" else f"127.0.0.1:{port}"
        answer = await meshctl("up", "--home", str(tmp_path / "home"), *FREE_PORTS, flag, value)
    assert answer.returncode == 1
    assert answer.stdout == ""
    last = answer.stderr.splitlines()[-1]
    assert last.startswith(f"meshctl: can't listen on 127.0.0.1:{port} (MESH_")
    assert flag in last


async def test_a_service_that_does_not_start_shows_what_it_said(tmp_path: Path, broker: Broker) -> None:
    """Both listen on one port: the second can't, and its log says why."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    variables = {**ENVIRONMENT, "MESH_NATS_URL": broker.url}
    same = ("--ingress-address", address, "--edge-address", address)
    answer = await meshctl("up", "--home", str(tmp_path / "home"), *same, environment=variables)
    assert answer.returncode == 1
    assert address in answer.stderr
    assert "in use" in answer.stderr
    assert answer.stderr.splitlines()[-1] in ("meshctl: ingress does not start", "meshctl: stream_edge does not start")


async def test_a_second_mesh_on_the_same_home_is_refused(mesh: Up) -> None:
    answer = await meshctl("up", "--home", str(mesh.home), *FREE_PORTS)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == f"meshctl: conflict: another meshctl (pid {mesh.process.pid}) runs on {mesh.home}\n"
    assert all(map(runs, mesh.all_pids))


async def test_a_wrong_setting_ends_with_2(tmp_path: Path) -> None:
    answer = await meshctl("up", "--home", str(tmp_path / "home"), *FREE_PORTS, "--workers", "many")
    assert answer.returncode == 2
    assert answer.stderr.startswith("meshctl: MESH_WORKERS='many'")


async def test_consumers_of_the_embedded_broker_follow_the_settings(tmp_path: Path) -> None:
    """A home of before, with another lease: workers and broker must agree on it."""
    home = tmp_path / "home"
    async with up(home):
        pass
    async with up(home, "--ack-wait-seconds", "7") as mesh:
        answer = await meshctl("streams", "apply", "--ack-wait-seconds", "7", environment=mesh.environment)
        assert json.loads(answer.stdout) == {"event": "streams.as_declared", "changed": 0}


async def test_the_first_task_runs_while_one_watches(tmp_path: Path) -> None:
    async with up(tmp_path / "home", "--first-task") as mesh:
        await until(lambda: "meshctl submit --watch" in mesh.log.read_text())
        told = mesh.log.read_text()
        assert "First task " in told
        assert "completed; first token after " in told
        assert "I am the scripted model" in told
        await mesh.end(signal.SIGINT)
        assert mesh.rest == b""


async def test_the_demonstration_holds_and_leaves_nothing(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path), "MESH_NATS_URL": "nats://127.0.0.1:1", "MESH_WORKERS": "0"}
    answer = await meshctl("demo", environment=environment, seconds=90)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "The connection is cut after sequence " in answer.stdout
    assert "Resumed after " in answer.stdout
    assert answer.stdout.count("  ok    ") == 5
    assert "FAILED" not in answer.stdout
    assert list(tmp_path.iterdir()) == []


async def test_streams_apply_says_what_it_changes_and_then_that_all_is_well(broker: Broker) -> None:
    environment = {**ENVIRONMENT, "MESH_NATS_URL": broker.url}
    created, again, changed = [
        [
            json.loads(line)
            for line in (await meshctl("streams", "apply", *flags, environment=environment)).stdout.splitlines()
        ]
        for flags in ([], [], ["--max-deliver", "7"])
    ]
    assert {"stream.created"} == {line["event"] for line in created[:-1]}
    assert {"EVENTS", "KV_tasks", "TASKS/default-normal"} <= {line["name"] for line in created[:-1]}
    assert again == [{"event": "streams.as_declared", "changed": 0}]
    assert changed[0]["event"] == "stream.updated"
    assert changed[0]["fields"] == {"max_deliver": {"declared": 7, "was": 10}}


async def test_a_client_submits_follows_and_lists(mesh: Up) -> None:
    environment = mesh.environment
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
    assert version.stdout == f"meshctl {VERSION}\n"
