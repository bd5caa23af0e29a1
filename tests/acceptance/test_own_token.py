"""The embedded broker lets in whoever can read MESH_HOME, and nobody else on the machine."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import nats.errors
import pytest
import pytest_asyncio
from nats.aio.client import Client

from mesh.fleet.members import SERVICES
from tests.support import children
from tests.support.broker import Broker
from tests.support.toolchains import REPOSITORY, nats_cli
from tests.support.up import ENVIRONMENT, Up, meshctl, up

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

SECRET = "s3cr3t"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Up]:
    async with up(tmp_path_factory.mktemp("up") / "home") as running:
        yield running


def token_of(mesh: Up) -> str:
    return (mesh.home / "broker.token").read_text().strip()


async def said_by_broker(url: str, **login: str) -> str:
    """What the broker says to a client that does not try again; nothing: it lets it in."""
    client = Client()
    try:
        await client.connect(url, allow_reconnect=False, **login)  # type: ignore[arg-type]  # strings alone
    except nats.errors.Error as error:
        return str(error)
    finally:
        await client.close()
    return ""


async def test_a_client_without_the_token_cannot_forge_an_approval(mesh: Up) -> None:
    assert "Authorization Violation" in await said_by_broker(mesh.ready["nats_url"])
    assert "Authorization Violation" in await said_by_broker(mesh.ready["nats_url"], token="wrong")
    assert await said_by_broker(mesh.ready["nats_url"], token=token_of(mesh)) == ""


async def test_commands_and_a_service_that_runs_alone_find_the_token_by_the_home(mesh: Up, tmp_path: Path) -> None:
    alone = {**ENVIRONMENT, "MESH_HOME": str(mesh.home)}
    for environment in (alone, {**alone, "MESH_NATS_URL": mesh.ready["nats_url"]}):
        answer = await meshctl("workers", environment=environment)
        assert (answer.returncode, answer.stderr) == (0, "")
        assert {json.loads(line)["service"] for line in answer.stdout.splitlines()} == set(SERVICES)
    stranger = {**ENVIRONMENT, "MESH_HOME": str(tmp_path / "other"), "MESH_NATS_URL": mesh.ready["nats_url"]}
    answer = await meshctl("workers", environment=stranger)
    assert answer.returncode == 2
    assert "asks for a login" in answer.stderr
    service = await children.run([sys.executable, "-m", "steward"], stranger)
    assert service.returncode == 2
    assert service.stderr.splitlines()[-1].startswith(
        f"steward: the broker at {mesh.ready['nats_url']} asks for a login"
    )


async def test_the_token_lies_in_files_of_its_owner_alone(mesh: Up) -> None:
    token = token_of(mesh)
    for path in mesh.home.rglob("*"):
        if path.is_file() and not path.is_relative_to(mesh.home / "jetstream") and token.encode() in path.read_bytes():
            assert path.name in ("broker.token", "nats.conf")
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token not in mesh.log.read_text()
    assert token not in json.dumps(mesh.ready)


async def test_no_process_has_it_in_its_arguments_or_environment(mesh: Up) -> None:
    token = token_of(mesh).encode()
    for pid in mesh.all_pids:
        for name in ("cmdline", "environ"):
            assert token not in Path(f"/proc/{pid}/{name}").read_bytes(), (pid, name)


async def test_a_password_of_ones_own_broker_is_printed_nowhere(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "nats", extra=f"authorization {{ user: me, password: {SECRET} }}")
    await broker.start()
    try:
        url = broker.url.replace("//", f"//me:{SECRET}@")
        async with up(tmp_path / "home", variables={"MESH_NATS_URL": url}) as mesh:
            assert mesh.ready["nats_url"] == broker.url.replace("//", "//***@")
            arguments = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in mesh.all_pids]
            assert not [each for each in arguments if SECRET.encode() in each]
        written = [mesh.log, *(path for path in mesh.home.rglob("*") if path.is_file())]
        assert not [path for path in written if SECRET.encode() in path.read_bytes()]
        wrong = {**ENVIRONMENT, "MESH_NATS_URL": url.replace(SECRET, "wr0ng"), "MESH_HOME": str(tmp_path / "new")}
        for command in (["up", "--ingress-address", "127.0.0.1:0", "--edge-address", "127.0.0.1:0"], ["workers"]):
            answer = await meshctl(*command, environment=wrong)
            assert answer.returncode == 2
            assert answer.stderr.splitlines()[-1] == (
                f"meshctl: the broker at {mesh.ready['nats_url']} refuses the user or password of MESH_NATS_URL"
            )
            assert "wr0ng" not in answer.stderr + answer.stdout
    finally:
        await broker.stop()


@pytest.mark.slow
async def test_the_documented_variables_let_the_nats_cli_in(mesh: Up) -> None:
    [documented] = re.findall(
        r"^(export NATS_URL=.*)$", (REPOSITORY / "deploy/nats/README.md").read_text(), re.MULTILINE
    )
    command = documented.replace("nats://127.0.0.1:4222", mesh.ready["nats_url"]).replace(".mesh", str(mesh.home))
    environment = {**ENVIRONMENT, "HOME": str(mesh.home), "PATH": f"{nats_cli().parent}:{os.environ['PATH']}"}
    answer = await children.run(["sh", "-c", f"{command}; nats kv ls tools"], environment)
    assert answer.returncode == 0, answer.stderr
    assert "calculator" in answer.stdout
