"""What is held up by people, or by a tenant's own limits: what others are told beside it, and what its own are."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from contracts.records.status import ENDED
from mesh.broker.connection import connect
from tests.support.commands import meshctl, started
from tests.support.http_client import PatientClient
from tests.support.patience import within
from tests.support.processes import Process, running_mesh
from tests.support.submitter import Submitter
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

WHY = "a loop of theirs"
PLACES = 4
CONFIGURATION = """
    [pools.default]
    [pools.other]
    [tenants.full]
    backlog = 2
    [tenants.waits]
    tokens_per_month = 300
    on_exhausted = "wait"
    [tenants.bound]
    running = 1
"""


@dataclass
class Bench(Submitter):
    """A mesh with one worker of four places."""

    def process(self, service: str) -> Process:
        """Its process of a service."""
        return next(each for each in self.mesh.processes if each.service == service)

    async def until_ended(self, *tasks: dict[str, Any]) -> None:
        """Wait until they have."""
        for task in tasks:
            await self.until_status(task, *ENDED)

    async def until_none_is_open(self, tenant: str) -> None:
        """Cancel all that a tenant has: what changes meanwhile may be passed over."""

        async def none_is() -> bool:
            answer = await self.client.post("/v1/tasks/cancel", json={}, headers={"Mesh-Tenant": tenant})
            return bool(answer.json()["matched"] == 0)

        await until(none_is)

    async def pause(self, path: str, **body: Any) -> None:
        """Shut a valve, and wait until all have heard of it: a worker that has not begins what comes right then."""
        kind, _, name = path.partition("/")

        def heard_by() -> Counter[object]:
            shut = self.mesh.logs_of("valve.shut")
            return Counter(line["service"] for line in shut if (line["kind"], line["name"]) == (kind, name))

        before = heard_by()
        answer = await self.client.put(f"/v1/valves/{path}", json=body)
        assert answer.status_code == 200, answer.text
        await until(lambda: (heard_by() - before).keys() >= {"ingress", "inference_worker", "steward"})

    async def resume(self, path: str) -> None:
        """Open it."""
        assert (await self.client.delete(f"/v1/valves/{path}")).status_code == 200

    async def queue(self, tenant: str) -> dict[str, Any]:
        """What a task of a tenant that comes now is told; it ends at once."""
        task = await self.accepted("!say 1", tenant)
        queue: dict[str, Any] = task["queue"]
        return queue


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    folder = tmp_path_factory.mktemp("held")
    (folder / "mesh.toml").write_text(CONFIGURATION)
    async with (
        running_mesh(folder, "ingress", "steward", MESH_CONFIG=str(folder / "mesh.toml")) as mesh,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        await mesh.start("tool_runner")
        await mesh.start("inference_worker", MESH_WORKER_CONCURRENCY=str(PLACES))
        yield Bench(mesh, client)
        assert mesh.tracebacks() == []


async def test_anybody_who_reaches_the_port_reads_how_much_is_paused_and_no_names(bench: Bench) -> None:
    await bench.pause("tenant/secretive", reason=WHY)

    async def told() -> bool:
        return "paused: 1 tenant" in (await bench.client.get("/health/ready")).text

    await until(told)
    shown = (await bench.client.get("/health/ready")).text
    for name in ("secretive", WHY, "by http"):
        assert name not in shown
    await bench.resume("tenant/secretive")


async def test_what_waits_of_a_paused_tenant_is_before_nobody_and_wants_no_worker(bench: Bench) -> None:
    await bench.pause("tenant/flood")
    held = [await bench.accepted(tenant="flood") for _ in range(40)]

    async def seen() -> bool:
        load = (await bench.client.get("/v1/pools/default/load")).json()
        normal = load["lanes"][1]
        return bool((normal["waiting"], normal["held"], load["wanted_workers"]) == (len(held), len(held), 0))

    await until(seen)

    async def a_place_is_free() -> bool:
        pool = (await bench.client.get("/v1/pools")).json()["pools"][0]
        normal = pool["lanes"][1]
        return bool(normal["depth"] == len(held) and pool["free"] and normal["basis"] == "free")

    await until(a_place_is_free)
    # The depth has all of them; the place, and the time, have none. Who asks again and again stands before himself.
    queue = await bench.queue("calm")
    assert queue["depth"] == len(held)
    assert (queue["position"], queue["basis"]) == (1, "free")
    shown = await bench.record(held[-1])
    assert (shown["queue"]["basis"], shown["queue"]["eta_seconds"]) == ("paused", None)
    await bench.resume("tenant/flood")
    await bench.until_ended(*held)


async def test_sub_tasks_and_triggers_of_a_paused_tenant_wait_as_well_and_are_run_once(bench: Bench) -> None:
    task = '{"input": "a signal came"}'
    rule = ("--name", "often", "--tenant", "acts", "--signal", "stock.empty", "--task", task)
    await meshctl(bench.mesh, "triggers", "add", *rule)
    spawns = '!rate 4\n!say 4\n!call spawn_task {"input": "a sub-task"}\n!then\n!say 1'
    agent = await bench.accepted(spawns, "acts", tools=["spawn_task"])

    async def statuses() -> dict[str, list[str]]:
        listed = (await bench.client.get("/v1/tasks", headers={"Mesh-Tenant": "acts"})).json()["tasks"]
        by_status: dict[str, list[str]] = {}
        for each in listed:
            by_status.setdefault(each["status"], []).append(each["id"])
        return by_status

    await bench.until_status(agent, "running")
    await bench.pause("tenant/acts", reason=WHY)
    async with connect(bench.mesh.settings, "test") as connection:
        await connection.requests.publish("signals.acts.stock.empty", b"{}")

    async def both_are_queued() -> bool:
        return len((await statuses()).get("queued", [])) == 2

    await until(both_are_queued)
    for waits in (await statuses())["queued"]:
        record = await bench.record({"id": waits, "tenant": "acts"})
        assert (record["waiting"]["on"], record["pause"]["reason"]) == ("pause", WHY)
    assert (await bench.record(agent))["status"] in ("running", "waiting")
    await bench.resume("tenant/acts")

    async def all_are_done() -> bool:
        return len((await statuses()).get("completed", [])) == 3

    await until(all_are_done)


async def test_a_paused_pool_wants_no_worker_whatever_waits_there(bench: Bench) -> None:
    await bench.pause("pool/other")
    held = [await bench.accepted(tenant="calm", pool="other") for _ in range(3)]

    async def load() -> tuple[int, int]:
        told = (await bench.client.get("/v1/pools/other/load")).json()
        return told["waiting"], told["wanted_workers"]

    async def nobody_is_wanted() -> bool:
        return await load() == (len(held), 0)

    await until(nobody_is_wanted)
    await bench.resume("pool/other")
    await bench.until_ended(*held)


async def test_who_is_refused_by_what_is_paused_is_told_so_and_no_time_of_before(bench: Bench) -> None:
    await bench.pause("tenant/full", reason=WHY, seconds=100)
    held: list[dict[str, Any]] = []

    async def is_refused() -> bool:
        answer = await bench.post(tenant="full")
        if answer.status_code == 202:
            held.append(answer.json())
        return answer.status_code == 503

    await until(is_refused)
    refused = [await bench.post(tenant="full") for _ in range(5)]
    for answer in refused:
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["cause"]) == (503, "queue-full", "lane")
        assert f"tenant full is paused since {problem['detail'].split('since ')[1]}" in problem["detail"]
        assert WHY in problem["detail"]
        # Until its end, and up to as long again, so that they do not come at once.
        assert 30 < int(answer.headers["retry-after"]) <= 200
    await bench.resume("tenant/full")
    await bench.until_ended(*held)

    async def is_accepted_again() -> bool:
        return (await bench.post(tenant="full")).status_code == 202

    await until(is_accepted_again)


async def test_a_tenant_whose_budget_is_used_up_is_told_no_time(bench: Bench) -> None:
    waiting: list[dict[str, Any]] = []

    async def has_no_time() -> bool:
        task = await bench.accepted("!say 60", "waits", max_output_tokens=60)
        waiting.append(task)
        return bool(task["queue"]["basis"] == "paused")

    await until(has_no_time)
    assert waiting[-1]["queue"]["eta_seconds"] is None

    async def the_record_has_none() -> bool:
        shown = await bench.record(waiting[-1])
        assert shown["status"] == "queued"
        return bool(shown["waiting"]["on"] == "pause" and shown["queue"]["basis"] == "paused")

    await until(the_record_has_none)
    assert (await bench.queue("calm"))["basis"] != "paused"
    await bench.until_none_is_open("waits")


async def test_a_tenant_that_may_run_one_task_waits_for_its_own_and_others_do_not(bench: Bench) -> None:
    # In a pool of their own: what its tasks take is the mean of the lane's.
    async def eta_seconds() -> float:
        task = await bench.accepted("!rate 8\n!say 4", "bound", pool="other")
        return float(task["queue"]["eta_seconds"] or 0.0)

    for _ in range(12):
        await eta_seconds()

    async def its_own_are_before_it() -> bool:
        # They have a place for about half a second, one after the other.
        return await eta_seconds() > 3

    await until(its_own_are_before_it)

    async def others_begin_at_once() -> bool:
        queue = (await bench.accepted("!say 1", "calm", pool="other"))["queue"]
        return bool((queue["position"], queue["basis"]) == (1, "free"))

    await until(others_begin_at_once)
    await bench.until_none_is_open("bound")


async def test_what_goes_on_has_a_reason_too(bench: Bench) -> None:
    await meshctl(bench.mesh, "pause", "pool", "other", "--reason", WHY)
    await meshctl(bench.mesh, "resume", "pool", "other", "--reason", "they have mended it")
    await meshctl(bench.mesh, "limit", "bound", "running=2", "--for", "1h", "--reason", WHY)
    await meshctl(bench.mesh, "limit", "bound", "--end", "--reason", "it is calm")
    acts = {(line["what"], line["by"], line["reason"]) for line in bench.mesh.logs_of("audit")}
    assert {
        ("pause", "http", WHY),
        ("resume", "http", "they have mended it"),
        ("limit", "http", WHY),
        ("end-limits", "http", "it is calm"),
    } <= acts
    refused = await bench.client.delete("/v1/valves/pool/other", params={"reason": "x" * 501})
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid-request")


async def test_a_mass_cancel_stops_no_more_than_was_shown_and_goes_on_after_a_kill(bench: Bench) -> None:
    await bench.pause("tenant/many")
    tasks = [await bench.accepted(tenant="many") for _ in range(150)]
    whose = ("cancel", "--all", "--tenant", "many")
    [shown] = await meshctl(bench.mesh, *whose)
    assert shown["matched"] == len(tasks)
    later = await bench.accepted(tenant="many")
    command = await started(bench.mesh, *whose, "--before", shown["created_before"], "--yes")

    async def some_have_ended() -> bool:
        return any([(await bench.record(task))["status"] == "cancelled" for task in tasks[::30]])

    await until(some_have_ended)
    ingress = bench.process("ingress")
    await ingress.kill()
    await ingress.start()
    _, errors = await command.communicate()
    assert command.returncode == 0, errors
    await bench.until_ended(*tasks)
    assert (await bench.record(later))["status"] == "queued"
    await bench.resume("tenant/many")
    await bench.until_ended(later)


async def test_a_mass_cancel_that_is_broken_off_says_how_far_it_came(bench: Bench) -> None:
    ingress = bench.process("ingress")
    await ingress.kill()
    command = await started(bench.mesh, "cancel", "--all", "--tenant", "many", "--yes")
    assert command.stderr is not None
    async with within(60):
        assert b"going on" in await command.stderr.readline()
    command.send_signal(signal.SIGINT)
    _, errors = await command.communicate()
    assert (command.returncode, errors) == (
        130,
        b"meshctl: broken off: 0 tasks are being stopped; the same again goes on\n",
    )
    await ingress.start()
