"""`meshctl doctor`, `workers`, `lanes`, `streams plan`: what an operator sees of a running mesh."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from contracts import VERSION
from contracts.streams import BUILT_IN_TOOLS, SIGNALS
from mesh.broker.connection import connect
from mesh.configuration.settings import Settings
from tests.support import children
from tests.support.broker import Broker, free_port
from tests.support.patience import within
from tests.support.up import ENVIRONMENT, MESHCTL, Up, meshctl, up
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Up]:
    """A mesh that tests share which leave it as it was."""
    async with up(tmp_path_factory.mktemp("up") / "home") as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def mesh(tmp_path: Path) -> AsyncIterator[Up]:
    """A mesh that is ready."""
    async with up(tmp_path / "home") as running:
        yield running


async def doctor(environment: dict[str, str]) -> tuple[int, dict[str, dict[str, Any]]]:
    """Its exit status, and its lines by check."""
    answer = await meshctl("doctor", environment=environment)
    assert answer.stderr == ""
    lines = [json.loads(line) for line in answer.stdout.splitlines()]
    assert all(line.keys() == {"check", "status", "detail", "remedy"} for line in lines)
    return answer.returncode, {line["check"]: line for line in lines}


async def listed(command: str, environment: dict[str, str]) -> list[dict[str, Any]]:
    """What a command prints, line by line."""
    answer = await meshctl(command, environment=environment)
    assert (answer.returncode, answer.stderr) == (0, "")
    return [json.loads(line) for line in answer.stdout.splitlines()]


async def test_the_doctor_finds_a_mesh_by_its_home_and_then_what_is_missing(mesh: Up) -> None:
    environment = {**ENVIRONMENT, "MESH_HOME": str(mesh.home)}
    status, lines = await doctor(environment)
    assert status == 0, [line for line in lines.values() if line["status"] == "fail"]
    # How fast the disk is, and how many files a process may open, is this machine's affair.
    machines = {"disk", "open_files"}
    assert {name: line for name, line in lines.items() if line["status"] != "ok" and name not in machines} == {}
    assert lines["broker"]["detail"] == f"answers at {mesh.ready['nats_url']}"
    assert "fsyncs a second: at most about" in lines["disk"]["detail"]
    assert lines["services"]["detail"].endswith(f"1 steward, all {VERSION}")

    # The steward would create it again.
    steward = mesh.pids()["steward"][0]
    os.kill(steward, signal.SIGSTOP)
    async with connect(Settings(nats_url=mesh.ready["nats_url"], home=mesh.home), "test") as connection:
        await connection.requests.api("STREAM.DELETE.SIGNALS")
    status, lines = await doctor(environment)
    assert status == 1
    assert lines["streams"]["status"] == "fail"
    assert lines["streams"]["detail"] == "missing: SIGNALS, SIGNALS/steward"
    assert "meshctl streams apply" in lines["streams"]["remedy"]
    assert lines["services"]["status"] == "fail"
    assert "steward" in lines["services"]["remedy"]

    plan = await meshctl("streams", "plan", environment=environment)
    assert plan.returncode == 3
    assert [json.loads(line)["event"] for line in plan.stdout.splitlines()] == [
        "stream.to_create", "stream.to_create", "streams.differ",
    ]  # fmt: skip
    assert (await meshctl("streams", "apply", environment=environment)).returncode == 0
    assert (await meshctl("streams", "plan", environment=environment)).returncode == 0
    assert (await doctor(environment))[1]["streams"]["status"] == "ok"
    # Who listens again ends with the others; `meshctl up` would have to wait for it, and kill it.
    os.kill(steward, signal.SIGCONT)


async def test_no_broker_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    port = free_port()
    environment = {**ENVIRONMENT, "MESH_HOME": str(tmp_path / "home"), "MESH_NATS_URL": f"nats://a:b@127.0.0.1:{port}"}
    status, lines = await doctor(environment)
    assert status == 1
    assert lines.keys() == {"broker", "configuration", "disk", "open_files"}
    assert lines["broker"]["status"] == "fail"
    assert lines["broker"]["detail"] == f"none at nats://***@127.0.0.1:{port}: Connection refused"
    assert "meshctl up" in lines["broker"]["remedy"]
    assert not (tmp_path / "home").exists()


async def test_a_broker_of_ones_own_has_a_disk_and_a_sync_of_its_own(broker: Broker) -> None:
    environment = {**ENVIRONMENT, "MESH_NATS_URL": broker.url}
    assert (await meshctl("streams", "apply", environment=environment)).returncode == 0
    status, lines = await doctor(environment)
    assert status == 1, "nobody works"
    assert lines["sync"]["status"] == "warn"
    assert lines["disk"]["detail"] == "not measured: it is not ours"
    assert (lines["services"]["status"], lines["services"]["detail"]) == ("fail", "none answers")


async def test_workers_come_with_their_process_and_go_with_it(shared: Up) -> None:
    environment = shared.environment
    pids = shared.pids()
    told = {line["service"]: line for line in await listed("workers", environment)}
    assert {service: line["pid"] for service, line in told.items()} == {
        service: found[0] for service, found in pids.items() if service not in ("meshctl", "nats_server")
    }
    worker, runner = told["inference_worker"], told["tool_runner"]
    assert (worker["service"], worker["pid"]) == ("inference_worker", pids["inference_worker"][0])
    assert (worker["pools"], worker["running"], worker["version"]) == (["default"], 0, VERSION)
    assert (runner["service"], runner["pid"], runner["tools"]) == (
        "tool_runner",
        pids["tool_runner"][0],
        list(BUILT_IN_TOOLS),
    )

    # A clean stop takes its record along; its successor brings one.
    os.kill(pids["inference_worker"][0], signal.SIGTERM)
    await until(lambda: shared.pids()["inference_worker"] not in ([], pids["inference_worker"]))

    async def only_the_successor() -> bool:
        found = [line["pid"] for line in await listed("workers", environment) if line["service"] == "inference_worker"]
        return found == shared.pids()["inference_worker"]

    await until(only_the_successor)


async def test_lanes_are_listed_the_most_urgent_first(shared: Up) -> None:
    async def all_three() -> bool:
        lanes = await listed("lanes", shared.environment)
        return [(lane["pool"], lane["priority"]) for lane in lanes] == [
            ("default", "high"), ("default", "normal"), ("default", "low"),
        ]  # fmt: skip

    await until(all_three)


async def test_a_plan_says_what_apply_leaves_and_apply_leaves_it(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text('[storage]\nsignals = "64MiB"\n')
    environment = {**ENVIRONMENT, "MESH_NATS_URL": broker.url, "MESH_CONFIG": str(tmp_path / "mesh.toml")}
    config = {**SIGNALS.as_config(), "max_bytes": SIGNALS.max_bytes * 2}
    async with connect(Settings(nats_url=broker.url), "test") as connection:
        await connection.requests.api("STREAM.CREATE.SIGNALS", config)
        await connection.requests.publish("signals.t.a", b"{}")
        for command, kept in (("plan", 3), ("apply", 3), ("plan", 3)):
            answer = await meshctl("streams", command, environment=environment)
            assert answer.returncode == kept
            lines = [json.loads(line) for line in answer.stdout.splitlines()]
            [left] = [line for line in lines if line["event"] == "stream.left"]
            assert (left["name"], list(left["fields"])) == ("SIGNALS", ["max_bytes"])
            assert "could delete what is stored" in left["reason"]
        assert (lines[-1], len(lines)) == ({"event": "streams.differ", "changed": 0, "left": 1}, 2)
        info = await connection.requests.api("STREAM.INFO.SIGNALS")
        assert (info["config"]["max_bytes"], info["state"]["messages"]) == (SIGNALS.max_bytes * 2, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_ctrl_c_before_a_command_has_begun_is_quiet() -> None:
    command = [*MESHCTL, "--help"]
    status = 0
    async with within(60):
        while status == 0:  # It was done before it was told.
            process = await children.begin(command, ENVIRONMENT, stdout=children.DEVNULL, stderr=children.PIPE)
            maps = Path(f"/proc/{process.pid}/maps")
            with suppress(OSError):  # It is gone.
                # msgspec's library is mapped long before the last import is done.
                await until(lambda maps=maps: "msgspec" in maps.read_text())  # type: ignore[misc]  # mypy can't infer it
                process.send_signal(signal.SIGINT)
            _, errors = await process.communicate()
            assert process.returncode is not None
            status = process.returncode
    assert (status, errors) == (130, b"")
