"""Bad input is refused with a problem document, leaves nothing behind and harms nobody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import pytest_asyncio
from litestar import Litestar

from contracts.errors import HTTP_STATUS_BY_CODE, PROBLEM_TYPE_PREFIX, TITLE_BY_CODE
from contracts.tasks import BODY_BYTES_MAX
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import last_sequence
from mesh.configuration.settings import Address
from mesh.serving import http
from tests.support.clients import Viewer
from tests.support.processes import Mesh, Process, running_mesh
from tests.support.waiting import until_no_work_is_left

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

JSON = {b"Content-Type": b"application/json"}
SOUND = b'{"input":"hello"}'
WAIT = {b"Prefer": b"wait=20"}
DEEP = 5_000
HEAD_TOO_LARGE = 70 * 1024
ABSENT_TASK = "01234567890123456789012345"
IMPOSSIBLE_TASKS = ["nope", ABSENT_TASK + "%0a", ABSENT_TASK.replace("0", "l"), "*", "%3e", "%00", "%ff", "..", "a%2fb"]
BAD_TENANTS = ["Acme", "a.b", "*", ">", "a b", "-a", "a_b", "$JS", "a\tb", "a" * 33, "", "événement"]


@dataclass
class Bench:
    """A mesh that all cases of this file share."""

    mesh: Mesh
    connection: Connection
    ingress: httpx.AsyncClient
    edge: httpx.AsyncClient
    foreign_task: str
    """An ended task of the tenant acme."""


class Footprint(NamedTuple):
    """All that a request could leave behind."""

    tasks: int
    commands: int
    events: int
    records: int
    dead_letters: int


async def footprint(connection: Connection) -> Footprint:
    """The last sequence that each stream has given out."""
    streams = ("TASKS", "CONTROL", "EVENTS", "KV_tasks", "DEAD_LETTERS")
    return Footprint(*[await last_sequence(connection.requests, stream) for stream in streams])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """Ingress, edge and worker; and one ended task of a tenant that the cases are not."""
    folder = tmp_path_factory.mktemp("bad-input")
    async with (
        running_mesh(folder, "ingress", "stream_edge", "inference_worker") as mesh,
        connect(mesh.settings, "test") as connection,
        httpx.AsyncClient(base_url=mesh.ingress_url) as ingress,
        httpx.AsyncClient(base_url=mesh.edge_url) as edge,
    ):
        response = await ingress.post(
            "/v1/tasks", content=SOUND, headers={**JSON, **header("Mesh-Tenant", "acme"), **WAIT}
        )
        assert response.status_code == 200, response.text
        await until_no_work_is_left(connection)
        yield Bench(mesh, connection, ingress, edge, response.json()["id"])


@pytest_asyncio.fixture(loop_scope="module")
async def unharmed(bench: Bench) -> AsyncIterator[None]:
    """Holds a case to this: nothing is stored, every process lives on, all is ready, nothing crashed."""
    pids = [process.pid for process in bench.mesh.processes]
    before = await footprint(bench.connection)
    yield
    for client in (bench.ingress, bench.edge):
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["ok"]) == (200, True)
    assert await footprint(bench.connection) == before
    assert [process.pid for process in bench.mesh.processes] == pids
    assert not [process.service for process in bench.mesh.processes if has_ended(process)]
    assert bench.mesh.tracebacks() == []


def has_ended(process: Process) -> bool:
    """Whether a process is gone."""
    assert process._popen is not None
    return process._popen.poll() is not None


def header(name: str, value: str) -> dict[bytes, bytes]:
    """A header, outside of ASCII as a browser sends it."""
    return {name.encode(): value.encode()}


def assert_problem(response: httpx.Response, code: str) -> None:
    """A problem document with a stable code and its status."""
    status = HTTP_STATUS_BY_CODE[code]
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    document = response.json()
    assert document.keys() <= {"type", "title", "status", "code", "detail"}
    assert (document["code"], document["status"]) == (code, status)
    assert (document["type"], document["title"]) == (PROBLEM_TYPE_PREFIX + code, TITLE_BY_CODE[code])
    if status in (429, 503):
        assert int(response.headers["retry-after"]) >= 1
    else:
        assert "retry-after" not in response.headers


def task_with(**fields: object) -> bytes:
    """A request that is sound but for these fields."""
    return json.dumps({"input": "hello", **fields}).encode()


def raw_task_with(fields: str) -> bytes:
    """A request with fields that `json` would not write."""
    return b'{"input":"hello",' + fields.encode() + b"}"


def deep(opening: str, closing: str) -> str:
    """A value so deep that a reader that recurses must give up."""
    return opening * DEEP + "1" + closing * DEEP


# The ingress: bodies

BAD_BODIES: dict[str, bytes] = {
    "empty": b"",
    "cut off": b'{"input":"hello"',
    "no JSON": b"input=hello",
    "JSON and more": SOUND + b" x",
    "two documents": SOUND + SOUND,
    "a byte order mark": b"\xef\xbb\xbf" + SOUND,
    "UTF-16": SOUND.decode().encode("utf-16"),
    "null": b"null",
    "a list": b"[]",
    "a string": b'"hello"',
    "a number": b"1",
    "no input": b"{}",
    "input null": b'{"input":null}',
    "input a number": b'{"input":1}',
    "input an object": b'{"input":{"role":"user","content":"hello"}}',
    "input empty text": b'{"input":""}',
    "input an empty list": b'{"input":[]}',
    "input a list of text": b'{"input":["hello"]}',
    "input too many messages": json.dumps({"input": [{"role": "user", "content": "a"}] * 1001}).encode(),
    "message without content": b'{"input":[{"role":"user"}]}',
    "message with empty content": b'{"input":[{"role":"user","content":""}]}',
    "message of an unknown role": b'{"input":[{"role":"robot","content":"hello"}]}',
    "message with an unknown field": b'{"input":[{"role":"user","content":"hello","name":"x"}]}',
    "bad UTF-8 in input": b'{"input":"\xff\xfe"}',
    "bad UTF-8 in an unknown field": b'{"input":"hello","more":"\xc3\x28"}',
    "an overlong encoding": b'{"input":"\xc0\xaf"}',
    "an encoded surrogate": b'{"input":"\xed\xa0\x80"}',
    "a lone high surrogate": b'{"input":"\\ud800"}',
    "a lone low surrogate": b'{"input":"\\udc00"}',
    "surrogates the wrong way round": b'{"input":"\\ude00\\ud83d"}',
    "a lone surrogate in a key": b'{"input":"hello","metadata":{"\\ud800":1}}',
    "a raw control character": b'{"input":"a\nb"}',
    "a raw NUL": b'{"input":"a\x00b"}',
    "5,000 lists": deep("[", "]").encode(),
    "5,000 lists as input": f'{{"input":{deep("[", "]")}}}'.encode(),
    "5,000 objects as input": f'{{"input":{deep("""{"a":""", "}")}}}'.encode(),
    "5,000 lists as metadata": raw_task_with(f'"metadata":{deep("[", "]")}'),
    "5,000 lists in metadata": raw_task_with(f'"metadata":{{"a":{deep("[", "]")}}}'),
    "5,000 objects in metadata": raw_task_with(f'"metadata":{deep("""{"a":""", "}")}'),
    "5,000 lists in an unknown field": raw_task_with(f'"more":{deep("[", "]")}'),
    "5,000 lists never closed": raw_task_with(f'"metadata":{"[" * DEEP}'),
    "NaN": raw_task_with('"temperature":NaN'),
    "Infinity": raw_task_with('"temperature":Infinity'),
    "a number beyond doubles": raw_task_with('"temperature":1e999'),
    "an integer of 5,000 digits": raw_task_with(f'"max_output_tokens":{"9" * 5000}'),
    "an unknown field": task_with(deadline=1),
    "a misspelt field": task_with(max_output_token=1),
    "pool in upper case": task_with(pool="Default"),
    "pool with a dot": task_with(pool="a.b"),
    "pool *": task_with(pool="*"),
    "pool >": task_with(pool=">"),
    "pool with a line break": task_with(pool="default\n"),
    "pool with a NUL": task_with(pool="default\0"),
    "pool too long": task_with(pool="a" * 49),
    "pool empty": task_with(pool=""),
    "pool not text": task_with(pool=1),
    "pool unknown": task_with(pool="other"),
    "priority unknown": task_with(priority="urgent"),
    "priority in upper case": task_with(priority="HIGH"),
    "priority with a line break": task_with(priority="normal\n"),
    "priority *": task_with(priority="*"),
    "tools not a list": task_with(tools="add"),
    "too many tools": task_with(tools=["add"] * 65),
    "tools of a wrong name": task_with(tools=["tools.>"]),
    "approval of an unknown mode": task_with(approval="sometimes"),
    "approval true": task_with(approval=True),
    "continues a task and a line break": task_with(continues=ABSENT_TASK + "\n"),
    "continues no task": task_with(continues="*"),
    "model empty": task_with(model=""),
    "model too long": task_with(model="m" * 129),
    "instructions empty": task_with(instructions=""),
    "max_output_tokens 0": task_with(max_output_tokens=0),
    "max_output_tokens negative": task_with(max_output_tokens=-1),
    "max_output_tokens a fraction": task_with(max_output_tokens=1.5),
    "max_output_tokens text": task_with(max_output_tokens="1"),
    "max_output_tokens true": task_with(max_output_tokens=True),
    "max_output_tokens too large": task_with(max_output_tokens=1_000_001),
    "max_turns 0": task_with(max_turns=0),
    "max_turns too large": task_with(max_turns=1001),
    "temperature negative": task_with(temperature=-0.1),
    "temperature too high": task_with(temperature=2.1),
    "deadline 0": task_with(deadline_seconds=0),
    "deadline negative": task_with(deadline_seconds=-1),
    "deadline NaN": raw_task_with('"deadline_seconds":NaN'),
    "deadline too far": raw_task_with('"deadline_seconds":1e12'),
    "deadline text": task_with(deadline_seconds="1"),
    "metadata a list": task_with(metadata=[]),
    "metadata with a null": task_with(metadata={"a": None}),
    "metadata with a fraction": task_with(metadata={"a": 1.5}),
    "metadata with an object": task_with(metadata={"a": {}}),
    "metadata with an empty key": task_with(metadata={"": 1}),
    "metadata with a long key": task_with(metadata={"k" * 65: 1}),
    "metadata with a long value": task_with(metadata={"a": "v" * 513}),
    "metadata with a large integer": task_with(metadata={"a": 2**53 + 1}),
    "metadata with too many entries": task_with(metadata={str(number): number for number in range(17)}),
}


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_bad_body_is_refused(bench: Bench, body: bytes) -> None:
    assert_problem(await bench.ingress.post("/v1/tasks", content=body, headers=JSON), "invalid-request")


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/jsonx", "multipart/form-data"])
async def test_a_body_that_is_not_json_by_its_type_is_refused(bench: Bench, content_type: str | None) -> None:
    headers = {} if content_type is None else header("Content-Type", content_type)
    assert_problem(await bench.ingress.post("/v1/tasks", content=SOUND, headers=headers), "unsupported-media-type")


def body_of(size: int) -> bytes:
    """A sound request of so many bytes."""
    around = len(task_with(input=""))
    return task_with(input="x" * (size - around))


@pytest.mark.usefixtures("unharmed")
async def test_a_body_that_says_it_is_too_large_is_refused(bench: Bench) -> None:
    response = await bench.ingress.post("/v1/tasks", content=body_of(BODY_BYTES_MAX + 1), headers=JSON)
    assert_problem(response, "payload-too-large")


@pytest.mark.usefixtures("unharmed")
async def test_a_body_that_turns_out_too_large_is_refused(bench: Bench) -> None:
    async def in_pieces() -> AsyncIterator[bytes]:
        body = body_of(BODY_BYTES_MAX + 1)
        for start in range(0, len(body), 16_384):
            yield body[start : start + 16_384]

    response = await bench.ingress.post("/v1/tasks", content=in_pieces(), headers=JSON)
    assert response.request.headers["transfer-encoding"] == "chunked"
    assert_problem(response, "payload-too-large")


@pytest.mark.usefixtures("unharmed")
async def test_a_body_that_only_says_it_is_too_large_is_refused_at_once(bench: Bench) -> None:
    head = b"POST /v1/tasks HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n"
    assert_problem(await exchange(bench.mesh.settings.ingress_address, head), "payload-too-large")


# The ingress: headers, queries, paths, methods


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("tenant", BAD_TENANTS)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/tasks"),
        ("GET", "/v1/tasks"),
        ("GET", f"/v1/tasks/{ABSENT_TASK}"),
        ("POST", f"/v1/tasks/{ABSENT_TASK}/inputs"),
    ],
)
async def test_a_tenant_outside_the_grammar_is_refused(bench: Bench, tenant: str, method: str, path: str) -> None:
    headers = {**JSON, **header("Mesh-Tenant", tenant)}
    assert_problem(await bench.ingress.request(method, path, content=SOUND, headers=headers), "invalid-request")


@pytest.mark.usefixtures("unharmed")
async def test_two_tenants_in_one_request_are_refused(bench: Bench) -> None:
    headers = [("Content-Type", "application/json"), ("Mesh-Tenant", "acme"), ("Mesh-Tenant", "globex")]
    assert_problem(await bench.ingress.post("/v1/tasks", content=SOUND, headers=headers), "invalid-request")
    events = f"/v1/tasks/{bench.foreign_task}/events"
    assert_problem(await bench.edge.get(events, headers=headers[1:]), "invalid-request")


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("key", ["", "k" * 256, "a\tb", "schlüssel", "🔑"])
async def test_an_idempotency_key_outside_the_grammar_is_refused(bench: Bench, key: str) -> None:
    headers = {**JSON, **header("Idempotency-Key", key)}
    assert_problem(await bench.ingress.post("/v1/tasks", content=SOUND, headers=headers), "invalid-request")


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    "query",
    [
        *(f"limit={value}" for value in ("", "0", "-1", "101", "1e1", "x", "%B2", "9" * 5000)),
        *(f"status={value}" for value in ("", "done", "COMPLETED", "completed%0a")),
        *(f"cursor={value}" for value in ("", "x", "-1", "1.5", "%D9%A1", "9" * 19, "9" * 5000)),
    ],
    ids=lambda query: query[:20],
)
async def test_a_bad_list_query_is_refused(bench: Bench, query: str) -> None:
    assert_problem(await bench.ingress.get(f"/v1/tasks?{query}"), "invalid-request")


@pytest.mark.usefixtures("unharmed")
async def test_a_list_cursor_far_beyond_the_end_lists_from_the_end(bench: Bench) -> None:
    acme = {"Mesh-Tenant": "acme"}
    response = await bench.ingress.get(f"/v1/tasks?cursor={10**17}", headers=acme, timeout=5)
    assert [task["id"] for task in response.json()["tasks"]] == [bench.foreign_task]
    assert response.json()["cursor"] is None


@pytest.mark.usefixtures("unharmed")
async def test_absent_foreign_and_impossible_tasks_look_the_same(bench: Bench) -> None:
    for client, suffix in ((bench.ingress, ""), (bench.edge, "/events")):
        responses = {
            task: await client.get(f"/v1/tasks/{task}{suffix}")
            for task in (ABSENT_TASK, bench.foreign_task, *IMPOSSIBLE_TASKS)
        }
        for response in responses.values():
            assert_problem(response, "not-found")
        absent, foreign = responses[ABSENT_TASK].text, responses[bench.foreign_task].text
        assert foreign == absent.replace(ABSENT_TASK, bench.foreign_task)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("path", ["/", "/v1", "/v2/tasks", "/v1/task", f"/v1/tasks/{ABSENT_TASK}/nope", "/%00", "/%ff"])
async def test_an_unknown_path_is_not_found(bench: Bench, path: str) -> None:
    for client in (bench.ingress, bench.edge):
        for method in ("GET", "POST"):
            assert_problem(await client.request(method, path), "not-found")


@pytest.mark.usefixtures("unharmed")
async def test_a_wrong_method_is_refused(bench: Bench) -> None:
    task = f"/v1/tasks/{ABSENT_TASK}"
    wrong = [
        *((bench.ingress, method, "/v1/tasks") for method in ("PUT", "PATCH", "DELETE", "PROPFIND")),
        *((bench.ingress, method, task) for method in ("POST", "PUT", "DELETE")),
        *((bench.edge, method, f"{task}/events") for method in ("POST", "PUT", "DELETE")),
        *((client, "POST", "/health/ready") for client in (bench.ingress, bench.edge)),
    ]
    for client, method, path in wrong:
        assert_problem(await client.request(method, path, content=SOUND, headers=JSON), "method-not-allowed")


# The edge


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "0x10", "1e3", "²", "9" * 19, "9" * 5000], ids=lambda c: c[:9])
async def test_a_cursor_that_is_none_is_refused(bench: Bench, cursor: str) -> None:
    events = f"/v1/tasks/{bench.foreign_task}/events"
    sent = {b"Last-Event-ID": cursor.encode("latin-1")}
    by_header = await bench.edge.get(f"{events}?tenant=acme", headers=sent)
    assert_problem(by_header, "invalid-request")
    assert_problem(await bench.edge.get(events, params={"tenant": "acme", "after": cursor}), "invalid-request")


@pytest.mark.usefixtures("unharmed")
async def test_a_cursor_far_beyond_the_end_is_told_of_the_gap(bench: Bench) -> None:
    acme = {"Mesh-Tenant": "acme"}
    response = await bench.edge.get(f"/v1/tasks/{bench.foreign_task}/events?after={10**17}", headers=acme)
    assert response.status_code == 200
    types = [line.removeprefix("event: ") for line in response.text.splitlines() if line.startswith("event: ")]
    assert types == ["stream.gap", "snapshot", "task.completed"]
    assert_problem(await bench.edge.get(f"/v1/tasks/{ABSENT_TASK}/events?after={10**17}"), "not-found")


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("tenant", BAD_TENANTS)
async def test_the_edge_refuses_a_tenant_outside_the_grammar(bench: Bench, tenant: str) -> None:
    events = f"/v1/tasks/{bench.foreign_task}/events"
    by_header = await bench.edge.get(events, headers=header("Mesh-Tenant", tenant))
    assert_problem(by_header, "invalid-request")
    by_query = await bench.edge.get(events, params={"tenant": tenant})
    assert_problem(by_query, "invalid-request")


@pytest.mark.usefixtures("unharmed")
async def test_the_edge_refuses_a_tenant_with_a_line_break(bench: Bench) -> None:
    for tenant in ("acme%0a", "acme%0d%0a", "%0aacme", "acme%00"):
        response = await bench.edge.get(f"/v1/tasks/{bench.foreign_task}/events?tenant={tenant}")
        assert_problem(response, "invalid-request")


# Raw sockets


def requests_of(address: Address) -> dict[str, bytes]:
    """Sound beginnings of requests to either service."""
    host = f"Host: {address}\r\n"
    return {
        "GET": f"GET /v1/tasks/{ABSENT_TASK}/events HTTP/1.1\r\n{host}".encode(),
        "POST": f"POST /v1/tasks HTTP/1.1\r\n{host}Content-Type: application/json\r\n".encode(),
    }


async def exchange(address: Address, sent: bytes) -> httpx.Response:
    """Send these bytes on a connection of their own, and read until the server closes it."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(sent)
        async with asyncio.timeout(10):
            answer = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = [tuple(line.split(": ", 1)) for line in lines]
    return httpx.Response(int(status.split(" ")[1]), headers=headers, content=body)  # type: ignore[arg-type]  # pairs, each of two


def addresses(bench: Bench) -> list[Address]:
    """Of both HTTP services."""
    return [bench.mesh.settings.ingress_address, bench.mesh.settings.edge_address]


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    "sent",
    [
        b"rubbish\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v1/tasks HTTP/9.9\r\n\r\n",
        b"NOSUCH /v1/tasks HTTP/1.1\r\n\r\n",
        b"GET /v1/tasks/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/tasks HTTP/1.1\r\nHost: x\r\nMesh-Tenant: a\x0bb\r\n\r\n",
        b"GET /v1/tasks HTTP/1.1\r\nHost: x\r\nMesh-Tenant: acme\nX: y\r\n\r\n",
        b"GET /v1/tasks HTTP/1.1\r\nHost: x\r\n: nameless\r\n\r\n",
        b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n",
    ],
    ids=lambda sent: sent[:24].decode("latin-1").encode("unicode_escape").decode(),
)
async def test_what_is_not_http_is_refused(bench: Bench, sent: bytes) -> None:
    for address in addresses(bench):
        assert_problem(await exchange(address, sent), "invalid-request")


@pytest.mark.usefixtures("unharmed")
async def test_a_body_whose_chunks_are_rubbish_is_given_up(bench: Bench) -> None:
    address = bench.mesh.settings.ingress_address
    sent = requests_of(address)["POST"] + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    assert_problem(await exchange(address, sent), "invalid-request")


@pytest.mark.usefixtures("unharmed")
async def test_a_head_that_is_too_large_is_refused(bench: Bench) -> None:
    for address in addresses(bench):
        for request in requests_of(address).values():
            whole = request + b"X-Filler: " + b"x" * HEAD_TOO_LARGE + b"\r\nContent-Length: 0\r\n\r\n"
            assert_problem(await exchange(address, whole), "invalid-request")
            line = request.replace(b" HTTP/1.1", b"?" + b"x" * HEAD_TOO_LARGE + b" HTTP/1.1") + b"\r\n"
            assert_problem(await exchange(address, line), "invalid-request")


@pytest.mark.usefixtures("unharmed")
async def test_a_head_without_an_end_is_cut_off(bench: Bench) -> None:
    for address in addresses(bench):
        _, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(requests_of(address)["GET"])
        sent = 0
        try:
            async with asyncio.timeout(20):
                while not writer.is_closing() and sent < 64 * 1024 * 1024:
                    writer.write(b"X-Filler: " + b"x" * 65_000 + b"\r\n")
                    sent += 65_000
                    await writer.drain()
        except OSError:
            pass  # Cut off in the midst of a write.
        finally:
            writer.close()
        assert sent < 16 * 1024 * 1024, "what the server does not take still fits into the system's buffers"


@pytest.mark.usefixtures("unharmed")
async def test_half_a_request_and_a_closed_connection_harm_nobody(bench: Bench) -> None:
    for address in addresses(bench):
        for method, request in requests_of(address).items():
            halves = [b"G", request[: len(request) // 2], request]
            if method == "POST":
                halves += [
                    request + b"Content-Length: 100\r\n\r\n" + SOUND,
                    request + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
                    request + b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n",
                ]
            for half in halves:
                for abort in (False, True):
                    _, writer = await asyncio.open_connection(address.host, address.port)
                    writer.write(half)
                    await writer.drain()
                    if abort:
                        writer.transport.abort()
                    writer.close()


@pytest.mark.usefixtures("unharmed")
async def test_a_slow_head_delays_nobody_and_is_answered_in_the_end(bench: Bench) -> None:
    for address, client in zip(addresses(bench), (bench.ingress, bench.edge), strict=True):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        request = b"GET /nope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        for byte in request:
            writer.write(bytes([byte]))
            await writer.drain()
            assert (await client.get("/health/live")).status_code == 200
        async with asyncio.timeout(10):
            assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
        writer.close()


async def test_a_head_that_takes_too_long_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS_MAX", 0.1)
    listener = http.bind(Address("127.0.0.1", 0), "MESH_TEST_ADDRESS")
    address = http.address_of(listener)
    stopping, started = asyncio.Event(), asyncio.Event()

    async def on_started() -> None:
        started.set()

    serving = asyncio.create_task(http.serve(Litestar(openapi_config=None), listener, stopping, on_started()))
    await started.wait()
    for beginning in (b"", b"GET /nope HTTP/1.1\r\nHost:"):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(beginning)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()
    # One that is whole is served, and so is the next on the same connection.
    async with httpx.AsyncClient(base_url=f"http://{address}") as client:
        assert [(await client.get("/nope")).status_code for _ in range(2)] == [404, 404]
    stopping.set()
    await serving


# What is sound


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"input":"first","input":"last"}', "last"),
        (b'{"input":"a","metadata":{"k":1},"metadata":{"k":2}}', "a"),
    ],
)
async def test_of_duplicate_keys_the_last_one_counts(bench: Bench, body: bytes, expected: str) -> None:
    response = await bench.ingress.post("/v1/tasks", content=body, headers={**JSON, **WAIT})
    assert response.status_code == 200
    assert f"You said: {expected}\n" in response.json()["output"]
    assert response.json().get("metadata", {"k": 2}) == {"k": 2}
    await until_no_work_is_left(bench.connection)


async def test_the_largest_body_is_taken(bench: Bench) -> None:
    body = body_of(BODY_BYTES_MAX)
    assert len(body) == BODY_BYTES_MAX
    response = await bench.ingress.post("/v1/tasks", content=body, headers={**JSON, **WAIT})
    assert (response.status_code, response.json()["status"]) == (200, "completed")
    await until_no_work_is_left(bench.connection)


async def test_after_all_of_this_a_task_still_works(bench: Bench, tmp_path: Path) -> None:
    response = await bench.ingress.post("/v1/tasks", content=SOUND, headers={**JSON, **WAIT})
    assert (response.status_code, response.json()["status"]) == (200, "completed")
    history = await Viewer(str(bench.mesh.settings.edge_address), response.json()["id"]).follow()
    assert history.frames[-1].type == "task.completed"
    assert bench.mesh.tracebacks() == []
    assert not [line for line in bench.mesh.logs() if line["level"] == "error"]
