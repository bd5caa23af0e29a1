"""A NATS of one's own that asks who is there: in operator mode, with TLS first and certificates, with token files."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mesh.configuration.settings import BROKER_ROLES
from tests.support.all_work import VARIABLES, configuration, do_all_work
from tests.support.certificates import Authority
from tests.support.guarded import KINDS, Own
from tests.support.operator_mode import OperatorMode, private
from tests.support.steady_load import under_load
from tests.support.up import up
from tests.support.waiting import until
from tests.support.webhook_receiver import webhook_receiver

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
async def test_every_kind_of_work_is_done_and_no_secret_is_written(tmp_path: Path, kind: Callable[[Path], Own]) -> None:
    made = kind(tmp_path / "secrets")
    async with made.broker(tmp_path / "nats") as broker, webhook_receiver() as receiver:
        variables = {
            **VARIABLES,
            **broker.way_in,
            "MESH_CONFIG": str(configuration(tmp_path, receiver)),
        }
        async with up(tmp_path / "home", variables=variables) as mesh:
            await do_all_work(mesh, variables, receiver)
            processes = {pid: service for service, pids in mesh.pids().items() for pid in pids}
            for pid, service in processes.items():
                told = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
                assert not [secret for secret in made.secrets if secret.encode() in told], service
                if service != "meshctl":
                    others = {f"_{role.upper()}=".encode() for role in BROKER_ROLES if role != service}
                    named = re.findall(rb"MESH_NATS_CREDS(_\w+=)", told)
                    assert not others.intersection(named), (service, named)
        written = [mesh.log, *(path for path in mesh.home.rglob("*") if path.is_file())]
        found = [(path, secret) for path in written for secret in made.secrets if secret.encode() in path.read_bytes()]
        assert not found
        assert "Traceback" not in mesh.log.read_text()


async def test_creds_and_certificates_are_rotated_under_load_without_a_failed_request_or_a_lost_token(
    tmp_path: Path,
) -> None:
    """Of an operator's NATS with TLS: new creds for each service, new certificates of both sides, all by files."""
    folder, operator = tmp_path / "secrets", OperatorMode()
    authority = Authority(folder)
    server, client = authority.issue("server"), authority.issue("client")
    files = {role: private(folder / f"{role}.creds", operator.creds(role)) for role in BROKER_ROLES}
    tls = f"tls {{ {authority.broker_tls(server)} }}\n"
    variables = {
        **{f"MESH_NATS_CREDS_{role.upper()}": str(file) for role, file in files.items()},
        "MESH_NATS_TLS_CA": str(authority.file),
        "MESH_NATS_TLS_CERT": str(client.certificate),
        "MESH_NATS_TLS_KEY": str(client.key),
    }
    async with (
        Own(tls + operator.configuration(), "tls", variables, ()).broker(tmp_path / "nats") as broker,
        up(tmp_path / "home", variables=broker.way_in) as mesh,
    ):

        def has_renewed(times: int) -> bool:
            services = [path for path in (mesh.home / "logs").glob("*.log") if "nats" not in path.name]
            return all(path.read_text().count('"broker.reconnected"') >= times for path in services)

        async with under_load(mesh.ready["ingress_url"], mesh.ready["edge_url"]) as load:
            for number in (1, 2):
                assert broker.process is not None
                authority.issue("server")
                broker.process.send_signal(signal.SIGHUP)
                authority.issue("client")
                for role, file in files.items():
                    private(file, operator.creds(f"{role}-{number}"))
                await until(partial(has_renewed, number), 30)
        assert load.faults == []
        text = "".join(path.read_text() for path in [mesh.log, *(mesh.home / "logs").glob("*.log")])
        assert not re.findall(r'"broker\.(?:disconnected|credentials_unusable|error)"', text)
