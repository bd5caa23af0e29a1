"""HTTP as different clients speak it: upgrades, large bodies, HEAD, HTTP/1.0, nulls, pages of other origins."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from contracts.tasks import BODY_BYTES_MAX
from mesh.configuration.settings import Address
from tests.support.bad_input import JSON, SOUND, WAIT, Bench, assert_problem, exchange, open_bench
from tests.support.http_client import PatientClient
from tests.support.patience import within
from tests.support.waiting import until, until_no_work_is_left

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

HOST = b"Host: localhost\r\n"
CLOSE = b"Connection: close\r\n"
JSON_TYPE = b"Content-Type: application/json\r\n"
ORIGIN = "https://app.example"
STRANGER = "https://evil.example"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path_factory.mktemp("http-clients")) as opened:
        yield opened
        await until_no_work_is_left(opened.connection)
        assert opened.mesh.tracebacks() == []


def events_of(bench: Bench) -> str:
    """Path of an ended task's events."""
    return f"/v1/tasks/{bench.foreign_task}/events?tenant=acme"


# Upgrades


@pytest.mark.parametrize(
    "upgrade",
    [
        b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
        b"Connection: close, upgrade\r\nUpgrade: websocket\r\n",
        b"Connection: close\r\nConnection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
    ],
    ids=["h2c", "websocket", "in two lines"],
)
@pytest.mark.parametrize("chunked", [False, True], ids=["by length", "in chunks"])
async def test_a_request_to_upgrade_is_a_request(bench: Bench, upgrade: bytes, chunked: bool) -> None:
    body = b"Transfer-Encoding: chunked\r\n\r\n11\r\n%b\r\n0\r\n\r\n" if chunked else b"Content-Length: 17\r\n\r\n%b"
    sent = b"POST /v1/tasks HTTP/1.1\r\n" + HOST + upgrade + JSON_TYPE + body % SOUND
    assert (await exchange(bench.mesh.settings.ingress_address, sent)).status_code == 202


async def test_what_follows_a_request_to_upgrade_on_its_connection_is_served_too(bench: Bench) -> None:
    address = bench.mesh.settings.ingress_address
    asked = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    post = b"POST /v1/tasks HTTP/1.1\r\n" + HOST + asked + JSON_TYPE + b"Content-Length: 17\r\n\r\n" + SOUND
    get = b"GET /health/live HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"
    for pause in (False, True):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        for piece in [post[: len(post) - 9], post[len(post) - 9 :], get] if pause else [post + get]:
            writer.write(piece)
            await writer.drain()
        async with within(10):
            answer = await reader.read()
        assert answer.count(b"HTTP/1.1 202 Accepted") == answer.count(b"HTTP/1.1 200 OK") == 1
        writer.close()


# Bodies over the limit


