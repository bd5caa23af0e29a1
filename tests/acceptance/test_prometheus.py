"""A real Prometheus beside a real mesh: it scrapes every process, takes the alerts, and answers every dashboard."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from meshctl.reference import dashboards
from meshctl.reference.panels import of_job
from tests.support import children
from tests.support.broker import free_port
from tests.support.checker import Recorded
from tests.support.clients import Viewer, submit
from tests.support.http_client import PatientClient
from tests.support.processes import Mesh, running_mesh
from tests.support.toolchains import REPOSITORY, prometheus
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance

SERVICES = ("ingress", "stream_edge", "inference_worker", "tool_runner", "steward")
ALERTS = REPOSITORY / "deploy" / "observability" / "alerts.yml"


class Prometheus:
    """Its HTTP API."""

    def __init__(self, url: str, client: PatientClient) -> None:
        self._url = url
        self._client = client

    async def get(self, path: str, **parameters: str) -> dict[str, Any]:
        """The data of an answer; fails with Prometheus' own words."""
        answer = await self._client.get(f"{self._url}/api/v1/{path}", params=parameters)
        body = json.loads(answer.text)
        assert body["status"] == "success", f"{parameters}: {body.get('error')}"
        data: dict[str, Any] = body["data"]
        return data

    async def values(self, query: str) -> list[float]:
        """The values of an instant query."""
        return [float(each["value"][1]) for each in (await self.get("query", query=query))["result"]]

    async def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            return (await self._client.get(f"{self._url}/-/ready")).status_code == 200
        except httpx.TransportError:
            return False


@asynccontextmanager
async def running_prometheus(folder: Path, targets: list[str], client: PatientClient) -> AsyncIterator[Prometheus]:
    """One that scrapes these each second."""
    program, port = prometheus("prometheus"), free_port()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": "taskmesh", "static_configs": [{"targets": targets}]}],
    }
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(config))
    log = (folder / "prometheus.log").open("wb")
    process = children.start(
        [
            str(program),
            f"--config.file={file}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        dict(os.environ),
        stdout=log,
        stderr=log,
    )
    try:
        server = Prometheus(f"http://127.0.0.1:{port}", client)
        await until(server.is_ready, seconds=30)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        log.close()


async def _started(mesh: Mesh) -> list[str]:
    """One process of each service, each with an address for operators."""
    targets = []
    for service in SERVICES:
        targets.append(f"127.0.0.1:{free_port()}")
        await mesh.start(service, MESH_OPS_ADDRESS=targets[-1])
    return targets


async def test_prometheus_scrapes_a_mesh_takes_its_alerts_and_answers_its_dashboards(tmp_path: Path) -> None:
    prometheus("prometheus")
    async with running_mesh(tmp_path) as mesh, PatientClient() as client:
        targets = await _started(mesh)
        async with running_prometheus(tmp_path, targets, client) as server:
            task = await submit(client, mesh.ingress_url, Recorded(), "!say 20")
            await Viewer(str(mesh.settings.edge_address), task).follow()

            async def is_told() -> bool:
                scraped = await server.values("sum(up) == 5")
                looked = await server.values("taskmesh_timers_waiting and on () taskmesh_tasks_listed")
                alive = await server.values('max(taskmesh_workers_alive{taskmesh_service="inference_worker"}) == 1')
                return bool(scraped and looked and alive)

            await until(is_told, seconds=60)
            groups = (await server.get("rules"))["groups"]
            rules = [rule for group in groups for rule in group["rules"]]
            assert len(rules) == ALERTS.read_text().count("- alert: ")
            assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
            firing = [rule["name"] for rule in rules if rule["state"] == "firing"]
            assert firing == []
            for board in dashboards.DASHBOARDS:
                for panel in board.panels:
                    for query in panel.queries:
                        asked = of_job(query.expression).replace("$__rate_interval", "1m").replace("$job", "taskmesh")
                        await server.get("query", query=asked)
            assert await server.values("sum(taskmesh_task_accepted_total)") == [1]
            assert await server.values("sum by (x) (gen_ai_client_token_usage_sum{gen_ai_token_type='output'})") == [20]
