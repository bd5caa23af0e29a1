"""Both HTTP services and the operators' address speak TLS, and their certificate changes without anybody noticing."""

from __future__ import annotations

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from mesh.broker.connection import connect
from tests.support.certificates import Authority, Pair, make_certificate
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import Viewer, submit
from tests.support.http_client import PatientClient
from tests.support.patience import within
from tests.support.processes import Mesh, Process, running_mesh
from tests.support.up import ENVIRONMENT, meshctl, up
from tests.support.waiting import until, until_no_work_is_left

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.asyncio(loop_scope="module"),
]

TASKS = 6
SCRIPT = "!rate 40\n!say 120"
"""Three seconds of a task: long enough to be in its midst when something changes."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who has signed what the services show."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    """What they show at first."""
    return authority.issue("shown")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory, pair: Pair) -> AsyncIterator[Mesh]:
    """A mesh that speaks TLS."""
    variables = {**pair.variables(), "MESH_OPS_ADDRESS": "127.0.0.1:0"}
    folder = tmp_path_factory.mktemp("tls")
    async with running_mesh(folder, "ingress", "stream_edge", "inference_worker", **variables) as running:
        yield running
        assert running.tracebacks() == []


def process_of(mesh: Mesh, service: str) -> Process:
    return next(process for process in mesh.processes if process.service == service)


async def shown_at(address: str, trust: ssl.SSLContext) -> bytes:
    """The certificate that a new connection is shown, in DER."""
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=trust)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return shown


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


async def test_a_task_runs_by_tls_and_its_links_lead_there(mesh: Mesh, authority: Authority) -> None:
    trust = authority.client_context()
    async with PatientClient(verify=trust) as client:
        accepted = await client.post(f"{mesh.ingress_url}/v1/tasks", json={"input": "hello"})
        assert accepted.status_code == 202
        events = accepted.json()["links"]["events"]
        assert events.startswith(f"https://{mesh.settings.edge_address}/")
        led = await client.get(f"{mesh.ingress_url}/v1/tasks/{accepted.json()['id']}/events")
        assert (led.status_code, led.headers["location"]) == (307, events)
        frames = await client.get(events, timeout=30)
        assert "event: task.completed" in frames.text
        ops = [str(line["ops"]) for line in mesh.logs_of("service.ready")]
        assert len(ops) == 3
        for address in ops:
            assert (await client.get(f"https://{address}/health/ready")).status_code == 200
            exposed = (await client.get(f"https://{address}/metrics")).text
            assert "taskmesh_tls_certificate_not_after_seconds" in exposed


async def test_old_versions_of_tls_are_not_spoken_and_http_1_1_is(mesh: Mesh, authority: Authority) -> None:
    address = mesh.settings.ingress_address

    async def agreed(change: str) -> tuple[str, str | None]:
        trust = authority.client_context()
        if change == "h2":
            trust.set_alpn_protocols(["h2"])
        elif change == "both":
            trust.set_alpn_protocols(["h2", "http/1.1"])
        else:
            trust.maximum_version = ssl.TLSVersion[change]
        _, writer = await asyncio.open_connection(address.host, address.port, ssl=trust)
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        writer.close()
        return tls.version() or "", tls.selected_alpn_protocol()

    assert await agreed("both") == ("TLSv1.3", "http/1.1")
    assert await agreed("h2") == ("TLSv1.3", None)
    assert await agreed("TLSv1_2") == ("TLSv1.2", None)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    # As a client of long ago: the standard library warns of it, and does it.
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        await asyncio.open_connection(address.host, address.port, ssl=old)


async def test_a_certificate_changes_under_load_without_a_failed_request_or_a_lost_token(
    mesh: Mesh, authority: Authority, pair: Pair
) -> None:
    """The files change again and again; each request is a connection of its own, and streams stay open meanwhile."""
    trust, recorded = authority.client_context(), Recorded()
    edge, ingress = str(mesh.settings.edge_address), str(mesh.settings.ingress_address)
    async with connect(mesh.settings, "test") as connection:
        recorded.accepted |= (await read_stored(connection.requests)).journals.keys()  # of the tests before
    changing, seen = asyncio.Event(), set[bytes]()
    asked = 0

    async def ask() -> None:
        nonlocal asked
        while not changing.is_set():
            async with PatientClient(verify=trust) as client:
                assert (await client.get(f"{mesh.ingress_url}/v1/tasks")).status_code == 200
            asked += 1

    async with PatientClient(verify=trust) as kept:
        tasks = [await submit(kept, mesh.ingress_url, recorded, SCRIPT) for _ in range(TASKS)]
        viewers = [Viewer(edge, task, trust) for task in tasks]
        following = [asyncio.create_task(viewer.follow()) for viewer in viewers]
        asking = [asyncio.create_task(ask()) for _ in range(2)]
        await until(lambda: all(viewer.history.frames for viewer in viewers))
        for number in range(3):
            new = authority.issue(f"renewed-{number}", days=60 + number)
            expected = der(new)
            pair.becomes(new)
            if number == 0:
                for service in ("ingress", "stream_edge"):
                    process_of(mesh, service).signal(signal.SIGHUP)
            for address in (ingress, edge):
                async with within(20):
                    while await shown_at(address, trust) != expected:
                        assert not any(each.done() for each in asking)
            seen.add(expected)
        changing.set()
        await asyncio.gather(*asking)
        # The connection of before goes on as well.
        assert (await kept.get(f"{mesh.ingress_url}/v1/tasks")).status_code == 200
        async with within(60):
            recorded.histories += await asyncio.gather(*following)
    assert [viewer.connections for viewer in viewers] == [1] * TASKS
    assert (len(seen), asked > 3) == (3, True)
    async with connect(mesh.settings, "test") as connection:
        await until_no_work_is_left(connection)
        stored = await read_stored(connection.requests)
    assert check(recorded, stored) == []
    assert {stored.records[task]["status"] for task in tasks} == {"completed"}


async def test_a_broken_pair_is_said_once_and_the_one_of_before_is_shown(
    mesh: Mesh, authority: Authority, pair: Pair
) -> None:
    trust, ingress = authority.client_context(), process_of(mesh, "ingress")
    before, key = der(pair), pair.key.read_bytes()
    taken = len(mesh.logs_of("tls.taken"))
    pair.key.write_text("nothing")

    await until(lambda: len(mesh.logs_of("tls.kept")) >= 3)
    ingress.signal(signal.SIGHUP)
    # An order to reload is refused, and the line says why.
    refused = await meshctl("reload", environment={**ENVIRONMENT, **mesh.broker.way_in})
    assert (refused.returncode, "MESH_TLS_KEY" in refused.stdout + refused.stderr) == (1, True)
    assert len(mesh.logs_of("tls.kept")) == 3, "each process says it once"
    assert await shown_at(ingress.address, trust) == before
    async with PatientClient(base_url=f"https://{ingress.address}", verify=trust) as client:
        ready = await client.get("/health/ready")
        (told,) = [check for check in ready.json()["checks"] if check["name"] == "certificate"]
        assert (ready.status_code, told["ok"]) == (200, True)
        assert "certificate is the one of before" in told["detail"]
        assert str(pair.key) not in ready.text

    async def doctor_tells() -> bool:
        told = await meshctl("doctor", environment={**ENVIRONMENT, **mesh.broker.way_in})
        return "certificate is the one of before" in told.stdout

    await until(doctor_tells)
    pair.key.write_bytes(key)
    await until(lambda: len(mesh.logs_of("tls.taken")) == taken + 3)


async def test_headers_that_keep_browsers_in_bounds_are_on_every_answer(mesh: Mesh, authority: Authority) -> None:
    async with PatientClient(verify=authority.client_context()) as client:
        bodies = {"json": {"input": "hello"}}
        accepted = await client.post(f"{mesh.ingress_url}/v1/tasks", **bodies)  # type: ignore[arg-type]  # a body
        answers = [
            accepted,
            await client.get(f"{mesh.ingress_url}/v1/tasks/{accepted.json()['id']}"),
            await client.get(f"{mesh.ingress_url}/v1/tasks/nope"),
            await client.get(f"{mesh.ingress_url}/nope"),
            await client.get(f"{mesh.ingress_url}/schema"),
            await client.get(f"{mesh.ingress_url}/health/live"),
            await client.put(f"{mesh.ingress_url}/v1/tasks"),
            await client.head(f"{mesh.ingress_url}/v1/tasks"),
            await client.options(f"{mesh.ingress_url}/v1/tasks"),
            await client.get(f"{mesh.ingress_url}/v1/tasks", headers={"Host": "evil.example"}),
            await client.get(accepted.json()["links"]["events"], timeout=30),
            await client.get(f"{mesh.edge_url}/v1/tasks/nope/events"),
        ]
    assert {answer.status_code for answer in answers} >= {200, 202, 204, 404, 405, 421}
    for answer in answers:
        told = answer.headers
        assert told["x-content-type-options"] == "nosniff"
        assert told["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert told["referrer-policy"] == "no-referrer"
        assert told["cross-origin-resource-policy"] == "same-origin"
        # Browsers would ask for everything on this machine by https.
        assert "strict-transport-security" not in told
        assert "server" not in told
        if answer.request.url.path != "/schema" and answer.status_code != 204:
            assert told["cache-control"] == "no-store", answer.request.url


async def test_what_is_not_http_has_them_too_and_what_is_not_tls(mesh: Mesh) -> None:
    address = mesh.settings.ingress_address
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with within(20):
        told = await reader.read()
    writer.close()
    assert told.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"x-content-type-options: nosniff\r\n" in told
    assert b"this address speaks TLS: use https" in told


async def test_browsers_are_told_to_come_by_tls_where_others_reach_it(
    mesh: Mesh, authority: Authority, pair: Pair
) -> None:
    process = await mesh.start("ingress", MESH_INGRESS_ADDRESS="0.0.0.0:0", MESH_TLS_HSTS_DAYS="2")
    port = process.address.rpartition(":")[2]
    async with PatientClient(verify=authority.client_context()) as client:
        answer = await client.get(f"https://127.0.0.1:{port}/health/live")
    assert answer.headers["strict-transport-security"] == "max-age=172800"
    await process.stop()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"MESH_TLS_CERT": "/nowhere.pem"}, "MESH_TLS_CERT='/nowhere.pem': can't be read: No such file or directory"),
        ({"MESH_TLS_CERT": "", "MESH_TLS_KEY": "/k"}, "MESH_TLS_KEY is the key of MESH_TLS_CERT, which is not set"),
    ],
)
async def test_a_start_without_a_certificate_ends_with_one_line(
    mesh: Mesh, variables: dict[str, str], told: str
) -> None:
    with pytest.raises(RuntimeError) as failed:
        await mesh.start("ingress", MESH_INGRESS_ADDRESS="127.0.0.1:0", **variables)
    await mesh.processes.pop().stop()
    assert f"ingress: {told}" in str(failed.value)
    assert "Traceback" not in str(failed.value)


async def test_a_mesh_of_one_machine_is_found_by_its_certificate(tmp_path: Path) -> None:
    """No authority has signed it, and it is for another name: meshctl on the same machine knows the file."""
    file = make_certificate(tmp_path, "mesh.example.com")
    home = tmp_path / "home"
    async with up(home, "--tls-cert", str(file), "--first-task") as running:
        assert running.ready["ingress_url"].startswith("https://127.0.0.1:")
        # The first task has run when what one can do next is said.
        await until(lambda: "submit --watch" in running.log.read_text())
        assert "completed; first token after" in running.log.read_text()
        found = {**ENVIRONMENT, "MESH_HOME": str(home)}
        assert (await meshctl("submit", "--wait", "hello", environment=found)).returncode == 0
        # Whoever only has the URL needs an authority.
        port = running.ready["ingress_url"].rpartition(":")[2]
        elsewhere = {**ENVIRONMENT, "MESH_INGRESS_URL": f"https://localhost:{port}", "MESH_EDGE_URL": "https://e"}
        untrusted = await meshctl("list", environment=elsewhere)
        assert untrusted.returncode != 0
        assert "certificate" in untrusted.stderr
        assert len(untrusted.stderr.splitlines()) == 1
        # Plain HTTP is told to come by TLS.
        plain = await meshctl("list", environment={**elsewhere, "MESH_INGRESS_URL": f"http://localhost:{port}"})
        assert "this address speaks TLS: use https" in plain.stderr


async def test_meshctl_trusts_the_authority_of_ssl_cert_file(mesh: Mesh, authority: Authority) -> None:
    urls = {"MESH_INGRESS_URL": mesh.ingress_url, "MESH_EDGE_URL": mesh.edge_url}
    trusting = {**ENVIRONMENT, **urls, "SSL_CERT_FILE": str(authority.file)}
    done = await meshctl("submit", "--watch", "hello", environment=trusting)
    assert (done.returncode, done.stderr) == (0, "")
