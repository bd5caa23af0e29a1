"""Hands on the valves: what is paused begins nothing, what was under way ends, and what goes on does so at once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from contracts.api.valves import SAMPLE_MAX
from contracts.records.status import ENDED
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import count_of
from tests.support.commands import meshctl
from tests.support.http_client import PatientClient
from tests.support.model_server import ModelServer, model_server, openai
from tests.support.processes import Process, running_mesh
from tests.support.submitter import Submitter
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

WHY = "the rack moves"


def configuration(first: ModelServer, second: ModelServer) -> str:
    """Three pools; one of them has two providers."""
    return f"""
        [providers.first]
        kind = "openai"
        base_url = "{first.base_url}"
        [providers.second]
        kind = "openai"
        base_url = "{second.base_url}"
        [providers.second.pace]
        requests_per_minute = 60000
        [pools.default]
        [pools.other]
        [pools.routed]
        provider = "first"
        model = "tiny"
        fallbacks = [{{ provider = "second", model = "tiny" }}]
        [tenants.acme]
        running = 5
    """


@dataclass
class Bench(Submitter):
    """A mesh whose valves are in the test's hands."""

    connection: Connection
    first: ModelServer
    second: ModelServer

    async def ends(self, text: str = "hello", tenant: str = "default", **fields: Any) -> dict[str, Any]:
        """The record of a task that has come to its end."""
        return await self.until_status(await self.accepted(text, tenant, **fields), *ENDED)

    async def put(self, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
        """A valve that is shut, or a tenant that is limited."""
        answer = await self.client.put(f"/v1/valves/{path}", json=body)
        assert answer.status_code == status, answer.text
        told: dict[str, Any] = answer.json()
        return told

    async def delete(self, path: str, status: int = 200) -> dict[str, Any]:
        """The same that goes on."""
        answer = await self.client.delete(f"/v1/valves/{path}")
        assert answer.status_code == status, answer.text
        told: dict[str, Any] = answer.json()
        return told

    async def known(self, kind: str, name: str) -> None:
        """Wait until each process has heard of it: it says so in its log."""
        services = [each for each in self.mesh.processes if each.service in ("inference_worker", "steward", "ingress")]

        def said() -> bool:
            """Whether the last word of each is that it is shut."""
            return all(last_word(process, kind, name) == "valve.shut" for process in services)

        await until(said)

    async def pool(self, name: str) -> dict[str, Any]:
        """A pool as it stands."""
        pools = (await self.client.get("/v1/pools")).json()["pools"]
        return next(pool for pool in pools if pool["pool"] == name)

    async def until_paused_lanes(self, name: str, *priorities: str) -> None:
        """Wait until these lanes of a pool, and no others, are told to be paused."""

        async def are() -> bool:
            lanes = (await self.pool(name))["lanes"]
            return [lane["priority"] for lane in lanes if lane["basis"] == "paused"] == [*priorities]

        await until(are)

    async def in_backlog(self) -> int:
        """How many messages wait in BACKLOG."""
        return await count_of(self.connection.requests, "BACKLOG", "backlog.>")


def last_word(process: Process, kind: str, name: str) -> object:
    """What a process has said last of a valve."""
    lines = [json.loads(line) for line in process.log.read_text().splitlines() if line.endswith("}")]
    words = [line["event"] for line in lines if (line.get("kind"), line.get("name")) == (kind, name)]
    heard = [word for word in words if word in ("valve.shut", "valve.opened")]
    return heard[-1] if heard else None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One for all cases, each of which leaves nothing shut."""
    folder = tmp_path_factory.mktemp("valves")
    file = folder / "mesh.toml"
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(model_server(openai)) for _ in range(2)]
        file.write_text(configuration(first, second))
        mesh = await stack.enter_async_context(
            running_mesh(folder, "ingress", "steward", "inference_worker", "tool_runner", MESH_CONFIG=str(file))
        )
        connection = await stack.enter_async_context(connect(mesh.settings, "test"))
        client = await stack.enter_async_context(PatientClient(base_url=mesh.ingress_url, timeout=15))
        yield Bench(mesh, client, connection, first, second)
        listed = (await client.get("/v1/valves")).json()
        assert listed == {"valves": [], "limits": []}
        assert mesh.tracebacks() == []


async def test_a_paused_pool_begins_nothing_lets_turns_end_and_says_so_to_whoever_submits(bench: Bench) -> None:
    running = await bench.accepted("!rate 4\n!say 8")
    await bench.until_status(running, "running")
    shut = await bench.put("pool/default", reason=WHY)
    assert (shut["kind"], shut["name"], shut["by"], shut["reason"]) == ("pool", "default", "http", WHY)
    await bench.known("pool", "default")
    waits = await bench.accepted()
    assert {key: waits["pause"][key] for key in ("kind", "name", "reason")} == {
        "kind": "pool",
        "name": "default",
        "reason": WHY,
    }
    assert "by" not in waits["pause"]
    # Later ones get through elsewhere, and what was under way ends: this one was not just slow.
    assert (await bench.ends(pool="other"))["status"] == "completed"
    assert (await bench.until_status(running, *ENDED))["status"] == "completed"
    record = await bench.record(waits)
    assert (record["status"], record["waiting"]["on"]) == ("queued", "pause")
    assert record["pause"]["name"] == "default"
    assert WHY in record["waiting"]["detail"]
    await bench.delete("pool/default")
    assert (await bench.until_status(waits, *ENDED))["status"] == "completed"
    assert "pause" not in await bench.accepted()


async def test_a_paused_lane_holds_up_no_other_lane_of_its_pool(bench: Bench) -> None:
    await bench.put("lane/default.low")
    await bench.known("lane", "default.low")
    waits = await bench.accepted(priority="low")
    assert (await bench.ends())["status"] == "completed"
    assert (await bench.record(waits))["pause"]["kind"] == "lane"
    await bench.delete("lane/default.low")
    await bench.until_status(waits, "completed")


async def test_a_paused_tenants_first_and_later_turns_wait_and_no_others(bench: Bench) -> None:
    # Its second turn is due once the tool has answered.
    agent = await bench.accepted(
        "!rate 4\n!say 4\n!call current_time {}\n!then\n!say 1", "acme", tools=["current_time"]
    )
    await bench.until_status(agent, "running")
    await bench.put("tenant/acme", reason=WHY)
    await bench.known("tenant", "acme")
    first = [await bench.accepted(tenant="acme") for _ in range(5)]
    assert all(task["pause"]["kind"] == "tenant" for task in first)

    async def all_wait() -> bool:
        return await bench.in_backlog() == len(first) + 1

    await until(all_wait)
    assert (await bench.ends(tenant="globex"))["status"] == "completed"
    record = await bench.record(agent)
    assert (record["status"], record["turn"], record["waiting"]["on"]) == ("running", 1, "pause")
    # A cancel takes effect while it waits, and its message is of no consequence then.
    cancelled = first.pop()
    await bench.client.post(f"/v1/tasks/{cancelled['id']}/cancel", headers={"Mesh-Tenant": "acme"})
    await bench.until_status(cancelled, "cancelled")
    await bench.delete("tenant/acme")
    for task in (*first, agent):
        assert (await bench.until_status(task, *ENDED))["status"] == "completed"

    async def nothing_waits() -> bool:
        return await bench.in_backlog() == 0

    await until(nothing_waits)


async def test_turns_go_round_a_paused_provider_and_wait_if_there_is_no_other(bench: Bench) -> None:
    await bench.ends(pool="routed")
    asked = len(bench.first.exchanges)
    assert asked
    await bench.put("provider/first")
    await bench.known("provider", "first")
    around = await bench.accepted(pool="routed")
    assert "pause" not in around
    await bench.until_status(around, "completed")
    assert (len(bench.first.exchanges), len(bench.second.exchanges)) == (asked, 1)
    await bench.put("provider/second")
    await bench.known("provider", "second")
    waits = await bench.accepted(pool="routed")
    assert waits["pause"]["kind"] == "provider"
    assert (await bench.ends())["status"] == "completed"
    assert (await bench.record(waits))["waiting"]["on"] == "pause"
    await bench.delete("provider/first")
    await bench.until_status(waits, "completed")
    assert len(bench.second.exchanges) == 1
    await bench.delete("provider/second")


async def test_what_is_paused_has_no_time_in_line_and_its_pool_says_so(bench: Bench) -> None:
    shut = [
        ("pool/default", "default", ("high", "normal", "low")),
        ("lane/default.normal", "default", ("normal",)),
        ("provider/second", "routed", ()),
    ]
    for path, pool, lanes in shut:
        await bench.put(path)
        await bench.until_paused_lanes(pool, *lanes)
        if lanes:
            waits = await bench.accepted(pool=pool)
            assert (waits["queue"]["basis"], waits["queue"]["eta_seconds"]) == ("paused", None)
            assert (await bench.record(waits))["queue"]["basis"] == "paused"
        if path != "provider/second":
            await bench.delete(path)
        await bench.until_paused_lanes("default")
    await bench.put("provider/first")
    await bench.until_paused_lanes("routed", "high", "normal", "low")
    for name in ("first", "second"):
        await bench.delete(f"provider/{name}")
    await bench.put("tenant/acme")
    assert (await bench.accepted(tenant="acme"))["queue"]["basis"] == "paused"
    assert (await bench.accepted(tenant="globex"))["queue"]["basis"] != "paused"
    await bench.delete("tenant/acme")
    [first, second] = (await bench.pool("routed"))["providers"]
    assert first["room"] is None
    assert 0 <= second["room"] <= 1


async def test_limits_for_a_while_are_what_budgets_and_the_order_of_tenants_go_by(bench: Bench) -> None:
    await bench.put("limits/few", limits={"tokens_per_month": 10}, seconds=600)

    async def is_refused_with_a_depth() -> bool:
        request = {"input": "hello", "max_output_tokens": 50}
        answer = await bench.client.post("/v1/tasks", json=request, headers={"Mesh-Tenant": "few"})
        if answer.status_code == 202:
            return False  # One that takes all of it is accepted.
        assert (answer.status_code, answer.json()["code"]) == (429, "budget-exhausted")
        assert answer.json()["cause"] == "tokens-per-month"
        return bool(answer.json().get("depth") == 0)

    await until(is_refused_with_a_depth)
    await bench.put("limits/few", limits={"running": 1}, seconds=600)
    tasks = [await bench.accepted("!rate 1\n!say 600", "few") for _ in range(3)]

    async def one_runs() -> bool:
        statuses = [(await bench.record(task))["status"] for task in tasks]
        return statuses.count("running") == 1 and await bench.in_backlog() == 2

    await until(one_runs)
    await bench.delete("limits/few")
    for task in tasks:
        await bench.until_status(task, "running")
    for task in tasks:
        await bench.client.post(f"/v1/tasks/{task['id']}/cancel", headers={"Mesh-Tenant": "few"})
        await bench.until_status(task, "cancelled")


async def test_a_pause_with_an_end_ends_by_itself(bench: Bench) -> None:
    shut = await bench.put("pool/other", seconds=600)
    waits = await bench.accepted(pool="other")
    assert waits["pause"]["until"] == shut["until"]
    # Said anew it ends sooner, and began when it did.
    shorter = await bench.put("pool/other", seconds=1)
    assert shorter["since"] == shut["since"]
    assert shorter["until"] < shut["until"]
    ended = await bench.until_status(waits, "completed")
    assert ended["timings"]["queued_seconds"] > 0


async def test_a_worker_that_starts_into_a_pause_begins_nothing(bench: Bench) -> None:
    workers = [each for each in bench.mesh.processes if each.service == "inference_worker"]
    await bench.put("pool/default")
    await bench.known("pool", "default")
    await workers[0].kill()
    waits = await bench.accepted()
    await workers[0].start()
    assert (await bench.ends(pool="other"))["status"] == "completed"
    assert (await bench.record(waits))["status"] == "queued"
    await bench.delete("pool/default")
    await bench.until_status(waits, "completed")


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("pool/missing", {}, 404, "there is no pool missing"),
        ("lane/default", {}, 400, "priority"),
        ("lane/default.urgent", {}, 400, "priority"),
        ("provider/missing", {}, 404, "there is no provider missing"),
        ("tenant/No-One", {}, 400, "tenant"),
        ("stream/tasks", {}, 400, "kind of valve"),
        ("pool/default", {"until": "2020-01-01T00:00:00Z"}, 400, "has gone by"),
        ("pool/default", {"until": "2999-01-01T00:00:00Z", "seconds": 1}, 400, "not both"),
        ("pool/default", {"seconds": -1}, 400, "seconds"),
        ("pool/default", {"why": "?"}, 400, "why"),
        ("limits/acme", {"limits": {"running": 1}}, 400, "until"),
        ("limits/acme", {"limits": {"runing": 1}, "seconds": 60}, 400, "runing"),
        ("limits/acme", {"limits": {"running": 0}, "seconds": 60}, 400, "running"),
        ("limits/acme", {"limits": {}, "seconds": 60}, 400, "limits"),
    ],
)
async def test_what_can_not_be_is_refused_and_says_why(
    bench: Bench, path: str, body: dict[str, Any], status: int, said: str
) -> None:
    told = await bench.put(path, status, **body)
    assert said in told["detail"]


async def test_what_is_not_paused_can_not_go_on(bench: Bench) -> None:
    assert (await bench.delete("pool/default", 404))["code"] == "not-found"
    assert (await bench.delete("limits/acme", 404))["code"] == "not-found"


async def test_meshctl_pauses_limits_lists_and_lets_go_on(bench: Bench) -> None:
    [shut] = await meshctl(bench.mesh, "pause", "lane", "other.high", "--for", "1h", "--reason", WHY)
    assert (shut["kind"], shut["name"], shut["reason"]) == ("lane", "other.high", WHY)
    [limits] = await meshctl(
        bench.mesh, "limit", "acme", "running=2", "tokens_per_minute=null", "--for", "1h", "--reason", WHY
    )
    assert limits["limits"] == {"running": 2, "tokens_per_minute": None}

    async def listed() -> bool:
        [found] = await meshctl(bench.mesh, "valves")
        return bool(found == {"valves": [shut], "limits": [limits]})

    await until(listed)
    checks = {line["check"]: line for line in await meshctl(bench.mesh, "doctor", status=0) if "check" in line}
    assert "lane other.high is paused by http" in checks["valves"]["detail"]
    await meshctl(bench.mesh, "resume", "lane", "other.high")
    await meshctl(bench.mesh, "limit", "acme", "--end")
    acts = [(line["what"], line["target"], line["reason"]) for line in bench.mesh.logs_of("audit")]
    assert ("pause", "lane other.high", WHY) in acts
    assert ("limit", "tenant acme: running=2, tokens_per_minute=None", WHY) in acts
    assert ("resume", "lane other.high", None) in acts

    async def nothing_is_left() -> bool:
        return bool((await bench.client.get("/v1/valves")).json() == {"valves": [], "limits": []})

    await until(nothing_is_left)


async def test_many_tasks_are_shown_first_and_then_cancelled_by_a_filter(bench: Bench) -> None:
    await bench.put("tenant/initech")
    await bench.known("tenant", "initech")
    rest = await bench.accepted(tenant="initech", pool="other")
    metadata = {"batch": 7}
    tasks = [await bench.accepted(tenant="initech", metadata=metadata, priority="low") for _ in range(30)]
    wanted = {"metadata": metadata, "pool": "default", "dry_run": True}
    whose = ("cancel", "--all", "--tenant", "initech", "--metadata", "batch=7", "--pool", "default")

    async def shown(**more: Any) -> dict[str, Any]:
        answer = await bench.client.post("/v1/tasks/cancel", json=wanted | more, headers={"Mesh-Tenant": "initech"})
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    async def all_fit() -> bool:
        told = await shown()
        assert (told["asked"], told["cursor"], len(told["sample"]) <= SAMPLE_MAX) == (0, None, True)
        return bool(told["by_status"] == {"queued": len(tasks)})

    await until(all_fit)
    for narrower in ({"older_than_seconds": 3600}, {"priority": "high"}, {"status": "running"}, {"pool": "other"}):
        assert (await shown(**narrower))["matched"] == 0
    [dry] = await meshctl(bench.mesh, *whose)
    assert dry["matched"] == len(tasks)
    [cancelled] = await meshctl(bench.mesh, *whose, "--yes", "--reason", "a wrong batch")
    assert (cancelled["asked"], cancelled["event"]) == (len(tasks), "tasks.cancelled")
    for task in tasks:
        await bench.until_status(task, "cancelled")
    assert (await bench.record(rest))["status"] == "queued"
    [again] = await meshctl(bench.mesh, *whose, "--yes")
    assert again["asked"] == 0
    lines = [line for line in bench.mesh.logs_of("audit") if line["what"] == "cancel-many"]
    assert lines[0]["target"] == "pool=default, metadata.batch=7"
    assert lines[0]["reason"] == "a wrong batch"
    await bench.delete("tenant/initech")
    await bench.until_status(rest, "completed")


async def test_a_mass_cancel_refuses_what_it_does_not_know(bench: Bench) -> None:
    async def refused(**body: Any) -> httpx.Response:
        answer = await bench.client.post("/v1/tasks/cancel", json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request"), answer.text
        return answer

    await refused(status="completed")
    await refused(stauts="queued")
    await refused(cursor="bm9uZQ")
    await refused(older_than_seconds=-1)
    await refused(older_than_seconds=1e300)
