"""Traces and metrics as a real OTLP receiver gets them; and that telemetry costs nobody a task."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from contracts.triggers.rules import TriggerRule, TriggerSource
from mesh.broker.connection import connect
from mesh.rules import trigger_bucket
from mesh.telemetry.exporting import FLUSH_SECONDS_MAX
from mesh.telemetry.metrics import REGISTRY
from tests.support.broker import free_port
from tests.support.checker import Recorded
from tests.support.clients import Viewer, submit
from tests.support.http_client import PatientClient
from tests.support.model_server import DONE, Exchange, model_server
from tests.support.otlp_receiver import OtlpReceiver
from tests.support.patience import stretched, within
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_METRIC_EXPORT_INTERVAL": "200", "MESH_ACK_WAIT_SECONDS": "1"}
OF_FAILURES_AND_TRIGGERS = (
    "taskmesh.breaker.moves",
    "taskmesh.breaker.open",
    "taskmesh.trigger.refusals",
    "taskmesh.trigger.tasks",
)
OF_A_BROKER_THAT_REFUSES = ("taskmesh.tool.refusals",)
OF_RESULTS = ("taskmesh.result.refusals", "taskmesh.results.swept")
OF_WORKERS_THAT_STOP = ("taskmesh.step.hand_overs", "taskmesh.turn.discarded")
OF_WHAT_IS_NOT_THERE = ("taskmesh.mcp.away", "taskmesh.checks.failing", "taskmesh.tool.runners")
OF_MODEL_SERVERS = ("taskmesh.capacity.limit", "taskmesh.pace.shuts", "taskmesh.routing.choices")
OF_CREDENTIALS = ("taskmesh.http.refusals", "taskmesh.tls.certificate.not_after")
CLIENT_TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT_SPAN = "b7ad6b7169203331"


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[OtlpReceiver]:
    """A running receiver."""
    running = await OtlpReceiver(tmp_path).start()
    yield running
    await running.stop()


def by_name(spans: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Spans under their names."""
    named: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        named.setdefault(span["name"], []).append(span)
    return named


def worker_of(span: dict[str, Any]) -> str:
    """The process that a span is from."""
    return str(span["resource"]["service.instance.id"])


