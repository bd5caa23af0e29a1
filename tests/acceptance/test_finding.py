"""Every command finds a mesh on free ports by MESH_HOME alone, and says so when that mesh was killed."""

from __future__ import annotations

import json
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mesh.configuration.settings import SERVICES
from meshctl.supervision.home import Home
from tests.support.broker import Broker
from tests.support.patience import within
from tests.support.up import ENVIRONMENT, Up, meshctl, up
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Up]:
    """A mesh that tests share which leave it as it was."""
    async with up(tmp_path_factory.mktemp("up") / "home") as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def mesh(tmp_path: Path) -> AsyncIterator[Up]:
    """A mesh on free ports."""
    async with up(tmp_path / "home") as running:
        yield running


class Person:
    """Somebody at a second terminal, who knows a mesh's home and nothing else."""

    def __init__(self, mesh: Up) -> None:
        self.environment = {**ENVIRONMENT, "MESH_HOME": str(mesh.home)}

    async def asks(self, *arguments: str, status: int = 0) -> list[dict[str, Any]]:
        """What a command prints that ends with this status."""
        answer = await meshctl(*arguments, environment=self.environment)
        assert (answer.returncode, answer.stderr) == (status, ""), (arguments, answer)
        return [json.loads(line) for line in answer.stdout.splitlines()]

    async def waits_for(self, task: str, status: str) -> None:
        """Until a task has come this far."""
        async with within(60):
            while (await self.asks("get", task))[0]["status"] != status:
                pass  # Each look is a process: it takes its time.


async def test_every_command_finds_the_mesh_by_its_home(shared: Up) -> None:
    person = Person(shared)
    [done] = await person.asks("submit", "--wait", "!say 3")
    assert done["output"] == "t0 t1 t2 "
    assert (await person.asks("watch", done["id"]))[-1]["type"] == "task.completed"
    assert (await person.asks("get", done["id"]))[0]["status"] == "completed"

    [waiting] = await person.asks(
        "submit", "--tool", "calculator", "--approval", "always",
        '!call calculator {"expression": "6 * 7"}\n!call calculator {"expression": "1"}\n!ask Which?',
    )  # fmt: skip
    await person.waits_for(waiting["id"], "waiting")
    await person.asks("approve", waiting["id"], "1-0")
    await person.asks("deny", waiting["id"], "1-1")
    await person.asks("say", waiting["id"], "That one")
    await person.waits_for(waiting["id"], "completed")

    [endless] = await person.asks("submit", "!hang 60")
    await person.asks("cancel", endless["id"])
    await person.waits_for(endless["id"], "cancelled")
    assert {task["id"] for task in await person.asks("list")} == {done["id"], waiting["id"], endless["id"]}
    assert await person.asks("dead-letters", "list") == []

    assert await person.asks("triggers", "list") == []
    assert {record["service"] for record in await person.asks("workers")} == set(SERVICES)
    assert await person.asks("providers") == []
    assert await person.asks("lanes")
    assert (await person.asks("streams", "plan"))[-1]["event"] == "streams.as_declared"
    assert {line["check"]: line["status"] for line in await person.asks("doctor")}["services"] == "ok"


async def test_the_home_may_be_a_flag_and_a_named_address_outranks_it(shared: Up) -> None:
    for command in (["list"], ["dead-letters", "list"], ["lanes"]):
        answer = await meshctl(*command, "--home", str(shared.home))
        assert (answer.returncode, answer.stderr) == (0, ""), command
    for named in ({"MESH_INGRESS_URL": "http://127.0.0.1:1"}, {"MESH_INGRESS_ADDRESS": "127.0.0.1:1"}):
        elsewhere = {**ENVIRONMENT, "MESH_HOME": str(shared.home), **named}
        answer = await meshctl("list", environment=elsewhere)
        assert (answer.returncode, answer.stdout) == (1, "")
        assert answer.stderr.startswith("meshctl: unreachable: http://127.0.0.1:1: ")
    assert not stat.S_IMODE(shared.home.stat().st_mode) & 0o077, "others may look into the home"


async def test_a_broker_of_ones_own_is_found_too_unless_its_url_holds_a_password(
    tmp_path: Path, broker: Broker
) -> None:
    async with up(tmp_path / "plain", variables={"MESH_NATS_URL": broker.url}) as mesh:
        assert {record["service"] for record in await Person(mesh).asks("workers")} == set(SERVICES)
    async with up(tmp_path / "secret", variables={"MESH_NATS_URL": broker.url.replace("//", "//me:secret@")}) as mesh:
        person = Person(mesh)
        assert "secret" not in (mesh.home / "addresses.json").read_text()
        assert await person.asks("list") == []
        answer = await meshctl("workers", environment=person.environment)
        assert answer.returncode == 2
        assert answer.stderr.startswith("meshctl: MESH_NATS_URL is unset: ")


async def test_a_mesh_that_was_stopped_is_forgotten_and_one_that_was_killed_is_told_of(mesh: Up) -> None:
    person = Person(mesh)
    addresses = mesh.home / "addresses.json"
    told = json.loads(addresses.read_bytes())
    assert told == {name: mesh.ready[name] for name in ("ingress_url", "edge_url", "nats_url")} | {"tls_cert": None}

    await mesh.end(signal.SIGKILL)
    # The broker holds the home's lock until it has ended, too.
    await until(lambda: not Home(mesh.home).is_locked(), 10)
    assert addresses.exists()
    for command in (["submit", "hello"], ["list"], ["get", "x"], ["watch", "x"], ["lanes"], ["triggers", "list"]):
        answer = await meshctl(*command, environment=person.environment)
        assert (answer.returncode, answer.stdout) == (1, ""), command
        assert answer.stderr.startswith(f"meshctl: unreachable: the mesh on {mesh.home} no longer runs: "), command
        assert len(answer.stderr.splitlines()) == 1
    [broker, *_] = await person.asks("doctor", status=1)
    assert (broker["check"], broker["status"]) == ("broker", "fail")
    assert f"the mesh on {mesh.home} no longer runs" in broker["detail"]

    async with up(mesh.home) as successor:
        assert await person.asks("list") == []
        await successor.end(signal.SIGINT)
    assert not addresses.exists()
