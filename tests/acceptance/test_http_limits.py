"""Who asks too often, or with wrong credentials, is refused before anything is read, on a sound connection."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from litestar.types import HTTPScope, Receive, Scope, Send

from mesh.access.callers import Identity, identified
from mesh.access.limits import Limits, limited
from mesh.configuration.access_tables import AuthConfiguration
from mesh.configuration.settings import Address
from mesh.serving.http import RequestRefused
from tests.support.bad_input import assert_problem, exchange
from tests.support.http_client import PatientClient
from tests.support.patience import within
from tests.support.processes import Mesh, running_mesh
from tests.support.serving import served
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance

FEW = "requests_per_second = 0.01\nburst = 3\n"
"""Three, and the next in more than a minute: no machine is so busy that one becomes free meanwhile."""
HEAD = b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@asynccontextmanager
async def limited_mesh(folder: Path, auth: str, *services: str) -> AsyncIterator[Mesh]:
    """Services with this table `[auth]`."""
    (folder / "mesh.toml").write_text(f"[auth]\n{auth}")
    variables = {"MESH_CONFIG": str(folder / "mesh.toml"), "MESH_OPS_ADDRESS": "127.0.0.1:0"}
    async with running_mesh(folder, *services, **variables) as mesh:
        yield mesh
        assert mesh.tracebacks() == []


def retry_after(response: httpx.Response) -> int:
    assert_problem(response, "rate-limited")
    return int(response.headers["retry-after"])


async def test_who_asks_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    async with limited_mesh(tmp_path, FEW, "ingress") as mesh:
        async with PatientClient(base_url=mesh.ingress_url) as client:
            answers = [await client.get("/v1/tasks") for _ in range(20)]
            assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 17
            assert {60 < retry_after(answer) <= 100 for answer in answers[3:]} == {True}
            # Probes and the schema are nobody's.
            assert (await client.get("/health/ready")).status_code == 200
            assert (await client.get("/schema")).status_code == 200
            # Anybody could write this: nobody is believed.
            assert (await client.get("/v1/tasks", headers={"X-Forwarded-For": "198.51.100.1"})).status_code == 429
            ops = str(mesh.logs_of("service.ready")[0]["ops"])
            exposed = (await client.get(f"http://{ops}/metrics")).text
            assert 'taskmesh_http_refusals_total{error_type="rate-limited"' in exposed
            assert "} 18.0" in exposed
        assert len(mesh.logs_of("access.limited")) <= 3, "the log does not grow with the flood"
        # A changed limit holds from the next request on.
        (tmp_path / "mesh.toml").write_text("[auth]\nrequests_per_second = 0\n")
        mesh.processes[0].signal(signal.SIGHUP)
        await until(lambda: bool(mesh.logs_of("configuration.taken")))
        async with PatientClient(base_url=mesh.ingress_url) as client:
            assert {(await client.get("/v1/tasks")).status_code for _ in range(20)} == {200}


async def test_a_refusal_reads_nothing_and_leaves_the_connection_sound(tmp_path: Path) -> None:
    async with limited_mesh(tmp_path, FEW, "ingress") as mesh:
        address = mesh.settings.ingress_address
        async with PatientClient(base_url=mesh.ingress_url) as client:
            for _ in range(3):
                await client.get("/v1/tasks")
            # On one connection: refusals, what is nobody's business, refusals.
            for _ in range(3):
                assert (await client.post("/v1/tasks", json={"input": "x"})).status_code == 429
                assert (await client.get("/health/live")).status_code == 200
        # Nobody is asked for a body that is not read.
        waiting = await exchange(address, HEAD + b"Expect: 100-continue\r\nContent-Length: 100000\r\n\r\n")
        assert_problem(waiting, "rate-limited")
        # Nor is one waited for that never comes, or that is larger than all that may come.
        assert_problem(await exchange(address, HEAD + b"Content-Length: 100\r\n\r\n{"), "rate-limited")
        assert_problem(await exchange(address, HEAD + b"Content-Length: 999999999999\r\n\r\n{"), "rate-limited")
        assert_problem(
            await exchange(address, HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"), "rate-limited"
        )
        # What comes together is answered in its order.
        get = b"GET /v1/tasks HTTP/1.1\r\nHost: localhost\r\n"
        pipelined = (get + b"\r\n") + HEAD + b"Content-Length: 5\r\n\r\nhello" + get + b"Connection: close\r\n\r\n"
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(pipelined)
        async with within(20):
            told = await reader.read()
        writer.close()
        assert told.count(b"HTTP/1.1 429 Too Many Requests\r\n") == 3


async def test_behind_a_trusted_front_door_each_of_its_clients_is_counted_for_itself(tmp_path: Path) -> None:
    auth = f'{FEW}trusted_proxies = ["127.0.0.1"]\n'
    async with limited_mesh(tmp_path, auth, "ingress") as mesh, PatientClient(base_url=mesh.ingress_url) as client:

        async def statuses(forwarded: str, count: int) -> list[int]:
            told = {"X-Forwarded-For": forwarded}
            return [(await client.get("/v1/tasks", headers=told)).status_code for _ in range(count)]

        assert await statuses("198.51.100.1", 4) == [200, 200, 200, 429]
        assert await statuses("198.51.100.2", 1) == [200]
        # What a client has written itself stands before what the front door adds.
        assert await statuses("203.0.113.1, 198.51.100.1", 1) == [429]
        # A network of IPv6 is one client.
        assert await statuses("2001:db8::1", 2) == [200, 200]
        assert await statuses("2001:db8::2", 2) == [200, 429]


async def test_a_stream_counts_once(tmp_path: Path) -> None:
    services = ("ingress", "stream_edge", "inference_worker")
    async with limited_mesh(tmp_path, FEW, *services) as mesh, PatientClient() as client:
        accepted = await client.post(f"{mesh.ingress_url}/v1/tasks", json={"input": "!rate 50\n!say 50"})
        events = accepted.json()["links"]["events"]
        assert (await client.get(events, timeout=30)).text.count("event: output.delta") > 3
        assert [(await client.get(events, timeout=30)).status_code for _ in range(3)] == [200, 200, 429]


def told_by(key: bytes) -> bytes:
    return b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + key + b"\r\nConnection: close\r\n\r\n"


async def test_wrong_credentials_are_slowed_down_and_right_ones_are_not(tmp_path: Path) -> None:
    async def door(scope: HTTPScope) -> Identity:
        if (b"authorization", b"Bearer right") not in scope["headers"]:
            raise RequestRefused("unauthorized", "not right")
        return Identity("key:right", "acme", frozenset())

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    limits = Limits(AuthConfiguration(failures_per_minute=5, requests_per_second=0), is_open=False)
    async with served(identified(app, limited(door, limits))) as (url, _):
        host, _, port = url.removeprefix("http://").rpartition(":")
        address = Address(host, int(port))
        assert (await exchange(address, told_by(b"right"))).status_code == 204
        answers = [await exchange(address, told_by(b"wrong%d" % number)) for number in range(30)]
        statuses = [answer.status_code for answer in answers]
        # One more may have become free on a busy machine.
        assert statuses[:5] == [401] * 5
        assert statuses.count(429) >= 20
        assert {"www-authenticate" in answer.headers for answer in answers[:5]} == {True}
        assert max(retry_after(answer) for answer in answers if answer.status_code == 429) <= 12
        assert {(await exchange(address, told_by(b"right"))).status_code for _ in range(10)} == {204}
