"""`meshctl`, as an operator has it: real processes, real signals, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshctl.supervision.home import LOG_BYTES_MAX
from tests.support.broker import Broker
from tests.support.http_client import PatientClient
from tests.support.up import ENVIRONMENT, FREE_PORTS, SERVICES, Up, meshctl, runs, up
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


async def test_a_log_that_has_grown_too_long_is_rotated_while_its_process_runs(mesh: Up) -> None:
    logs = mesh.home / "logs"
    for name in ("ingress", "inference_worker-1"):
        with (logs / f"{name}.log").open("ab") as log:
            log.write(b"x" * LOG_BYTES_MAX + b"\n")
    await until(lambda: all((logs / f"{name}.log.1").exists() for name in ("ingress", "inference_worker-1")))
    assert "process.restarted" not in mesh.log.read_text()


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


async def test_two_services_on_one_address_are_told_before_anything_is_started(tmp_path: Path, broker: Broker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    variables = {**ENVIRONMENT, "MESH_NATS_URL": broker.url}
    same = ("--ingress-address", address, "--edge-address", address)
    answer = await meshctl("up", "--home", str(tmp_path / "home"), *same, environment=variables)
    assert answer.returncode == 2
    last = answer.stderr.splitlines()[-1]
    assert last == f"meshctl: MESH_INGRESS_ADDRESS='{address}': can't listen: Address already in use"


async def test_a_service_that_does_not_start_shows_what_it_said(tmp_path: Path, broker: Broker) -> None:
    """What `meshctl up` can check by itself it says before; this is a service that is broken."""
    broken = tmp_path / "tool_runner"
    broken.mkdir()
    (broken / "__init__.py").touch()
    (broken / "__main__.py").write_text('raise SystemExit("surely not installed")\n')
    variables = {**ENVIRONMENT, "MESH_NATS_URL": broker.url, "PYTHONPATH": str(tmp_path)}
    answer = await meshctl("up", "--home", str(tmp_path / "home"), *FREE_PORTS, environment=variables)
    assert answer.returncode == 1
    assert "surely not installed" in answer.stderr
    assert answer.stderr.splitlines()[-1] == "meshctl: tool_runner-1 does not start"


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
