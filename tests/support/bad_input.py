"""A mesh that bad input is sent to, and what a refusal is held to."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import httpx

from contracts.errors import HTTP_STATUS_BY_CODE, PROBLEM_TYPE_PREFIX, TITLE_BY_CODE
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import last_sequence
from mesh.configuration.settings import Address
from tests.support.http_client import PatientClient
from tests.support.patience import within
from tests.support.processes import Mesh, Process, running_mesh
from tests.support.waiting import until_no_work_is_left

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
    """A mesh that all cases of a module share."""

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


@asynccontextmanager
async def open_bench(folder: Path) -> AsyncIterator[Bench]:
    """Ingress, edge and worker; and one ended task of a tenant that the cases are not."""
    async with (
        running_mesh(folder, "ingress", "stream_edge", "inference_worker") as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url) as ingress,
        PatientClient(base_url=mesh.edge_url) as edge,
    ):
        response = await ingress.post(
            "/v1/tasks", content=SOUND, headers={**JSON, **header("Mesh-Tenant", "acme"), **WAIT}
        )
        assert response.status_code == 200, response.text
        await until_no_work_is_left(connection)
        yield Bench(mesh, connection, ingress, edge, response.json()["id"])


@asynccontextmanager
async def harming_nobody(bench: Bench) -> AsyncIterator[None]:
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
    assert document.keys() <= {"type", "title", "status", "code", "detail", "cause", "depth"}
    assert ("cause" in document) == (code in ("rate-limited", "queue-full", "pool-unavailable", "budget-exhausted"))
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


def body_of(size: int) -> bytes:
    """A sound request of so many bytes."""
    around = len(task_with(input=""))
    return task_with(input="x" * (size - around))


async def exchange(address: Address, sent: bytes, trust: ssl.SSLContext | None = None) -> httpx.Response:
    """Send these bytes on a connection of their own, and read until the server closes it. `trust`: by TLS."""
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=trust)
    try:
        writer.write(sent)
        async with within(10):
            answer = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = [tuple(line.split(": ", 1)) for line in lines]
    return httpx.Response(int(status.split(" ")[1]), headers=headers, content=body)  # type: ignore[arg-type]  # pairs, each of two