async def test_a_task_whose_worker_is_killed_in_mid_turn_is_one_unbroken_trace(
    tmp_path: Path, receiver: OtlpReceiver
) -> None:
    variables = {**QUICK, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}
    async with running_mesh(tmp_path, "ingress", "stream_edge", **variables) as mesh, PatientClient() as client:
        workers = [await mesh.start("inference_worker") for _ in range(2)]
        accepted = await client.post(
            f"{mesh.ingress_url}/v1/tasks",
            json={"input": "!rate 100\n!say 300"},
            headers={"traceparent": f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01"},
        )
        assert accepted.status_code == 202
        viewer = Viewer(str(mesh.settings.edge_address), accepted.json()["id"])
        following = asyncio.create_task(viewer.follow())
        await until(lambda: "claim turn" in by_name(receiver.spans(CLIENT_TRACE)))
        await until(lambda: len(viewer.history.frames) >= 20)
        first = worker_of(by_name(receiver.spans(CLIENT_TRACE))["claim turn"][0])
        await next(worker for worker in workers if f"-{worker.pid}@" in first).kill()
        await following

        expected = {"POST /v1/tasks", "publish tasks", "claim turn", "turn", "chat scripted", "append events"}
        expected.add("invoke_agent")
        expected.add("GET /v1/tasks/{task}/events")
        await until(lambda: set(by_name(receiver.spans(CLIENT_TRACE))) >= expected)
        spans = receiver.spans(CLIENT_TRACE)
        assert receiver.spans() == spans, "there is no other trace"
        named = by_name(spans)
        assert set(named) == expected
        # Unbroken: each span's parent is in the trace, but for the one that hangs under the client's own.
        ids = {span["span"] for span in spans}
        assert [span["name"] for span in spans if span["parent"] not in ids] == ["POST /v1/tasks"]
        assert named["POST /v1/tasks"][0]["parent"] == CLIENT_SPAN
        # Both workers hang under the submission; the turn of the one that was killed is lost with it.
        submission = named["publish tasks"][0]
        assert [claim["parent"] for claim in named["claim turn"]] == [submission["span"]] * 2
        assert [claim["attributes"]["taskmesh.delivery"] for claim in named["claim turn"]] == [1, 2]
        assert len({worker_of(claim) for claim in named["claim turn"]}) == 2
        (turn,), (chat,), (appends,) = named["turn"], named["chat scripted"], named["append events"]
        assert turn["parent"] == named["claim turn"][1]["span"]
        assert worker_of(turn) != first
        assert (chat["parent"], appends["parent"]) == (turn["span"], turn["span"])
        assert [
            named[name][0]["kind"].removeprefix("SPAN_KIND_")
            for name in ("POST /v1/tasks", "publish tasks", "claim turn", "turn", "chat scripted")
        ] == ["SERVER", "PRODUCER", "CONSUMER", "CONSUMER", "CLIENT"]
        assert chat["attributes"]["gen_ai.operation.name"] == "chat"
        assert chat["attributes"]["gen_ai.usage.output_tokens"] == 300
        assert chat["attributes"]["gen_ai.provider.name"] == chat["attributes"]["taskmesh.provider"] == "scripted"
        (whole,) = named["invoke_agent"]
        assert whole["parent"] == submission["span"]
        assert whole["attributes"]["gen_ai.conversation.id"] == accepted.json()["id"]
        assert whole["attributes"]["taskmesh.status"] == "completed"
        assert appends["attributes"]["taskmesh.append.count"] >= 3
        assert {span["attributes"].get("taskmesh.task") for span in (submission, turn)} == {accepted.json()["id"]}


async def test_the_steps_of_an_agent_are_spans_beside_each_other(tmp_path: Path, receiver: OtlpReceiver) -> None:
    variables = {**QUICK, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}
    services = ("ingress", "stream_edge", "inference_worker", "tool_runner")
    script = '!call calculator {"expression": "1"}\n!then\n!call calculator {"expression": "2"}\n!then\n!say 3'
    async with running_mesh(tmp_path, *services, **variables) as mesh, PatientClient() as client:
        answer = await client.post(
            f"{mesh.ingress_url}/v1/tasks",
            json={"input": script, "tools": ["calculator"]},
            headers={"traceparent": f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01", "Prefer": "wait=30"},
            timeout=60,
        )
        assert answer.json()["status"] == "completed", answer.text
        counts = {
            "claim turn": 3,
            "turn": 3,
            "claim call calculator": 2,
            "execute_tool calculator": 2,
            "invoke_agent": 1,
        }

        def all_there() -> bool:
            named = by_name(receiver.spans(CLIENT_TRACE))
            return {name: len(named.get(name, [])) for name in counts} == counts

        await until(all_there)
        named = by_name(receiver.spans(CLIENT_TRACE))
        submission = named["publish tasks"][0]["span"]
        for name in ("claim turn", "claim call calculator", "invoke_agent"):
            assert {span["parent"] for span in named[name]} == {submission}, name
        claims = {span["span"] for span in named["claim call calculator"]}
        assert {span["parent"] for span in named["execute_tool calculator"]} == claims
        calls = named["execute_tool calculator"]
        call = calls[0]
        assert call["kind"] == "SPAN_KIND_INTERNAL"
        assert call["attributes"]["gen_ai.operation.name"] == "execute_tool"
        assert call["attributes"]["gen_ai.tool.name"] == "calculator"
        assert {span["attributes"]["gen_ai.tool.call.id"] for span in named["execute_tool calculator"]} == {
            "1-0",
            "2-0",
        }


async def answers(exchange: Exchange) -> None:
    """Two chunks of a completion, as a server that names itself."""
    named = {"id": "c1", "model": "small-0711", "object": "chat.completion.chunk"}
    await exchange.begin()
    for delta, reason in (({"content": "Hi"}, None), ({"content": "!"}, None), ({}, "stop")):
        await exchange.say({**named, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
    await exchange.send(DONE)
    await exchange.end()


async def test_a_call_of_a_model_server_says_where_it_went_and_what_answered(
    tmp_path: Path, receiver: OtlpReceiver
) -> None:
    async with model_server(answers) as server:
        file = tmp_path / "mesh.toml"
        file.write_text(
            f'providers.mine = {{ kind = "openai", base_url = "{server.base_url}" }}\n'
            'pools.default = { provider = "mine", model = "small" }\n'
        )
        variables = {**QUICK, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "MESH_CONFIG": str(file)}
        services = ("ingress", "stream_edge", "inference_worker")
        async with running_mesh(tmp_path, *services, **variables) as mesh, PatientClient() as client:
            await submit(client, mesh.ingress_url, Recorded(), "hello")
            await until(lambda: "chat small" in by_name(receiver.spans()))
            (chat,) = by_name(receiver.spans())["chat small"]
            port = urlsplit(server.base_url).port
            await until(lambda: bool(receiver.metrics("gen_ai.client.operation.time_per_output_chunk")))
    told = {name: value for name, value in chat["attributes"].items() if name.startswith(("gen_ai.re", "server."))}
    assert chat["attributes"]["gen_ai.provider.name"] == "openai"
    assert chat["attributes"]["taskmesh.provider"] == "mine"
    assert (told["server.address"], int(told["server.port"])) == ("127.0.0.1", port)
    assert (told["gen_ai.response.id"], told["gen_ai.response.model"]) == ("c1", "small-0711")
    point = receiver.metrics("gen_ai.client.operation.time_to_first_chunk")[-1]
    assert point["attributes"]["server.address"] == "127.0.0.1"


async def test_a_viewer_with_a_trace_of_its_own_is_linked_to_the_tasks(tmp_path: Path, receiver: OtlpReceiver) -> None:
    variables = {**QUICK, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}
    services = ("ingress", "stream_edge", "inference_worker")
    async with running_mesh(tmp_path, *services, **variables) as mesh, PatientClient() as client:
        task = await submit(client, mesh.ingress_url, Recorded(), "hello")
        headers = {"traceparent": f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01"}
        await client.get(f"{mesh.edge_url}/v1/tasks/{task}/events", headers=headers, timeout=30)
        await until(lambda: receiver.spans(CLIENT_TRACE) != [])
        await until(lambda: "turn" in by_name(receiver.spans()))
        (delivery,) = receiver.spans(CLIENT_TRACE)
        assert delivery["parent"] == CLIENT_SPAN
        assert delivery["links"] == [by_name(receiver.spans())["turn"][0]["trace"]]


async def test_every_metric_of_the_registry_but_those_of_failures_and_triggers_arrives(
    tmp_path: Path, receiver: OtlpReceiver
) -> None:
    variables = {**QUICK, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "MESH_SCRIPTED_ALLOW_EXIT": "1"}
    async with running_mesh(tmp_path, "ingress", "stream_edge", **variables) as mesh, PatientClient() as client:
        dying = await mesh.start("inference_worker")
        task = await submit(client, mesh.ingress_url, Recorded(), "!exit 1\n!say 40")
        following = asyncio.create_task(Viewer(str(mesh.settings.edge_address), task).follow())
        await until(lambda: not dying.is_running)
        await mesh.start("inference_worker")
        await following
        await _run_tasks(mesh, 1)  # What only a whole turn tells: the first worker's figures died with it.
        refused = await client.post(f"{mesh.ingress_url}/v1/tasks", json={"input": "x", "pool": "nowhere"})
        assert refused.status_code == 400
        await mesh.start("steward", MESH_PACK_AFTER_HOURS="0.0003")
        expected = {
            name: i.unit
            for name, i in REGISTRY.items()
            if name
            not in (
                *OF_FAILURES_AND_TRIGGERS,
                *OF_A_BROKER_THAT_REFUSES,
                *OF_RESULTS,
                *OF_WORKERS_THAT_STOP,
                *OF_WHAT_IS_NOT_THERE,
                *OF_MODEL_SERVERS,
                *OF_CREDENTIALS,
            )
        }
        await until(lambda: {point["name"] for point in receiver.metrics()} >= set(expected))
        points = receiver.metrics()
        assert {point["name"]: point["unit"] for point in points} == expected
        # No point carries more than its entry says: few attributes, of few values.
        for point in points:
            assert set(point["attributes"]) <= set(REGISTRY[point["name"]].attributes), point

        def last(name: str) -> dict[str, Any]:
            return receiver.metrics(name)[-1]

        assert last("taskmesh.submission.refusals")["attributes"] == {"error.type": "invalid-request"}
        await until(lambda: last("gen_ai.client.operation.duration")["count"] == 2)
        assert last("taskmesh.step.redeliveries")["value"] == 1
        assert last("taskmesh.task.duration")["attributes"]["taskmesh.status"] == "completed"
        await until(lambda: last("taskmesh.edge.streams")["value"] == 0)
        assert any(point["value"] == 1 for point in receiver.metrics("taskmesh.edge.streams"))
        tokens = {
            p["attributes"]["gen_ai.token.type"]: p["value"] for p in receiver.metrics("gen_ai.client.token.usage")
        }
        assert tokens["output"] == 40 + 50


async def test_the_metrics_of_failures_and_triggers_arrive(tmp_path: Path, receiver: OtlpReceiver) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text("[providers.scripted]\nkind = 'scripted'\nbreaker = { samples_min = 2, open_seconds = 0.2 }\n")
    variables = {**QUICK, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "MESH_CONFIG": str(file)}
    async with (
        running_mesh(tmp_path, "ingress", "inference_worker", "steward", **variables) as mesh,
        PatientClient() as client,
        connect(mesh.settings, "test") as connection,
    ):
        rule = TriggerRule(name="low", tenant="default", on=TriggerSource(signal="stock"), task={"input": "Buy some"})
        await trigger_bucket.add(connection.requests, rule, replace=False)
        for payload in (b"{}", b"rubbish"):
            await connection.requests.publish("signals.default.stock", payload)
        # What a failing probe is told by is not the step's fault: a second task fails until the breaker is open.
        for _ in range(2):
            await submit(client, mesh.ingress_url, Recorded(), "!fail overloaded 3\n!say 1")
        await until(
            lambda: {point["name"] for point in receiver.metrics()} >= set(OF_FAILURES_AND_TRIGGERS), seconds=60
        )
        points = [point for point in receiver.metrics() if point["name"] in OF_FAILURES_AND_TRIGGERS]
        for point in points:
            assert point["unit"] == REGISTRY[point["name"]].unit
            assert set(point["attributes"]) <= set(REGISTRY[point["name"]].attributes), point
        moved = {point["attributes"]["taskmesh.state"] for point in points if point["name"] == "taskmesh.breaker.moves"}
        assert "open" in moved


async def test_the_metrics_of_what_a_model_server_bears_arrive(tmp_path: Path, receiver: OtlpReceiver) -> None:
    """Two providers have a limit each, one is chosen, and it refuses the first request of all as one too many."""
    asked = 0

    async def refuses_once(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            await exchange.refuse(429, {"error": {"message": "one too many"}}, Retry_After="1")
        else:
            await answers(exchange)

    async with model_server(refuses_once) as server:
        provider = f'{{ kind = "openai", base_url = "{server.base_url}", capacity = {{ signals = "none" }} }}'
        file = tmp_path / "mesh.toml"
        file.write_text(
            f'providers.one = {provider}\nproviders.other = {provider}\n[pools.default]\nprovider = "one"\n'
            'model = "small"\nfallbacks = [{ provider = "other", model = "small" }]\nprefer = "latency"\n'
        )
        variables = {**QUICK, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "MESH_CONFIG": str(file)}
        async with (
            running_mesh(tmp_path, "ingress", "inference_worker", **variables) as mesh,
            PatientClient() as client,
        ):
            await submit(client, mesh.ingress_url, Recorded(), "hello")
            await until(lambda: {point["name"] for point in receiver.metrics()} >= set(OF_MODEL_SERVERS))
            for point in receiver.metrics():
                if point["name"] in OF_MODEL_SERVERS:
                    assert point["unit"] == REGISTRY[point["name"]].unit
                    assert set(point["attributes"]) == set(REGISTRY[point["name"]].attributes), point
                    assert point["attributes"]["taskmesh.provider"] in ("one", "other")
            assert mesh.tracebacks() == []


def test_the_page_has_every_metric_with_its_unit() -> None:
    rows = [[cell.strip(" `") for cell in line.split("|")[1:3]] for line in PAGE.read_text().splitlines()]
    shown = {row[0]: row[1] for row in rows if len(row) == 2 and row[0].partition(".")[0] in ("taskmesh", "gen_ai")}
    assert shown == {name: instrument.unit for name, instrument in REGISTRY.items()}


# A collector that is not there


async def _run_tasks(mesh: Mesh, count: int) -> None:
    """Run tasks to their ends."""
    async with PatientClient() as client:
        for _ in range(count):
            done = await client.post(
                f"{mesh.ingress_url}/v1/tasks", json={"input": "!say 50"}, headers={"Prefer": "wait=20"}, timeout=30
            )
            assert done.status_code == 200
            assert done.json()["status"] == "completed"


@pytest.mark.parametrize("collector", ["away", "silent"])
async def test_a_collector_that_is_away_or_silent_costs_one_log_line_and_two_seconds_at_the_end(
    tmp_path: Path, collector: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # It accepts, and never answers.
        port = listener.getsockname()[1] if collector == "silent" else free_port()
        variables = {**QUICK, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        if collector == "silent":
            variables["OTEL_EXPORTER_OTLP_TIMEOUT"] = f"{stretched(1):.0f}"
        async with running_mesh(tmp_path, "ingress", "inference_worker", **variables) as mesh:
            async with within(10):  # No task waits for the collector.
                await _run_tasks(mesh, 20)
            await until(lambda: len(_complaints(mesh)) == len(mesh.processes))
            await _run_tasks(mesh, 5)
            for process in mesh.processes:
                async with within(FLUSH_SECONDS_MAX + 6):
                    assert await process.stop() == 0
            assert len(_complaints(mesh)) == len(mesh.processes), "one line for each process, whatever fails later"
            assert mesh.tracebacks() == []
            assert [process.log.read_text().count("urllib3") for process in mesh.processes] == [0, 0]


async def test_a_service_ends_in_time_though_its_collector_would_have_ten_seconds_to_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        variables = {
            **QUICK,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{listener.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_TIMEOUT": f"{stretched(10):.0f}",
        }
        async with running_mesh(tmp_path, "ingress", "inference_worker", **variables) as mesh:
            await _run_tasks(mesh, 2)
            async with within(FLUSH_SECONDS_MAX + 6):  # It does not wait for the collector.
                assert await asyncio.gather(*(process.stop() for process in mesh.processes)) == [0, 0]


def _complaints(mesh: Mesh) -> list[dict[str, object]]:
    return [line for line in mesh.logs() if "telemetry" in str(line.get("event"))]


# Nothing set


async def test_without_an_endpoint_no_service_imports_an_exporter(tmp_path: Path, receiver: OtlpReceiver) -> None:
    """Python itself says what a process imports. The same process with an endpoint shows that it would be seen."""
    unset = {name: "" for name in os.environ if name.startswith("OTEL_")}
    said = {"PYTHONPROFILEIMPORTTIME": "1", **unset}
    async with running_mesh(tmp_path, "ingress", "stream_edge", "inference_worker", "tool_runner", **said) as mesh:
        await _run_tasks(mesh, 1)
        imported = {process.service: process.log.read_text() for process in mesh.processes}
        with_endpoint = await mesh.start("tool_runner", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
        assert "opentelemetry.exporter" in with_endpoint.log.read_text()
        for service, log in imported.items():
            assert "mesh.telemetry.traces" in log, service
            for module in (
                "opentelemetry.exporter",
                "opentelemetry.sdk",
                "mesh.telemetry.exporting",
                "google.protobuf",
            ):
                assert module not in log, (service, module)
