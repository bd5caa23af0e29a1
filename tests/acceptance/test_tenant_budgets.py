"""Budgets of tenants over real processes: refused at acceptance, cut in mid-turn, waited for, and told in headers."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from contracts.journal import events
from mesh.broker.connection import Connection, connect
from mesh.budgets.account import spend, spent_in, taken_of, used_in
from mesh.budgets.accounts import Accounts
from mesh.budgets.limits import Amount, end_of, window_seconds
from mesh.budgets.reservations import SPARE_TASKS
from mesh.clock import now
from mesh.journal.journal import Journal
from mesh.task.budget import tokens
from mesh.task.state import TaskState
from tests.support.bad_input import assert_problem
from tests.support.commands import meshctl
from tests.support.http_client import PatientClient
from tests.support.patience import lease
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance

MONTH = 2_000
FIFTY = {"input": "!say 5", "max_output_tokens": 50}
"""Thought to read 6 tokens, and to put out 50; it puts out 5."""


@asynccontextmanager
async def budgeted(
    folder: Path, tenants: str, *services: str, **variables: str
) -> AsyncIterator[tuple[Mesh, Connection]]:
    """Services with these tenants, and a connection of the test's own."""
    if end_of("month", now()) - now() < timedelta(minutes=5):
        pytest.skip("the month is about to end, and its budgets with it")
    (folder / "mesh.toml").write_text(tenants)
    variables |= {"MESH_CONFIG": str(folder / "mesh.toml")}
    async with running_mesh(folder, *services, **variables) as mesh, connect(mesh.settings, "test") as connection:
        yield mesh, connection
        assert mesh.tracebacks() == []


async def submitted(client: httpx.AsyncClient, tenant: str = "acme", **request: object) -> httpx.Response:
    headers = {"Mesh-Tenant": tenant}
    return await client.post("/v1/tasks", json={**FIFTY, **request}, headers=headers)


async def account(connection: Connection, tenant: str = "acme") -> tuple[int, int]:
    """Tokens used this month, and taken."""
    known = await Accounts(connection.requests).change(tenant, lambda _: None)
    return used_in(known)["month"].tokens, taken_of(known)["month"].tokens


async def state_of(connection: Connection, task: str, tenant: str = "acme") -> TaskState:
    return (await Journal.load(connection.requests, tenant, task)).state


async def ended(connection: Connection, task: str) -> TaskState:
    async def is_over() -> bool:
        return (await state_of(connection, task)).terminal is not None

    await until(is_over)
    return await state_of(connection, task)


def left(response: httpx.Response, name: str) -> tuple[int, int]:
    """What `RateLimit` says is left of a quota, and in how many seconds there is more."""
    found = re.search(rf'"{name}";r=(\d+);t=(\d+)', response.headers["ratelimit"])
    assert found is not None, response.headers["ratelimit"]
    return int(found[1]), int(found[2])


async def test_what_three_ingresses_accept_at_once_is_thought_to_take_no_more_than_there_is(tmp_path: Path) -> None:
    tenants = f"[tenants.acme]\ntokens_per_month = {MONTH}\n"
    async with budgeted(tmp_path, tenants, "ingress") as (mesh, connection):
        for _ in range(2):
            await mesh.start("ingress", MESH_INGRESS_ADDRESS="127.0.0.1:0")
        addresses = {process.address for process in mesh.processes}
        async with PatientClient() as client:

            async def flood(address: str) -> list[httpx.Response]:
                return [
                    await client.post(f"http://{address}/v1/tasks", json=FIFTY, headers={"Mesh-Tenant": "acme"})
                    for _ in range(15)
                ]

            floods = await asyncio.gather(*(flood(address) for address in [*addresses] * 3))
            answers = [answer for each in floods for answer in each]
            accepted = [answer for answer in answers if answer.status_code == 202]
            refused = [answer for answer in answers if answer.status_code != 202]
            assert 30 <= len(accepted) <= MONTH // 56
            for answer in refused:
                assert_problem(answer, "budget-exhausted")
            # Others are not concerned, and whoever is refused comes back when some have run.
            assert (await client.post(f"http://{next(iter(addresses))}/v1/tasks", json=FIFTY)).status_code == 202
            assert {int(answer.headers["retry-after"]) for answer in refused} <= {29, 30, 31}
            assert "thought to take the rest" in refused[-1].json()["detail"]
            policy = f'"tokens-per-month";q={MONTH};w={window_seconds("month", now())};qu="tokens"'
            assert {answer.headers["ratelimit-policy"] for answer in answers} == {policy}

            async def unused_is_back() -> bool:
                return (await account(connection))[1] == 56 * len(accepted)

            await until(unused_is_back)


