"""API keys: whom they let in, to what, and for how long."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from contracts.access import Key, new_key
from contracts.identifiers import new_id
from mesh.broker.connection import Connection, connect
from mesh.clock import now
from tests.support.http_client import PatientClient
from tests.support.issuer import UNLIMITED
from tests.support.keys import bearer, change_key, write_key
from tests.support.patience import within
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until

KEYS = f'[auth]\nmode = "keys"\n{UNLIMITED}[pools.default]\n[pools.other]\n'
ABSENT = "0" * 26


class Asked:
    """A mesh that asks for keys, what reaches its broker, and a client that shows nothing by itself."""

    def __init__(self, mesh: Mesh, connection: Connection, client: httpx.AsyncClient) -> None:
        self.mesh = mesh
        self.connection = connection
        self.requests = connection.requests
        self.client = client

    async def status(self, key: object, path: str = "/v1/tasks/none") -> int:
        """What a request gets; of a task that can't be, without a question to the broker, 404."""
        return (await self.client.get(path, headers=bearer(str(key)))).status_code

    async def raw(self, authorization: bytes, path: str = "/v1/tasks/none") -> bytes:
        """What the ingress says to a request that no client of HTTP would send."""
        host, _, port = self.mesh.ingress_url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".encode()
        writer.write(head + b"Authorization: " + authorization + b"\r\n\r\n")
        async with within(10):
            answer = await reader.readuntil(b"}")
        writer.close()
        return answer


@asynccontextmanager
async def asking(folder: Path, *services: str, text: str = KEYS) -> AsyncIterator[Asked]:
    """A mesh with a configuration."""
    file = folder / "mesh.toml"
    file.write_text(text)
    async with (
        running_mesh(folder, *services, MESH_CONFIG=str(file)) as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        yield Asked(mesh, connection, client)
        assert mesh.tracebacks() == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def asked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Asked]:
    """One mesh for all cases that leave it as it is."""
    async with asking(tmp_path_factory.mktemp("keys"), "ingress", "stream_edge", "inference_worker") as opened:
        yield opened


pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]


async def test_a_key_submits_follows_and_reads_the_tasks_of_its_tenant(asked: Asked) -> None:
    key = await write_key(asked.requests, "acme")
    submitted = await asked.client.post("/v1/tasks", json={"input": "!say 3"}, headers=bearer(key))
    assert submitted.status_code == 202, submitted.text
    assert submitted.json()["tenant"] == "acme"
    task = submitted.json()["id"]
    events = await asked.client.get(f"{asked.mesh.edge_url}/v1/tasks/{task}/events", headers=bearer(key), timeout=30)
    assert events.status_code == 200
    assert "event: task.completed" in events.text
    read = await asked.client.get(f"/v1/tasks/{task}", headers=bearer(key))
    assert read.json()["status"] == "completed"


async def test_what_is_everybodys_is_paused_by_a_key_for_any_tenant_alone(asked: Asked) -> None:
    async def tried(key: Key, method: str, path: str, **body: object) -> tuple[int, str | None]:
        answer = await asked.client.request(method, path, headers=bearer(key), json=body if method != "GET" else None)
        return answer.status_code, answer.json().get("code")

    own = await write_key(asked.requests, "acme")
    bound = await write_key(asked.requests, "acme", any_tenant=True, pool="other")
    reader = await write_key(asked.requests, "acme", "read", "submit", any_tenant=True)
    operator = await write_key(asked.requests, "acme", "operate", any_tenant=True)
    acts = [
        ("PUT", "/v1/valves/tenant/acme"),
        ("DELETE", "/v1/valves/tenant/acme"),
        ("PUT", "/v1/valves/limits/acme"),
        ("DELETE", "/v1/valves/limits/acme"),
        ("GET", "/v1/valves"),
    ]
    for method, path in acts:
        for key in (own, bound):
            assert await tried(key, method, path) == (403, "forbidden")
        assert await tried(reader, method, path) == (403, "scope-missing")
    assert await tried(operator, "PUT", "/v1/valves/tenant/globex") == (200, None)
    assert await tried(operator, "DELETE", "/v1/valves/tenant/globex") == (200, None)
    # Many tasks are cancelled by whoever may operate on them: of the own tenant, and of the own pool.
    assert await tried(reader, "POST", "/v1/tasks/cancel") == (403, "scope-missing")
    assert await tried(own, "POST", "/v1/tasks/cancel", dry_run=True) == (200, None)
    assert await tried(bound, "POST", "/v1/tasks/cancel", dry_run=True, pool="default") == (403, "forbidden")
    elsewhere = bearer(own) | {"Mesh-Tenant": "globex"}
    refused = await asked.client.post("/v1/tasks/cancel", json={"dry_run": True}, headers=elsewhere)
    assert (refused.status_code, refused.json()["code"]) == (403, "tenant-mismatch")


