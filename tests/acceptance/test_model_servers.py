"""Model servers that are restarted, refuse, and only speak a wire: whole tasks, real processes."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from mesh.broker.connection import connect
from tests.acceptance.test_own_model import SERVICES, journal_of, of_type, run_task
from tests.support import messages_server
from tests.support.broker import free_port
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import Viewer, submit
from tests.support.http_client import PatientClient
from tests.support.messages_server import encoded, saying, started
from tests.support.model_server import DONE, Behaviour, Exchange, chunk, model_server, openai, usage
from tests.support.patience import within
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

TRIES_MAX = 2


def configured(folder: Path, base_url: str, more: str = "", kind: str = "openai") -> dict[str, str]:
    """A mesh.toml whose pool is on that server."""
    file = folder / "mesh.toml"
    file.write_text(
        f"""
        [providers.local]
        kind = "{kind}"
        base_url = "{base_url}"
        {more}
        [pools.default]
        provider = "local"
        model = "tiny"
        wait_seconds = 3600
        """
    )
    return {"MESH_CONFIG": str(file), "MESH_MAX_TRIES": str(TRIES_MAX)}


async def no_fault(mesh: Mesh, recorded: Recorded) -> None:
    async with connect(mesh.settings, "test") as connection:
        await until_no_work_is_left(connection)
        assert check(recorded, await read_stored(connection.requests)) == []
    assert mesh.tracebacks() == []


# Restarts


async def loading(exchange: Exchange) -> None:
    """As llama.cpp answers while it loads its model."""
    said = {"message": "Loading model", "type": "unavailable_error", "code": 503}
    await exchange.refuse(503, {"error": said})


async def half(exchange: Exchange) -> None:
    await exchange.begin()
    await exchange.say(chunk({"content": "Hel"}))
    await exchange.gone.wait()


async def test_a_lone_task_outlives_a_restart_of_its_model_server(tmp_path: Path) -> None:
    """The server breaks in mid-turn, is away, and loads its model: for longer than any tries would last."""
    recorded, port = Recorded(), free_port()
    variables = configured(tmp_path, f"http://127.0.0.1:{port}/v1")
    async with running_mesh(tmp_path, *SERVICES, "steward", **variables) as mesh, PatientClient() as client:
        task = await submit(client, mesh.ingress_url, recorded, "hello")

        async def failures(code: str) -> list[dict[str, Any]]:
            return [
                event for event in of_type(await journal_of(mesh, task), "task.retrying") if event["reason"] == code
            ]

        async def more_than_its_tries(code: str) -> bool:
            return len(await failures(code)) > TRIES_MAX

        async def waits_for_a_timer() -> bool:
            return any(event.get("timer") for event in await failures("provider-loading"))

        async def has_begun() -> bool:
            return bool(of_type(await journal_of(mesh, task), "output.delta"))

        await until(lambda: more_than_its_tries("provider-unreachable"))
        async with model_server(half, port) as server:
            await until(has_begun)
            server.behave = loading
            for exchange in server.exchanges:
                exchange.drop()
            await until(waits_for_a_timer)
            server.behave = openai
            recorded.histories.append(await Viewer(str(mesh.settings.edge_address), task).follow())
        journal = await journal_of(mesh, task)
        assert of_type(journal, "task.completed")[0]["output"] == "Hello"
        assert [event["reason"] for event in of_type(journal, "turn.restarted")] == ["retry"]
        tries = [event["tries"] for event in of_type(journal, "task.retrying")]
        assert tries == list(range(1, len(tries) + 1))
        await no_fault(mesh, recorded)


async def test_many_tasks_outlive_a_restart_of_their_model_server(tmp_path: Path) -> None:
    """Enough of them to open the breaker: some wait for a timer, some in hand, and some are not begun."""
    recorded, port = Recorded(), free_port()
    breaker = "breaker = { samples_min = 4, open_seconds = 1, open_seconds_max = 2 }"
    variables = configured(tmp_path, f"http://127.0.0.1:{port}/v1", breaker)
    services = (*SERVICES, "inference_worker", "steward")
    async with running_mesh(tmp_path, *services, **variables) as mesh, PatientClient() as client:
        first = await submit(client, mesh.ingress_url, recorded, "hello")

        async def failures() -> int:
            return len(of_type(await journal_of(mesh, first), "task.retrying"))

        async def has_failed() -> bool:
            return await failures() > 0

        await until(has_failed)
        tasks = [first, *[await submit(client, mesh.ingress_url, recorded, "hello") for _ in range(20)]]
        await until(lambda: any(line.get("event") == "breaker.opened" for line in mesh.logs()))
        await until(lambda: sum(line.get("event") == "breaker.half_open" for line in mesh.logs()) > TRIES_MAX)
        async with model_server(openai, port):
            viewers = [Viewer(str(mesh.settings.edge_address), task) for task in tasks]
            recorded.histories += await asyncio.gather(*(viewer.follow() for viewer in viewers))
        for task in tasks:
            assert of_type(await journal_of(mesh, task), "task.completed")[0]["output"] == "Hello"
        await no_fault(mesh, recorded)


async def test_a_server_that_stays_away_leaves_a_dead_letter_once_its_time_is_over(tmp_path: Path) -> None:
    variables = configured(tmp_path, f"http://127.0.0.1:{free_port()}/v1", "away_seconds = 0.1")
    async with (
        running_mesh(tmp_path, "ingress", "inference_worker", **variables) as mesh,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        task = (await client.post("/v1/tasks", json={"input": "hello"})).json()["id"]
        record = await dead_lettered(client, task)
        assert record["error"]["code"] == "provider-unreachable"


async def test_a_deadline_ends_a_task_that_waits_for_its_server(tmp_path: Path) -> None:
    recorded = Recorded()
    variables = configured(tmp_path, f"http://127.0.0.1:{free_port()}/v1")
    async with running_mesh(tmp_path, *SERVICES, "steward", **variables) as mesh:
        task = await run_task(mesh, recorded, "hello", deadline_seconds=1)
        journal = await journal_of(mesh, task)
        assert journal[-1]["type"] in ("task.expired", "task.completed")
        await no_fault(mesh, recorded)


async def dead_lettered(client: PatientClient, task: str) -> dict[str, Any]:
    """The record, once it is a dead letter."""
    record: dict[str, Any] = {}

    async def is_dead() -> bool:
        record.update((await client.get(f"/v1/tasks/{task}")).json())
        return bool(record["status"] == "dead_lettered")

    await until(is_dead)
    return record


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (404, {"error": {"message": 'model "tiny" not found, try pulling it first'}}, "model-not-found"),
        (404, {"detail": "Not Found"}, "provider-error"),
        (
            400,
            [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key."}}],
            "provider-unauthorized",
        ),
    ],
    ids=["a model that is not pulled", "a wrong path", "a wrong key"],
)
async def test_what_the_operator_has_to_mend_does_not_end_a_task(
    tmp_path: Path, status: int, body: object, code: str
) -> None:
    async def refusing(exchange: Exchange) -> None:
        await exchange.refuse(status, body)

    async with (
        model_server(refusing) as server,
        running_mesh(
            tmp_path, "ingress", "steward", "inference_worker", **configured(tmp_path, server.base_url)
        ) as mesh,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        task = (await client.post("/v1/tasks", json={"input": "hello"})).json()["id"]
        assert (await dead_lettered(client, task))["error"]["code"] == code
        assert len(server.exchanges) == 1
        server.behave = openai
        assert (await client.post(f"/v1/dead-letters/{task}/replay", json={})).status_code == 202

        async def completed() -> bool:
            return bool((await client.get(f"/v1/tasks/{task}")).json()["status"] == "completed")

        await until(completed)


# Takeovers

BEGUN, REST = "Once upon a while there was ", "a server."


async def begins(exchange: Exchange) -> None:
    """The beginning of an answer of either wire."""
    await exchange.begin()
    if exchange.path.endswith("/messages"):
        await exchange.send(encoded([started(), *messages_server.text(0, BEGUN)[:-1]]))
    else:
        await exchange.say(chunk({"content": BEGUN}))
    await exchange.gone.wait()


def says(text: str) -> Behaviour:
    """A whole answer of either wire, whatever is asked."""

    async def behave(exchange: Exchange) -> None:
        if exchange.path.endswith("/messages"):
            await saying(started(), messages_server.text(0, text[:7], text[7:]), messages_server.ended("end_turn", 4))(
                exchange
            )
            return
        await exchange.begin()
        await exchange.say(chunk({"content": text[:7]}), chunk({"content": text[7:]}), chunk({}, "stop"), usage(9, 4))
        await exchange.send(DONE)
        await exchange.end()

    return behave


@pytest.mark.parametrize(
    ("kind", "more", "answer", "restarts"),
    [
        pytest.param("anthropic", "", BEGUN + REST, ["takeover"], id="a server that only speaks Anthropic's wire"),
        pytest.param("anthropic", "prefill = true", REST, [], id="one that continues"),
        pytest.param("anthropic", "prefill = true", BEGUN + REST, [], id="one that repeats the text"),
        pytest.param("anthropic", "prefill = true", "Once upon a while it was", ["retry"], id="one that begins anew"),
        pytest.param("openai", 'continue_prefix = "vllm"', BEGUN + REST, [], id="a repetition on OpenAI's wire"),
    ],
)
async def test_after_a_takeover_no_text_is_there_twice(
    tmp_path: Path, kind: str, more: str, answer: str, restarts: list[str]
) -> None:
    recorded = Recorded()
    async with model_server(begins) as server:
        base_url = server.base_url if kind == "openai" else server.base_url.removesuffix("/v1")
        variables = configured(tmp_path, base_url, more, kind)
        async with running_mesh(tmp_path, *SERVICES, MESH_ACK_WAIT_SECONDS="1", **variables) as mesh:
            async with PatientClient() as client:
                task = await submit(client, mesh.ingress_url, recorded, "hello")
            viewer = Viewer(str(mesh.settings.edge_address), task)
            following = asyncio.create_task(viewer.follow())
            await until(lambda: any("output.delta" in frame for frame in viewer.history.frames))
            server.behave = says(answer)
            await mesh.processes[-1].kill()
            await mesh.start("inference_worker")
            async with within(60):
                recorded.histories.append(await following)
            journal = await journal_of(mesh, task)
            whole = answer if "retry" in restarts else BEGUN + REST
            assert of_type(journal, "task.completed")[0]["output"] == whole
            assert [event["reason"] for event in of_type(journal, "turn.restarted")] == restarts
            await no_fault(mesh, recorded)


# What must return


SIGNED = {"google": {"thought_signature": "c2ln"}}


class Demanding:
    """A server that refuses what several refuse: ids of calls that are not Mistral's, calls without their reasoning."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    async def __call__(self, exchange: Exchange) -> None:
        messages = exchange.body["messages"]
        self.calls = [call for message in messages for call in message.get("tool_calls", ())]
        answered = [message["tool_call_id"] for message in messages if message["role"] == "tool"]
        nine = all(re.fullmatch("[a-zA-Z0-9]{9}", call["id"]) for call in self.calls)
        thought = all("reasoning_content" in message for message in messages if "tool_calls" in message)
        if (
            not nine
            or not thought
            or answered != [call["id"] for call in self.calls]
            or len(set(answered)) < len(answered)
        ):
            await exchange.refuse(400, {"error": {"message": f"no: {messages}"}})
        elif messages[-1]["role"] == "user":
            function = {"name": "nothing", "arguments": "{}"}
            call = {"index": 0, "id": "call_0", "type": "function", "function": function, "extra_content": SIGNED}
            await exchange.begin()
            await exchange.say(chunk({"reasoning_content": "Hm."}), chunk({"tool_calls": [call]}))
            await exchange.say(chunk({}, "tool_calls"), usage(9, 2))
            await exchange.send(DONE)
            await exchange.end()
        else:
            await openai(exchange)


