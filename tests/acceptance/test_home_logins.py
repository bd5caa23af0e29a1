"""The embedded broker lets in whoever can read MESH_HOME, each with its rights, and nobody else on the machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from nats.aio.client import Client

from mesh.broker.embedded import LOGINS
from mesh.configuration.broker_urls import BrokerLogin
from mesh.configuration.settings import SERVICES
from tests.support import children
from tests.support.broker import Broker
from tests.support.home_logins import logins_of, said_by_broker
from tests.support.toolchains import REPOSITORY, nats_cli
from tests.support.up import ENVIRONMENT, Up, meshctl, up
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

SECRET = "s3cr3t"
PATHS = "/usr/bin:/bin:/usr/sbin:/sbin"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Up]:
    async with up(tmp_path_factory.mktemp("up") / "home") as running:
        yield running


def passwords_of(mesh: Up) -> list[str]:
    return [login.password or "" for login in logins_of(mesh).values()]


async def test_a_client_without_a_login_cannot_forge_an_approval(mesh: Up) -> None:
    logins = logins_of(mesh)
    assert logins.keys() == set(LOGINS)
    assert "Authorization Violation" in await said_by_broker(mesh, BrokerLogin())
    assert "Authorization Violation" in await said_by_broker(mesh, BrokerLogin(token="wrong"))
    assert "Authorization Violation" in await said_by_broker(mesh, BrokerLogin("admin-1", "wrong"))
    steward, edge = logins["steward"], logins["stream_edge"]
    assert "Authorization Violation" in await said_by_broker(mesh, BrokerLogin(steward.user, edge.password))
    for login in logins.values():
        assert await said_by_broker(mesh, login) == ""


async def test_each_service_has_its_own_rights(mesh: Up) -> None:
    """The stream edge, which reads, can't decide for a person, nor read the keys of callers as a whole."""
    login = logins_of(mesh)["stream_edge"]
    said: list[str] = []

    async def on_error(error: Exception) -> None:
        said.append(str(error).lower())

    client = Client()
    await client.connect(mesh.ready["nats_url"], user=login.user, password=login.password, error_cb=on_error)
    try:
        for subject in ("control.approval.default", "$KV.keys.x", "$JS.API.STREAM.DELETE.EVENTS", "tasks.default.a.b"):
            await client.publish(subject, b"{}")
            await until(partial(_was_said, said, subject))
        await client.subscribe("_INBOX_steward.>")
        await until(partial(_was_said, said, "_INBOX_steward"))
    finally:
        await client.close()


def _was_said(said: list[str], subject: str) -> bool:
    return any(subject.lower() in each for each in said)


async def test_commands_and_a_service_that_runs_alone_find_their_login_by_the_home(mesh: Up, tmp_path: Path) -> None:
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


async def test_the_logins_lie_in_files_of_their_owner_alone(mesh: Up) -> None:
    passwords = [password.encode() for password in passwords_of(mesh)]
    for path in mesh.home.rglob("*"):
        if path.is_file() and not path.is_relative_to(mesh.home / "jetstream"):
            content = path.read_bytes()
            if any(password in content for password in passwords):
                assert path.parent.name == "logins" or path.name == "nats.conf"
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written = mesh.log.read_text() + json.dumps(mesh.ready)
    assert not [password for password in passwords_of(mesh) if password in written]


async def test_no_process_has_one_in_its_arguments_or_environment(mesh: Up) -> None:
    for pid in mesh.all_pids:
        for name in ("cmdline", "environ"):
            told = Path(f"/proc/{pid}/{name}").read_bytes()
            assert not [each for each in passwords_of(mesh) if each.encode() in told], (pid, name)


LOOKS = """
import os, socket, sys
home, port = sys.argv[1], int(sys.argv[2])
for path in (home, home + "/logins", home + "/logins/admin", home + "/nats.conf", home + "/jetstream", home + "/logs"):
    try:
        os.listdir(path) if os.path.isdir(path) else open(path).read()
        print("reads", path)
    except OSError as error:
        assert error.errno == 13, error
def said(*lines):
    with socket.create_connection(("127.0.0.1", port), 10) as line:
        file = line.makefile("rb")
        assert file.readline().startswith(b"INFO ")
        line.sendall(b"".join(each + b"\\r\\n" for each in lines))
        return file.readline()
connect = b'CONNECT {"verbose":false,"pedantic":false%s}'
for login in (b"", b',"user":"admin-1","pass":"x"', b',"auth_token":"x"', b',"user":"admin-1","pass":""'):
    for act in ((b"PUB control.approval.default 2", b"{}"), (b"SUB > 1",), (b"PING",)):
        answer = said(connect % login, *act)
        if b"Authorization Violation" not in answer:
            print("let in", login, act, answer)
print("looked")
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="takes root: it acts as another user")
async def test_another_user_of_the_machine_neither_publishes_nor_subscribes_nor_reads_the_home(mesh: Up) -> None:
    # Others may pass the folders above it, as in a home folder that is open to the machine.
    top = Path(tempfile.gettempdir())
    for folder in mesh.home.parents:
        if folder != top and folder.is_relative_to(top):
            folder.chmod(folder.stat().st_mode | 0o011)
    port = mesh.ready["nats_url"].rpartition(":")[2]
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    looked = await children.run(
        [*nobody, "/usr/bin/env", "python3", "-c", LOOKS, str(mesh.home), port], {"PATH": PATHS}
    )
    assert looked.returncode == 0, looked.stderr
    assert looked.stdout == "looked\n"
    answer = await children.run([*nobody, "kill", "-0", str(mesh.pids()["steward"][0])], {"PATH": PATHS})
    assert answer.returncode != 0


async def test_a_password_of_ones_own_broker_is_printed_nowhere(tmp_path: Path) -> None:
    async with Broker(tmp_path / "nats", extra=f"authorization {{ user: me, password: {SECRET} }}") as broker:
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


@pytest.mark.slow
async def test_the_documented_variables_let_the_nats_cli_in(mesh: Up) -> None:
    [documented] = re.findall(
        r"^(export NATS_URL=.*\nset -a; .*)$", (REPOSITORY / "deploy/nats/README.md").read_text(), re.MULTILINE
    )
    command = documented.replace("nats://127.0.0.1:4222", mesh.ready["nats_url"]).replace(".mesh", str(mesh.home))
    environment = {**ENVIRONMENT, "HOME": str(mesh.home), "PATH": f"{nats_cli().parent}:{os.environ['PATH']}"}
    answer = await children.run(["sh", "-c", f"{command}\nnats kv ls tools"], environment)
    assert answer.returncode == 0, answer.stderr
    assert "calculator" in answer.stdout