@pytest.mark.parametrize("size", [600_000, 2_000_000, 12_000_000])
async def test_a_client_that_sends_all_before_it_reads_sees_why_its_body_is_refused(bench: Bench, size: int) -> None:
    def post() -> int:
        request = urllib.request.Request(  # noqa: S310 - http, on loopback
            f"{bench.mesh.ingress_url}/v1/tasks", data=b"x" * size, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as response:  # noqa: S310 - the same
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    for _ in range(4):
        assert await asyncio.to_thread(post) == 413


async def test_a_large_body_that_is_announced_is_refused_before_it_is_sent(bench: Bench) -> None:
    length = b"Content-Length: %d\r\n\r\n" % (BODY_BYTES_MAX + 1)
    sent = b"POST /v1/tasks HTTP/1.1\r\nExpect: 100-continue\r\n" + HOST + JSON_TYPE + length
    refused = await exchange(bench.mesh.settings.ingress_address, sent)
    assert_problem(refused, "payload-too-large")
    # Else the client can't tell whether what it sends next is read as this body or as a request.
    assert refused.headers["connection"] == "close"


async def test_a_body_of_the_right_size_that_is_announced_is_asked_for(bench: Bench) -> None:
    address = bench.mesh.settings.ingress_address
    reader, writer = await asyncio.open_connection(address.host, address.port)
    expect = b"Expect: 100-continue\r\nContent-Length: 17\r\n\r\n"
    writer.write(b"POST /v1/tasks HTTP/1.1\r\n" + HOST + CLOSE + JSON_TYPE + expect)
    async with within(10):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(SOUND)
        assert (await reader.read()).startswith(b"HTTP/1.1 202 Accepted\r\n")
    writer.close()


# Methods


async def test_head_is_answered_as_get_is_without_the_body(bench: Bench) -> None:
    tenant = {"Mesh-Tenant": "acme"}
    for client, path in (
        (bench.ingress, f"/v1/tasks/{bench.foreign_task}"),
        (bench.ingress, "/v1/tasks"),
        (bench.ingress, "/v1/dead-letters"),
        (bench.ingress, "/health/ready"),
        (bench.ingress, "/schema"),
        (bench.ingress, "/nope"),
        (bench.edge, f"/v1/tasks/{bench.foreign_task}/events"),
        (bench.edge, "/v1/tasks/nope/events"),
        (bench.edge, "/health/live"),
    ):
        got, asked = await client.get(path, headers=tenant), await client.head(path, headers=tenant)
        assert (asked.status_code, asked.content) == (got.status_code, b"")
        ignored = ("date", "transfer-encoding")
        assert {n: v for n, v in asked.headers.items() if n not in ignored} == {
            n: v for n, v in got.headers.items() if n not in ignored
        }


async def test_the_head_of_a_stream_that_goes_on_takes_the_place_of_none(bench: Bench) -> None:
    edge = await bench.mesh.start("stream_edge", MESH_EDGE_ADDRESS="127.0.0.1:0", MESH_EDGE_STREAMS_MAX="1")
    task = (await bench.ingress.post("/v1/tasks", json={"input": "!hang 2"})).json()["id"]
    events = f"/v1/tasks/{task}/events"
    try:
        async with PatientClient(base_url=f"http://{edge.address}") as client:
            response = await client.head(events)
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"

            async def streams() -> bool:
                return (await client.get(events, timeout=20)).status_code == 200

            await until(streams)
    finally:
        await edge.stop()


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/tasks", "GET, HEAD, OPTIONS, POST"),
        ("DELETE", "/v1/tasks/{task}", "GET, HEAD, OPTIONS"),
        ("GET", "/v1/tasks/{task}/cancel", "OPTIONS, POST"),
        ("HEAD", "/v1/tasks/{task}/inputs", "OPTIONS, POST"),
        ("PATCH", "/v1/dead-letters/{task}", "DELETE, GET, HEAD, OPTIONS"),
        ("POST", "/schema", "GET, HEAD, OPTIONS"),
        ("POST", "/health/live", "GET, HEAD, OPTIONS"),
    ],
)
async def test_another_method_is_told_which_there_are(bench: Bench, method: str, path: str, allowed: str) -> None:
    response = await bench.ingress.request(method, path.format(task=bench.foreign_task))
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    asked = await bench.ingress.options(path.format(task=bench.foreign_task))
    assert (asked.status_code, asked.headers["allow"], asked.content) == (204, allowed, b"")


async def test_the_edge_says_which_methods_there_are(bench: Bench) -> None:
    response = await bench.edge.post(events_of(bench))
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


# HTTP/1.0


async def test_http_1_0_gets_no_chunks_and_a_stream_ends_with_its_connection(bench: Bench) -> None:
    settings = bench.mesh.settings
    streamed = await bench.edge.get(events_of(bench))
    sent = f"GET {events_of(bench)} HTTP/1.0\r\n\r\n".encode()
    response = await exchange(settings.edge_address, sent)
    assert "transfer-encoding" not in response.headers
    assert (response.status_code, response.text) == (200, streamed.text)
    expect = b"Expect: 100-continue\r\nContent-Length: 17\r\n\r\n"
    posted = await exchange(settings.ingress_address, b"POST /v1/tasks HTTP/1.0\r\n" + JSON_TYPE + expect + SOUND)
    assert posted.status_code == 202, "HTTP/1.0 has no 100 Continue"
    assert int(posted.headers["content-length"]) == len(posted.content)