async def test_a_key_that_was_accepted_is_answered_as_before_once_a_budget_is_used_up(tmp_path: Path) -> None:
    """And of several limits the one that is used up is told, with its own time."""
    tenants = f"[tenants.acme]\ntokens_per_month = {MONTH}\n[tenants.minutely]\ntokens_per_minute = 60\n"
    tenants += f"tokens_per_month = {MONTH}\n"
    async with (
        budgeted(tmp_path, tenants, "ingress") as (mesh, connection),
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        keyed = {"Mesh-Tenant": "acme", "Idempotency-Key": "k"}
        first = await client.post("/v1/tasks", json=FIFTY, headers=keyed)
        assert first.status_code == 202
        await Accounts(connection.requests).change("acme", lambda known: spend(known, now(), Amount(MONTH)))

        async def is_refused() -> bool:
            return (await submitted(client, input="more")).status_code == 429

        await until(is_refused)
        refused = await submitted(client, input="more")
        assert_problem(refused, "budget-exhausted")
        assert "has used them up" in refused.json()["detail"]
        at = now()
        told = int(refused.headers["retry-after"])
        assert abs(told - (end_of("month", at) - at).total_seconds()) < 120
        assert left(refused, "tokens-per-month") == (0, told)
        again = await client.post("/v1/tasks", json=FIFTY, headers=keyed)
        assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
        assert (await submitted(client, "minutely")).status_code == 202
        full = await submitted(client, "minutely")
        assert_problem(full, "budget-exhausted")
        assert full.json()["cause"] == "tokens-per-minute"
        assert 0 < int(full.headers["retry-after"]) <= 61
        assert left(full, "tokens-per-minute")[1] == int(full.headers["retry-after"])
        assert left(full, "tokens-per-month")[0] == MONTH - 56


async def test_what_a_task_used_takes_the_place_of_what_it_was_thought_to(tmp_path: Path) -> None:
    tenants = f"[tenants.acme]\ntokens_per_month = {MONTH}\ntokens_per_minute = 5000\ncost_per_month = 3.5\n"
    async with (
        budgeted(tmp_path, tenants, "ingress", "inference_worker") as (mesh, connection),
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        answer = await submitted(client)
        assert answer.headers["ratelimit-policy"].startswith('"tokens-per-minute";q=5000;w=60;qu="tokens", ')
        assert '"cost-per-month";q=3500000;w=' in answer.headers["ratelimit-policy"]
        state = await ended(connection, answer.json()["id"])
        assert isinstance(state.terminal, events.TaskCompleted)
        used = state.terminal.usage.input_tokens + state.terminal.usage.output_tokens
        assert 0 < used < 56

        async def is_settled() -> bool:
            # And what the ingress keeps for the next ones.
            known, taken = await account(connection)
            return known == used and taken <= used + SPARE_TASKS * 56

        await until(is_settled)


async def test_a_turn_ends_where_its_tenants_budget_does(tmp_path: Path) -> None:
    """What all turns of the tenant have put out counts, in whatever process they run."""
    tenants = f"[tenants.acme]\ntokens_per_month = {MONTH}\n"
    services = ("ingress", "inference_worker", "inference_worker")
    async with (
        budgeted(tmp_path, tenants, *services, MESH_WORKER_CONCURRENCY="2") as (mesh, connection),
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        long = "!rate 100\n!say 100000"
        tasks: list[str] = []
        # Without a limit of its own: each is thought to put out what fits, and would put out much more.
        request = {"input": long}
        for _ in range(3):
            answer = await client.post("/v1/tasks", json=request, headers={"Mesh-Tenant": "acme"})
            assert answer.status_code == 202, answer.text
            tasks.append(answer.json()["id"])
        ends = [(await ended(connection, task)).terminal for task in tasks]
        assert [(type(end), getattr(end, "incomplete", None)) for end in ends] == [(events.TaskCompleted, "budget")] * 3
        texts = sum(len(end.output.encode()) // 4 for end in ends if isinstance(end, events.TaskCompleted))
        # 100 tokens a second each, and a second or two until all know of each other: on a busy machine somewhat more.
        assert MONTH * 0.8 < texts < MONTH * 5
        refused = await submitted(client)
        assert_problem(refused, "budget-exhausted")


async def test_what_a_killed_worker_had_under_way_is_counted_once_its_turn_has_ended_elsewhere(tmp_path: Path) -> None:
    tenants = "[tenants.acme]\ntokens_per_month = 100000\n"
    services = ("ingress", "inference_worker", "inference_worker")
    async with (
        budgeted(tmp_path, tenants, *services, MESH_ACK_WAIT_SECONDS=str(lease(1.0))) as (mesh, connection),
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        answer = await submitted(client, input="!rate 50\n!say 150", max_output_tokens=1_000)
        task = answer.json()["id"]

        async def runs() -> bool:
            # The reservation has become what the turn uses.
            used, taken = await account(connection)
            return 0 < used < taken

        await until(runs)
        state = await state_of(connection, task)
        assert state.queued is not None
        reserved = state.queued.reserved
        assert reserved is not None
        claimed_by = state.claims["1", 0].worker
        killed = next(process for process in mesh.processes if f"-{process.pid}@" in claimed_by)
        await killed.kill()
        state = await ended(connection, task)
        assert isinstance(state.terminal, events.TaskCompleted)
        assert state.terminal.incomplete is None
        told = tokens(state.terminal.usage)

        async def is_settled() -> bool:
            known = await Accounts(connection.requests).change("acme", lambda _: None)
            held = sum(slot.tokens for slot in known.held)
            # Nothing is held for it: what is left is the ingress's spare, for tasks to come.
            return spent_in(known, "month").tokens >= told and held <= SPARE_TASKS * reserved.tokens

        await until(is_settled)
        known = await Accounts(connection.requests).change("acme", lambda _: None)
        # What nobody has told of the attempt that was cut off is no more than what was seen of it: its 150 words.
        assert spent_in(known, "month").tokens <= told + 200


async def test_tasks_wait_for_a_budget_where_the_setting_says_so(tmp_path: Path) -> None:
    """First turns and later ones: nobody has claimed them, and they go on as soon as there is a budget again."""
    tenants = f'[tenants.acme]\ntokens_per_month = {MONTH}\non_exhausted = "wait"\n'
    services = ("ingress", "inference_worker", "tool_runner", "steward")
    async with (
        budgeted(tmp_path, tenants, *services) as (mesh, connection),
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        script = f'!say {MONTH}\n!call add {{"a": 1, "b": 2}}\n!then\n!say 3'
        # The first turn has as much as it wants, and then nothing is left.
        answer = await submitted(client, input=script, tools=["add"], max_output_tokens=99_999)
        running = answer.json()["id"]

        async def has_run() -> bool:
            return (await state_of(connection, running)).turn(1).completed is not None

        await until(has_run)

        async def is_used_up() -> bool:
            return (await account(connection))[0] >= MONTH

        await until(is_used_up)
        answer = await submitted(client)
        assert answer.status_code == 202
        task = answer.json()["id"]

        async def wait_in_the_backlog() -> bool:
            return await messages_of(connection, "BACKLOG") == 2

        await until(wait_in_the_backlog)
        assert await messages_of(connection, "TASKS") == await messages_of(connection, "TURNS") == 0

        async def are_told_why() -> bool:
            # It takes a moment until the ingress knows of a worker.
            records = [
                await client.get(f"/v1/tasks/{each}", headers={"Mesh-Tenant": "acme"}) for each in (task, running)
            ]
            waits = [record.json()["waiting"] for record in records]
            used_up = "budget of 2000 tokens in a month is used up until"
            return all(wait["on"] == "pause" and used_up in wait["detail"] for wait in waits)

        await until(are_told_why)
        state = await state_of(connection, task)
        assert not state.claims
        (tmp_path / "mesh.toml").write_text(tenants.replace(str(MONTH), str(10 * MONTH)))
        for process in mesh.processes:
            process.signal(signal.SIGHUP)
        for each in (task, running):
            end = (await ended(connection, each)).terminal
            assert isinstance(end, events.TaskCompleted)
            assert end.incomplete is None
        assert await messages_of(connection, "BACKLOG") == 0


async def messages_of(connection: Connection, stream: str) -> int:
    info = await connection.requests.api(f"STREAM.INFO.{stream}")
    return int(info["state"]["messages"])


async def test_the_limit_of_a_callers_requests_is_told_too(tmp_path: Path) -> None:
    auth = "[auth]\nrequests_per_second = 0.01\nburst = 3\n"
    async with (
        budgeted(tmp_path, auth, "ingress") as (mesh, _),
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        answers = [await submitted(client) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
        assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"requests";q=3;w=300'}
        assert [left(answer, "requests")[0] for answer in answers] == [2, 1, 0, 0]
        assert left(answers[3], "requests")[1] == int(answers[3].headers["retry-after"])


async def test_a_task_ends_where_it_has_cost_what_it_may(tmp_path: Path) -> None:
    """After a turn, and in the middle of one; and a limit that nothing could hold is refused."""
    priced = '[providers.scripted]\nkind = "scripted"\n[providers.scripted.prices."*"]\ninput = 0\noutput = 1000\n'
    services = ("ingress", "inference_worker")
    async with (
        budgeted(tmp_path, priced, *services) as (mesh, connection),
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        # A token that is put out costs a thousandth. Short words are fewer tokens by their bytes than by their count.
        script = "a b c d e f g h\n!call add {}\n!then\nmore"
        asked = await submitted(client, input=script, tools=["add"], unknown_tools="allow", budget_cost=0.006)
        after_a_turn = asked.json()["id"]
        assert [name for name in asked.headers if "ratelimit" in name] == [], "its tenant has no budget"
        asking = ("submit", "!rate 100\n!say 5000", "--budget-cost", "0.2", "--tenant", "acme")
        [answer] = await meshctl(mesh, *asking)
        in_a_turn = answer["id"]
        end = (await ended(connection, in_a_turn)).terminal
        assert isinstance(end, events.TaskCompleted)
        assert end.incomplete == "budget"
        assert 150 < len(end.output.encode()) // 4 < 1_000
        state = await ended(connection, after_a_turn)
        assert isinstance(state.terminal, events.TaskCompleted)
        assert state.terminal.incomplete == "budget"
        assert state.terminal.usage.cost_micros is not None
        assert (state.terminal.usage.cost_micros or 0) >= 8_000
        assert len(state.turns) == 1, "what it asked for is not done any more"
        (tmp_path / "mesh.toml").write_text("")
        mesh.processes[0].signal(signal.SIGHUP)
        await until(lambda: bool(mesh.logs_of("configuration.taken")))
        refused = await submitted(client, budget_cost=0.5)
        assert_problem(refused, "invalid-request")
        assert "budget_cost" in refused.json()["detail"]
