"""A mesh whose pools are on model servers of its operator's: real processes, a server on loopback."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mesh.broker.connection import connect
from tests.acceptance.test_services import start_in_vain
from tests.support import messages_server
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import Viewer, submit
from tests.support.http_client import PatientClient
from tests.support.model_server import DONE, Exchange, ModelServer, chunk, model_server, openai, usage
from tests.support.patience import stretched, within
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

KEY = "sk-made-up-0123456789"
PROMPT = "the secret plan"
SERVICES = ("ingress", "stream_edge", "inference_worker")


def configured(folder: Path, server: ModelServer, more: str = "") -> dict[str, str]:
    """A mesh.toml whose pools are on that server; the variables that name it."""
    file = folder / "mesh.toml"
    file.write_text(
        f"""
        [providers.local]
        kind = "openai"
        base_url = "{server.base_url}"
        api_key_env = "LOCAL_KEY"
        {more}
        [pools.default]
        provider = "local"
        model = "tiny"
        [pools.large]
        provider = "local"
        model = "huge"
        max_output_tokens = 50
        [pools.scripted]
        """
    )
    return {"MESH_CONFIG": str(file), "LOCAL_KEY": KEY}


async def run_task(mesh: Mesh, recorded: Recorded, text: str = PROMPT, **extra: object) -> str:
    """Submit a task, and follow it to its end."""
    async with PatientClient() as client:
        task = await submit(client, mesh.ingress_url, recorded, text, **extra)
    recorded.histories.append(await Viewer(str(mesh.settings.edge_address), task).follow())
    return task


async def journal_of(mesh: Mesh, task: str) -> list[dict[str, Any]]:
    """The events of a task."""
    async with connect(mesh.settings, "test") as connection:
        return [stored.event for stored in (await read_stored(connection.requests)).journals[task]]


def of_type(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == kind]


def said_nothing_secret(mesh: Mesh) -> bool:
    """Whether no process has logged the key, or what a task was about."""
    logs = "".join(process.log.read_text() for process in mesh.processes)
    return KEY not in logs and PROMPT not in logs


async def test_tasks_are_completed_by_the_model_of_their_pool(tmp_path: Path) -> None:
    recorded = Recorded()
    async with (
        model_server(openai) as server,
        running_mesh(tmp_path, *SERVICES, "steward", MESH_LOG_LEVEL="debug", **configured(tmp_path, server)) as mesh,
    ):
        task = await run_task(mesh, recorded)
        large = await run_task(mesh, recorded, pool="large", max_output_tokens=70)
        named = await run_task(mesh, recorded, pool="large", model="other", max_output_tokens=20)
        scripted = await run_task(mesh, recorded, "!say 2", pool="scripted")
        async with connect(mesh.settings, "test") as connection:
            await until_no_work_is_left(connection)  # A stream ends before its worker has acked.
            stored = await read_stored(connection.requests)
        record = stored.records[task]
        assert (record["status"], record["output"], record["model"]) == ("completed", "Hello", "tiny")
        assert record["usage"] == {"input_tokens": 9, "output_tokens": 2}
        claims = {name: of_type(await journal_of(mesh, name), "step.claimed")[0] for name in (task, large, scripted)}
        assert (claims[task]["provider"], claims[task]["model"]) == ("local", "tiny")
        assert (claims[large]["provider"], claims[large]["model"]) == ("local", "huge")
        assert (claims[scripted]["provider"], claims[scripted]["model"]) == ("scripted", "scripted")
        assert (stored.records[named]["model"], stored.records[scripted]["output"]) == ("other", "t0 t1 ")
        asked = [(exchange.body["model"], exchange.body.get("max_tokens")) for exchange in server.exchanges]
        assert asked == [("tiny", None), ("huge", 50), ("other", 20)]
        assert {exchange.headers["authorization"] for exchange in server.exchanges} == {f"Bearer {KEY}"}
        assert check(recorded, stored) == []
        assert said_nothing_secret(mesh)
        assert mesh.tracebacks() == []


async def test_a_model_of_anthropics_that_calls_a_tool_is_told_what_came_of_it(tmp_path: Path) -> None:
    """Its task has no tools, and so an error does."""
    recorded = Recorded()
    signed = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}

    async def calling(exchange: Exchange) -> None:
        if len(exchange.body["messages"]) == 1:
            asked = messages_server.tool_use(1, "add", '{"a": 1, ', '"b": 2}')
            events = [*messages_server.thinking(0, "c2ln", "Hm."), *asked, *messages_server.ended("tool_use", 5)]
        else:
            events = [*messages_server.text(0, "Three."), *messages_server.ended("end_turn", 2)]
        await messages_server.saying(messages_server.started(9), events)(exchange)

    async with model_server(calling) as server:
        file = tmp_path / "mesh.toml"
        file.write_text(
            f"""
            [providers.claude]
            kind = "anthropic"
            base_url = "{server.base_url.removesuffix("/v1")}"
            api_key_env = "LOCAL_KEY"
            thinking_budget_tokens = 1024
            [pools.default]
            provider = "claude"
            model = "tiny"
            """
        )
        variables = {"MESH_CONFIG": str(file), "LOCAL_KEY": KEY, "MESH_LOG_LEVEL": "debug"}
        async with running_mesh(tmp_path, *SERVICES, "steward", **variables) as mesh:
            task = await run_task(mesh, recorded)
            journal = await journal_of(mesh, task)
            assert said_nothing_secret(mesh)
            assert mesh.tracebacks() == []
    assert of_type(journal, "task.completed")[0]["output"] == "Three."
    assert of_type(journal, "task.completed")[0]["usage"] == {"input_tokens": 18, "output_tokens": 7}
    assert of_type(journal, "turn.completed")[0]["blocks"] == [signed]
    first, second = (exchange.body for exchange in server.exchanges)
    assert [tool["name"] for tool in first["tools"]] == ["ask_user"]
    told, result = second["messages"][1:]
    used = {"type": "tool_use", "id": "c00000100", "name": "add", "input": {"a": 1, "b": 2}}
    assert told == {"role": "assistant", "content": [signed, used]}
    assert (result["content"][0]["tool_use_id"], result["content"][0]["is_error"]) == ("c00000100", True)
    assert "tool-unknown" in result["content"][0]["content"]


async def test_a_stream_that_breaks_off_is_generated_again_from_the_start(tmp_path: Path) -> None:
    recorded = Recorded()

    async def broken(exchange: Exchange) -> None:
        """As Ollama ends after an error of its own: no finish_reason."""
        server.behave = openai
        await exchange.begin()
        await exchange.say(chunk({"content": "Hel"}))
        await exchange.end()

    async with (
        model_server(broken) as server,
        running_mesh(tmp_path, *SERVICES, **configured(tmp_path, server)) as mesh,
    ):
        events = await journal_of(mesh, await run_task(mesh, recorded))
        assert [event["reason"] for event in of_type(events, "task.retrying")] == ["provider-disconnected"]
        assert [event["reason"] for event in of_type(events, "turn.restarted")] == ["retry"]
        assert of_type(events, "task.completed")[0]["output"] == "Hello"
        async with connect(mesh.settings, "test") as connection:
            await until_no_work_is_left(connection)
            assert check(recorded, await read_stored(connection.requests)) == []
        assert mesh.tracebacks() == []


async def test_a_rate_limit_is_waited_for_as_long_as_the_server_asks(tmp_path: Path) -> None:
    recorded = Recorded()

    async def limiting(exchange: Exchange) -> None:
        server.behave = openai
        await exchange.refuse(429, {"error": {"code": "rate_limit_exceeded"}}, x_ratelimit_reset_requests="300ms")

    async with (
        model_server(limiting) as server,
        running_mesh(tmp_path, *SERVICES, **configured(tmp_path, server)) as mesh,
    ):
        events = await journal_of(mesh, await run_task(mesh, recorded))
        (retrying,) = of_type(events, "task.retrying")
        assert (retrying["reason"], retrying["delay_seconds"]) == ("rate-limited", 0.3)
        assert of_type(events, "task.completed")[0]["output"] == "Hello"


async def test_a_refusal_is_stored_with_the_servers_words_and_logged_without_them(tmp_path: Path) -> None:
    recorded = Recorded()

    async def refusing(exchange: Exchange) -> None:
        said = {"message": f"key {KEY} may not ask: {PROMPT}", "type": "invalid_request_error", "code": "nope"}
        await exchange.refuse(400, {"error": said})

    async with (
        model_server(refusing) as server,
        running_mesh(tmp_path, *SERVICES, **configured(tmp_path, server)) as mesh,
    ):
        (failed,) = of_type(await journal_of(mesh, await run_task(mesh, recorded)), "task.failed")
        assert failed["error"] == {
            "code": "provider-bad-request",
            "message": "HTTP 400 (invalid_request_error, nope)",
            "detail": f"key [key] may not ask: {PROMPT}",
        }
        assert said_nothing_secret(mesh)
        assert mesh.tracebacks() == []


async def test_a_used_up_quota_is_a_dead_letter_at_the_first_try(tmp_path: Path) -> None:
    async def refusing(exchange: Exchange) -> None:
        await exchange.refuse(429, {"error": {"code": "insufficient_quota"}}, retry_after="1")

    async with (
        model_server(refusing) as server,
        running_mesh(tmp_path, "ingress", "inference_worker", **configured(tmp_path, server)) as mesh,
        PatientClient(base_url=mesh.ingress_url, timeout=20) as client,
    ):
        task = (await client.post("/v1/tasks", json={"input": PROMPT})).json()["id"]

        async def dead_lettered() -> bool:
            return bool((await client.get(f"/v1/tasks/{task}")).json()["status"] == "dead_lettered")

        await until(dead_lettered)
        record = (await client.get(f"/v1/tasks/{task}")).json()
        assert record["error"]["code"] == "quota-exhausted"
        assert len(server.exchanges) == 1


async def test_a_turn_whose_deadline_passes_closes_the_servers_connection(tmp_path: Path) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.begin()
        while not exchange.gone.is_set():
            await exchange.say(chunk({"content": "a"}))
            await asyncio.sleep(0.01)

    recorded = Recorded()
    async with (
        model_server(endless) as server,
        running_mesh(tmp_path, *SERVICES, **configured(tmp_path, server)) as mesh,
    ):
        events = await journal_of(mesh, await run_task(mesh, recorded, deadline_seconds=stretched(1.5)))
        assert of_type(events, "task.completed")[0]["incomplete"] == "deadline"
        async with within(2):
            await server.exchanges[0].gone.wait()


@pytest.mark.parametrize("continues", [True, False])
async def test_a_killed_worker_is_replaced_in_mid_turn(tmp_path: Path, *, continues: bool) -> None:
    """With a server that continues prefixes the sentence goes on; with any other the turn is generated again."""
    recorded, begun = Recorded(), "Once upon a while somebody said hel"

    async def half(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.say(chunk({"content": begun}))
        await exchange.gone.wait()

    async def rest(exchange: Exchange) -> None:
        await exchange.begin()
        goes_on = exchange.body["messages"][-1]["role"] == "assistant"
        await exchange.say(chunk({"content": "lo" if goes_on else f"{begun}lo"}), chunk({}, "stop"), usage(9, 1))
        await exchange.send(DONE)
        await exchange.end()

    async with model_server(half) as server:
        variables = configured(tmp_path, server, 'continue_prefix = "vllm"' if continues else "")
        async with running_mesh(tmp_path, *SERVICES, MESH_ACK_WAIT_SECONDS="1", **variables) as mesh:
            async with PatientClient() as client:
                task = await submit(client, mesh.ingress_url, recorded, PROMPT)
            viewer = Viewer(str(mesh.settings.edge_address), task)
            following = asyncio.create_task(viewer.follow())
            await until(lambda: any("output.delta" in frame for frame in viewer.history.frames))
            server.behave = rest
            await mesh.processes[-1].kill()
            await mesh.start("inference_worker")
            recorded.histories.append(await following)
            events = await journal_of(mesh, task)
            assert of_type(events, "task.completed")[0]["output"] == f"{begun}lo"
            assert len(of_type(events, "turn.restarted")) == (0 if continues else 1)
            async with connect(mesh.settings, "test") as connection:
                await until_no_work_is_left(connection)
                assert check(recorded, await read_stored(connection.requests)) == []


async def test_a_wrong_file_ends_every_service_with_one_line_that_names_the_key(tmp_path: Path) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text("[pools.default]\nmodell = 'tiny'\n")
    for service in ("ingress", "inference_worker", "steward", "stream_edge", "tool_runner"):
        status, said = await start_in_vain(service, MESH_CONFIG=str(file))
        assert (status, said.count("\n")) == (2, 1), said
        assert said.startswith(f"{service}: {file}: pools.default: ")
        assert "`modell`" in said


async def test_a_missing_key_ends_the_worker_with_one_line_that_names_its_variable(tmp_path: Path) -> None:
    async with model_server(openai) as server, running_mesh(tmp_path) as mesh:
        variables = configured(tmp_path, server) | {**mesh.broker.way_in, "LOCAL_KEY": ""}
        status, said = await start_in_vain("inference_worker", **variables)
        assert (status, said.count("\n")) == (2, 1), said
        assert "providers.local.api_key_env: the variable LOCAL_KEY is not set" in said