# Nulls


async def test_an_optional_field_that_is_null_is_absent(bench: Bench) -> None:
    fields = bench.ingress.get("/schema")
    properties = (await fields).json()["components"]["schemas"]["TaskRequest"]["properties"]
    body = {**dict.fromkeys(properties), "input": [{"role": "user", "content": "hello"}]}
    key = {"Idempotency-Key": "nulls"}
    first = await bench.ingress.post("/v1/tasks", json=body, headers=key)
    again = await bench.ingress.post("/v1/tasks", json={"input": body["input"]}, headers=key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    for nothing in ({"dry_run": None}, {"dry_run": None, "edits": None, "steps": None, "reason": None}):
        response = await bench.ingress.post(f"/v1/dead-letters/{first.json()['id']}/replay", json=nothing)
        assert response.json()["code"] == "conflict", "there is nothing to replay, which is not the body's fault"
    said = {"kind": "message", "text": "more", "mode": None}
    response = await bench.ingress.post(f"/v1/tasks/{first.json()['id']}/inputs", json=said)
    assert response.status_code in (202, 409)


# Where events are


async def test_the_ingress_sends_a_client_that_asks_it_for_events_to_the_edge(bench: Bench) -> None:
    response = await bench.ingress.get(events_of(bench))
    assert response.status_code == 307
    assert response.headers["location"] == bench.mesh.edge_url + events_of(bench)
    followed = await bench.ingress.get(events_of(bench), follow_redirects=True)
    assert followed.text == (await bench.edge.get(events_of(bench))).text
    assert_problem(await bench.ingress.get("/v1/tasks/nope/events"), "not-found")


# Pages


def both(bench: Bench) -> tuple[tuple[httpx.AsyncClient, Address], tuple[httpx.AsyncClient, Address]]:
    """Clients of both services, and where these are."""
    settings = bench.mesh.settings
    return (bench.ingress, settings.ingress_address), (bench.edge, settings.edge_address)


async def test_a_name_that_was_pointed_at_this_machine_is_refused(bench: Bench) -> None:
    for client, address in both(bench):
        path = events_of(bench)
        for name in (
            "evil.example",
            f"evil.example:{address.port}",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
        ):
            assert_problem(await client.get(path, headers={"Host": name}), "misdirected-request")
        for name in ("a b", "user@localhost", "localhost/x", "[::1", ""):
            response = await exchange(
                address, f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode()
            )
            assert response.status_code == 400 if name else 200
        for name in ("localhost", f"LOCALHOST:{address.port}", "127.0.0.1", "[::1]:80", "mesh.localhost", "10.1.2.3"):
            assert (await client.get(path, headers={"Host": name})).status_code in (200, 307)
        # A probe names whatever it likes, and learns nothing that it could not guess.
        assert (await client.get("/health/live", headers={"Host": "evil.example"})).status_code == 200


async def test_a_port_that_is_none_breaks_nothing(bench: Bench) -> None:
    for _, address in both(bench):
        for path in ("/nothing", "/v1/nothing"):
            sent = f"GET {path} HTTP/1.1\r\nHost: localhost:99999\r\n".encode() + CLOSE + b"\r\n"
            assert_problem(await exchange(address, sent), "not-found")


async def test_a_request_names_its_host_once(bench: Bench) -> None:
    for _, address in both(bench):
        for hosts in (b"", b"Host: localhost\r\nHost: localhost\r\n", b"Host: localhost\r\nHost: evil.example\r\n"):
            sent = f"GET {events_of(bench)} HTTP/1.1\r\n".encode() + hosts + CLOSE + b"\r\n"
            assert_problem(await exchange(address, sent), "invalid-request")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": STRANGER},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
async def test_a_page_elsewhere_can_send_nothing_that_changes_something(bench: Bench, headers: dict[str, str]) -> None:
    # One that has ended: no steward is there to carry a command out.
    task = (await bench.ingress.post("/v1/tasks", content=SOUND, headers={**JSON, **WAIT})).json()["id"]
    for method, path in (
        ("POST", "/v1/tasks"),
        ("POST", f"/v1/tasks/{task}/cancel"),
        ("POST", f"/v1/dead-letters/{task}/replay"),
        ("DELETE", f"/v1/dead-letters/{task}"),
    ):
        response = await bench.ingress.request(method, path, headers=headers)
        assert_problem(response, "forbidden")
        assert "access-control-allow-origin" not in response.headers
    # Who is no page may.
    assert (await bench.ingress.post(f"/v1/tasks/{task}/cancel")).status_code == 200


async def test_a_page_of_the_services_own_origin_may_send(bench: Bench) -> None:
    response = await bench.ingress.post(
        "/v1/tasks", content=SOUND, headers={**JSON, b"Origin": bench.mesh.ingress_url.encode()}
    )
    assert response.status_code == 202


async def test_pages_of_configured_origins_may_submit_tasks_and_others_may_not(bench: Bench) -> None:
    address = Address("127.0.0.1", 0)
    ingress = await bench.mesh.start("ingress", MESH_INGRESS_ADDRESS=str(address), MESH_INGRESS_CORS_ORIGINS=ORIGIN)
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,mesh-tenant"}
    try:
        async with PatientClient(base_url=f"http://{ingress.address}") as client:
            preflight = await client.options("/v1/tasks", headers={**asked, "Origin": ORIGIN})
            assert preflight.status_code in (200, 204)
            assert preflight.headers["access-control-allow-origin"] == ORIGIN
            assert preflight.headers["access-control-allow-methods"] == "GET, POST, PUT, DELETE"
            allowed = set(preflight.headers["access-control-allow-headers"].lower().split(", "))
            assert {"authorization", "content-type", "idempotency-key", "mesh-tenant", "prefer"} <= allowed
            for body, status in ((SOUND, 202), (b"{", 400)):
                posted = await client.post("/v1/tasks", content=body, headers={**JSON, b"Origin": ORIGIN.encode()})
                assert (posted.status_code, posted.headers["access-control-allow-origin"]) == (status, ORIGIN)
                assert "location" in posted.headers["access-control-expose-headers"].lower()
            stranger = await client.options("/v1/tasks", headers={**asked, "Origin": STRANGER})
            assert "access-control-allow-origin" not in stranger.headers
            posted = await client.post("/v1/tasks", content=SOUND, headers={**JSON, b"Origin": STRANGER.encode()})
            assert_problem(posted, "forbidden")
    finally:
        await ingress.stop()


async def test_allowed_hosts_are_a_setting_and_the_names_in_public_urls_belong_to_them(bench: Bench) -> None:
    edge = await bench.mesh.start(
        "stream_edge",
        MESH_EDGE_ADDRESS="127.0.0.1:0",
        MESH_ALLOWED_HOSTS="mesh.example, other.example",
        MESH_EDGE_PUBLIC_URL="https://events.example/mesh",
    )
    try:
        async with PatientClient(base_url=f"http://{edge.address}") as client:
            for name, status in (
                ("mesh.example", 200),
                ("OTHER.example:443", 200),
                ("events.example", 200),
                ("localhost", 200),
                ("evil.example", 421),
            ):
                assert (await client.get(events_of(bench), headers={"Host": name})).status_code == status
    finally:
        await edge.stop()


async def test_the_answer_to_a_task_holds_what_its_record_requires(bench: Bench) -> None:
    schemas = (await bench.ingress.get("/schema")).json()["components"]["schemas"]
    key = {**JSON, b"Idempotency-Key": b"fields"}
    for _ in range(2):
        accepted = await bench.ingress.post("/v1/tasks", content=SOUND, headers=key)
        assert accepted.status_code == 202
        assert set(schemas["TaskRecord"]["required"]) <= accepted.json().keys(), json.dumps(accepted.json())