async def test_what_a_provider_gave_with_a_call_returns_to_it_and_to_nobody_else(tmp_path: Path) -> None:
    recorded, demanding, other = Recorded(), Demanding(), Demanding()
    async with model_server(demanding) as server, model_server(other) as elsewhere:
        variables = configured(tmp_path, server.base_url, 'reasoning_field = "reasoning_content"')
        file = tmp_path / "mesh.toml"
        more = f"""
        [providers.other]
        kind = "openai"
        base_url = "{elsewhere.base_url}"
        reasoning_field = "reasoning_content"
        [pools.other]
        provider = "other"
        model = "tiny"
        """
        file.write_text(file.read_text() + more)
        async with running_mesh(tmp_path, *SERVICES, "steward", **variables) as mesh:
            task = await run_task(mesh, recorded, "hello")
            (call,) = demanding.calls
            assert call["extra_content"] == SIGNED
            first_turn = of_type(await journal_of(mesh, task), "turn.completed")[0]
            assert first_turn["blocks"] == [{"type": "call_fields", "index": 0, "extra_content": SIGNED}]

            again = await run_task(mesh, recorded, "and now?", continues=task)
            assert [call.get("extra_content") for call in demanding.calls] == [SIGNED, SIGNED]
            await run_task(mesh, recorded, "and there?", continues=again, pool="other")
            assert [call.get("extra_content") for call in other.calls] == [None, None, SIGNED]
            await no_fault(mesh, recorded)