async def test_without_credentials_a_request_is_refused_and_told_how_to_show_them(asked: Asked) -> None:
    for url in (asked.mesh.ingress_url, asked.mesh.edge_url):
        refused = await asked.client.get(f"{url}/v1/tasks/{ABSENT}/events")
        assert refused.status_code == 401
        assert refused.json()["code"] == "unauthorized"
        assert refused.headers["www-authenticate"] == 'Bearer realm="taskmesh"'
        assert refused.headers["cache-control"] == "no-store"
    for open_to_all in ("/health/live", "/health/ready", "/schema"):
        assert (await asked.client.get(open_to_all)).status_code == 200


@pytest.mark.parametrize(
    "path", ["//v1/tasks/{}/events", "/v1//tasks/{}/events/", "///v1/tasks/{}/events", "/%2fv1/tasks/{}/events"]
)
async def test_however_many_slashes_a_path_has_it_leads_through_the_same_door(asked: Asked, path: str) -> None:
    key = await write_key(asked.requests)
    task = new_id()
    for url, found in ((asked.mesh.ingress_url, 307), (asked.mesh.edge_url, 404)):
        refused = await asked.client.get(url + path.format(task))
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        assert (await asked.client.get(url + path.format(task), headers=bearer(key))).status_code == found
    # Its line says what was asked for, too: of both services there is one.
    await until(lambda: len([line for line in asked.mesh.logs_of("audit") if line["task"] == task]) == 2)
    assert {line["what"] for line in asked.mesh.logs_of("audit") if line["task"] == task} == {"follow"}


async def test_an_unknown_id_and_a_wrong_secret_get_the_same_bytes(asked: Asked) -> None:
    key = await write_key(asked.requests)
    wrong = f"tm_{key.id}_{secrets.token_urlsafe(32)}"
    answers = [await asked.client.get("/v1/tasks", headers=bearer(each)) for each in (wrong, str(new_key()))]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1


async def test_a_scope_that_a_key_lacks_is_named(asked: Asked) -> None:
    key = await write_key(asked.requests, "acme", "read")
    refused = await asked.client.post("/v1/tasks", json={"input": "no"}, headers=bearer(key))
    assert (refused.status_code, refused.json()["code"]) == (403, "scope-missing")
    assert "'submit'" in refused.json()["detail"]


async def test_another_tenant_than_the_keys_own_is_refused(asked: Asked) -> None:
    key = await write_key(asked.requests, "acme")
    for url in (asked.mesh.ingress_url, asked.mesh.edge_url):
        headers = bearer(key, **{"Mesh-Tenant": "globex"})
        refused = await asked.client.get(f"{url}/v1/tasks/{ABSENT}/events", headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "tenant-mismatch")
    named = await asked.client.get(f"{asked.mesh.edge_url}/v1/tasks/{ABSENT}/events?tenant=globex", headers=bearer(key))
    assert (named.status_code, named.json()["code"]) == (403, "tenant-mismatch")
    own = await asked.client.get("/v1/tasks/counts", headers=bearer(key, **{"Mesh-Tenant": "acme"}))
    assert own.status_code == 200


async def test_a_key_of_any_tenant_names_whom_it_means(asked: Asked) -> None:
    key = await write_key(asked.requests, any_tenant=True)
    submitted = await asked.client.post(
        "/v1/tasks", json={"input": "!say 1"}, headers=bearer(key, **{"Mesh-Tenant": "globex"})
    )
    assert submitted.json()["tenant"] == "globex"
    own = await asked.client.post("/v1/tasks", json={"input": "!say 1"}, headers=bearer(key))
    assert own.json()["tenant"] == "default"


async def test_tasks_of_others_and_tasks_that_are_not_there_look_the_same(asked: Asked) -> None:
    owner, other = await write_key(asked.requests, "acme"), await write_key(asked.requests, "globex")
    submitted = await asked.client.post("/v1/tasks", json={"input": "!say 1"}, headers=bearer(owner))
    task = submitted.json()["id"]
    absent = new_id()
    for method, path in (("GET", "/v1/tasks/{}"), ("POST", "/v1/tasks/{}/cancel"), ("GET", "/v1/dead-letters/{}")):
        answers = [
            await asked.client.request(method, path.format(each), headers=bearer(other)) for each in (task, absent)
        ]
        assert [answer.status_code for answer in answers] == [404, 404]
        # But for the id that was asked for.
        assert answers[0].text.replace(task, absent) == answers[1].text
        assert {*answers[0].headers} == {*answers[1].headers}


async def test_an_expired_and_a_revoked_key_are_refused_and_said_to_be(asked: Asked) -> None:
    ago = now() - timedelta(seconds=1)
    for key, reason in (
        (await write_key(asked.requests, expires_at=ago), "expired"),
        (await write_key(asked.requests, revoked_at=ago), "revoked"),
    ):
        refused = await asked.client.get("/v1/tasks", headers=bearer(key))
        assert refused.status_code == 401
        assert reason in refused.json()["detail"]
        # Who can't show the secret is told nothing of the key.
        guessed = await asked.client.get("/v1/tasks", headers=bearer(f"tm_{key.id}_{'A' * 43}"))
        assert "known" in guessed.json()["detail"]


