"""Prometheus' text of real processes: what each measures, and what a steward and an ingress tell of the whole mesh."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.broker.connection import Connection, connect
from tests.support.checker import Recorded
from tests.support.clients import Viewer, submit
from tests.support.http_client import PatientClient
from tests.support.patience import stretched
from tests.support.processes import running_mesh
from tests.support.prometheus import samples, series, values
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance

SERVICES = ("ingress", "stream_edge", "inference_worker", "tool_runner", "steward")
OPS = {"MESH_OPS_ADDRESS": "127.0.0.1:0", "MESH_ACK_WAIT_SECONDS": "1"}
ROUNDS_SECONDS = 40.0
"""Two rounds of whoever tells figures, and the time that a busy machine takes for them."""


class Scraper:
    """Fetches what processes measure, as Prometheus would."""

    def __init__(self, connection: Connection, client: PatientClient) -> None:
        self._connection = connection
        self._client = client
        self._addresses: dict[str, str] = {}
        self.text = ""

    async def fetch(self, service: str) -> str:
        """The text of one process of a service."""
        if service not in self._addresses:
            told = json.loads((await self._connection.requests.one(f"$SRV.PING.{service}")).data)
            self._addresses[service] = told["metadata"]["ops"]
        answer = await self._client.get(f"http://{self._addresses[service]}/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        self.text = answer.text
        return answer.text

    async def until_told(self, service: str, name: str, holds: Callable[[dict[tuple[str, ...], float]], bool]) -> None:
        """Wait until the values of one metric are such."""

        async def are() -> bool:
            return holds(values(await self.fetch(service), name))

        await until(are, seconds=ROUNDS_SECONDS)


async def test_each_process_tells_prometheus_what_it_measures(tmp_path: Path) -> None:
    async with (
        running_mesh(tmp_path, *SERVICES, **OPS) as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient() as client,
    ):
        scraper = Scraper(connection, client)
        task = await submit(client, mesh.ingress_url, Recorded(), "!say 20")
        await Viewer(str(mesh.settings.edge_address), task).follow()
        names = series()
        for service in SERVICES:
            found = samples(await scraper.fetch(service))
            ours = [sample for sample in found if sample.name.startswith(("taskmesh_", "gen_ai_"))]
            for sample in ours:
                assert sample.labels.keys() <= names[sample.name], sample
            assert values(scraper.text, "taskmesh_broker_connected") == {(): 1}
            target = next(sample for sample in found if sample.name == "target_info")
            assert target.labels["service_name"] == f"taskmesh-{service}"
        accepted = values(await scraper.fetch("ingress"), "taskmesh_task_accepted_total")
        assert accepted == {("default", "normal"): 1}
        await scraper.until_told(
            "inference_worker",
            "taskmesh_task_duration_seconds_count",
            lambda ended: ended == {("default", "completed"): 1},
        )
        assert values(scraper.text, "gen_ai_client_token_usage_sum")[("chat", "scripted", "scripted", "output")] == 20
        await scraper.until_told("ingress", "taskmesh_tasks_listed", lambda listed: listed.get(("completed",)) == 1)
        await scraper.until_told("ingress", "taskmesh_statistics_age_seconds", lambda age: 0 <= age.get((), -1) < 60)
        await scraper.until_told("steward", "taskmesh_tool_runners", lambda runners: runners.get(("add",)) == 1)
        told = {(service,): 1 for service in SERVICES}
        await scraper.until_told("steward", "taskmesh_workers_alive", lambda alive: alive == told)
        assert values(scraper.text, "taskmesh_pool_workers") == {("default",): 1}
        assert values(scraper.text, "taskmesh_fleet_builds") == {(): 1}
        assert values(scraper.text, "taskmesh_fleet_configurations") == {(): 1}
        await scraper.until_told("ingress", "taskmesh_fleet_findings", lambda found: set(found.values()) == {0})
        await scraper.until_told("steward", "taskmesh_storage_messages", lambda stored: stored[("EVENTS",)] > 0)
        assert values(scraper.text, "taskmesh_storage_limit_bytes")[("EVENTS",)] > 0
        lags = values(scraper.text, "taskmesh_retention_lag_seconds")
        assert lags.pop(("counting",)) < stretched(60)
        assert lags == {("deltas",): 0, ("packing",): 0, ("packs",): 0}
        # Whoever has no broker still tells that, and a steward goes on telling once it is back.
        await mesh.broker.kill()
        await scraper.until_told("steward", "taskmesh_broker_connected", lambda connected: connected == {(): 0})
        await mesh.broker.start()
        await connection.requests.publish("tools.of_nobody", b"{}")
        await scraper.until_told("steward", "taskmesh_tool_depth", lambda depth: depth.get(("of_nobody",)) == 1)
        assert not mesh.tracebacks()


async def test_a_steward_tells_what_waits_who_is_frozen_and_who_has_come(tmp_path: Path) -> None:
    async with (
        running_mesh(tmp_path, "ingress", **OPS) as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient() as client,
    ):
        scraper = Scraper(connection, client)
        body = {"input": "!say 1", "priority": "high", "deadline_seconds": 3600}
        for _ in range(3):
            assert (await client.post(f"{mesh.ingress_url}/v1/tasks", json=body)).status_code == 202
        await connection.requests.publish("tools.of_nobody", b"{}")
        await mesh.start("steward")
        high = ("default", "high", "TASKS")
        await scraper.until_told("steward", "taskmesh_lane_depth", lambda depth: depth.get(high) == 3)
        assert values(scraper.text, "taskmesh_lane_depth")["default", "low", "TASKS"] == 0
        assert values(scraper.text, "taskmesh_lane_oldest_age_seconds")[high] > 0
        assert values(scraper.text, "taskmesh_tool_depth")[("of_nobody",)] == 1
        await scraper.until_told("steward", "taskmesh_pool_workers", lambda workers: workers == {("default",): 0})
        await scraper.until_told("ingress", "taskmesh_fleet_findings", lambda found: found.get(("services",)) == 1)
        await scraper.until_told(
            "steward", "taskmesh_timers_waiting", lambda timers: timers.get(("deadline",)) == 3 and len(timers) > 1
        )
        await scraper.until_told("ingress", "taskmesh_tasks_listed", lambda listed: listed.get(("queued",)) == 3)

        frozen = await mesh.start("inference_worker")
        await scraper.until_told("steward", "taskmesh_lane_depth", lambda depth: depth.get(high) == 0)
        await scraper.until_told(
            "steward", "taskmesh_process_starts_total", lambda starts: starts.get(("inference_worker",)) == 1
        )
        frozen.signal(signal.SIGSTOP)
        try:
            await scraper.until_told(
                "steward", "taskmesh_workers_silent", lambda silent: silent.get(("inference_worker",)) == 1
            )
            assert values(scraper.text, "taskmesh_pool_workers") == {("default",): 0}
        finally:
            frozen.signal(signal.SIGCONT)
        assert not mesh.tracebacks()