async def test_a_revocation_holds_within_a_second_however_busy_the_key_is(asked: Asked) -> None:
    key = await write_key(asked.requests)
    assert await asked.status(key) == 404
    await change_key(asked.requests, key, revoked_at=now())

    async def is_refused() -> bool:
        return await asked.status(key) == 401

    await until(is_refused, 1)


async def test_what_was_unknown_a_moment_ago_is_known_once_it_is_there(asked: Asked) -> None:
    key = await write_key(asked.requests)
    await change_key(asked.requests, key, revoked_at=now())
    assert await asked.status(key) == 401
    await change_key(asked.requests, key, revoked_at=None)

    async def is_let_in() -> bool:
        return await asked.status(key) == 404

    await until(is_let_in, 1)


async def test_a_keys_pool_and_budget_bound_its_tasks(asked: Asked) -> None:
    key = await write_key(asked.requests, "acme", pool="other", budget_tokens=500)

    async def post(**fields: object) -> httpx.Response:
        return await asked.client.post("/v1/tasks", json={"input": "!say 1", **fields}, headers=bearer(key))

    accepted = await post()
    assert (accepted.status_code, accepted.json()["pool"]) == (202, "other")
    assert (await post(pool="other", budget_tokens=100)).status_code == 202
    for fields in ({"pool": "default"}, {"budget_tokens": 501}):
        refused = await post(**fields)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), fields
        assert next(iter(fields)) in refused.json()["detail"]
    told = await asked.client.get(f"/v1/tasks/{accepted.json()['id']}/events", headers=bearer(key))
    assert told.status_code == 307
    # A pool that is gone takes no more tasks, or they would wait for ever.
    of_none = await write_key(asked.requests, "acme", pool="gone")
    lost = await asked.client.post("/v1/tasks", json={"input": "!say 1"}, headers=bearer(of_none))
    assert (lost.status_code, lost.json()["code"]) == (400, "invalid-request")
    # Nor does a model get another one, or a replay.
    journal = await asked.client.get(
        f"{asked.mesh.edge_url}/v1/tasks/{accepted.json()['id']}/events", headers=bearer(key)
    )
    assert '"pool_bound":true' in journal.text
    path = f"/v1/dead-letters/{accepted.json()['id']}/replay"
    moved = await asked.client.post(path, json={"edits": {"pool": "default"}}, headers=bearer(key))
    assert (moved.status_code, moved.json()["code"]) == (403, "forbidden")


async def test_keys_that_are_none_are_refused_and_never_written_down(asked: Asked) -> None:
    key = await write_key(asked.requests)
    other = await write_key(asked.requests)
    assert await asked.status(key) == 404
    wrong = [
        str(key)[:-1],
        str(key)[:20],
        str(key) + "A",
        f"tm_{key.id}_{other.secret}",
        f"tm_{other.id}_{key.secret}",
        f"tm_{key.id.upper()}_{key.secret}",
        f"tm_../../{key.id}_{key.secret}",
        f"{key.id} {key.secret}",
        f"tm_{key.id}_ {key.secret}",
        f"tm_{key.id}_{key.secret}\u00a0",
        f"tm_{key.id}_{key.secret},",
        f'"{key}"',
        key.secret,
        "tm_",
        "",
        "A" * 9_000,
    ]
    for each in wrong:
        for scheme in ("Bearer", "Basic", "", "Bearer\t", "BearerBearer"):
            answer = await asked.raw(f"{scheme} {each}".encode())
            assert answer.startswith(b"HTTP/1.1 401 "), (scheme, each[:20])
            assert b'"code":"unauthorized"' in answer
            assert key.secret.encode() not in answer
    for value in (f"Bearer {key} ", f"Bearer  {key}", f"bEARER {key}\t"):
        # Blanks around a header are not a part of it (RFC 9110, 5.5), and several may be inside (11.4).
        assert (await asked.raw(value.encode())).startswith(b"HTTP/1.1 404 ")
    two = [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {other}")]
    assert (await asked.client.get("/v1/tasks/none", headers=two)).status_code == 401
    query = await asked.client.get("/v1/tasks/none", params={"key": str(key), "access_token": str(key)})
    assert query.status_code == 401
    for process in asked.mesh.processes:
        text = process.log.read_text()
        assert key.secret not in text
        assert other.secret not in text


async def test_while_the_broker_is_away_known_keys_still_open_and_others_are_no_strangers(tmp_path: Path) -> None:
    async with asking(tmp_path, "ingress") as asked:
        key = await write_key(asked.requests)
        assert await asked.status(key) == 404
        await asked.mesh.broker.stop()
        ready = f"{asked.mesh.ingress_url}/health/ready"

        async def is_away() -> bool:
            return (await asked.client.get(ready, timeout=10)).status_code == 503

        await until(is_away)
        assert await asked.status(key) == 404
        unknown = await asked.client.get("/v1/tasks/none", headers=bearer(new_key()), timeout=20)
        assert (unknown.status_code, unknown.json()["code"]) == (503, "broker-unavailable")
        await asked.mesh.broker.start()

        async def is_refused() -> bool:
            return await asked.status(new_key()) == 401

        await until(is_refused)
        assert await asked.status(key) == 404
