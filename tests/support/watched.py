"""A mesh that something happens to, and what doctor, readiness, metrics and `why` say of it."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from tests.support.http_client import PatientClient
from tests.support.incidents import Incident
from tests.support.otlp_receiver import OtlpReceiver
from tests.support.processes import Mesh
from tests.support.up import ENVIRONMENT, meshctl
from tests.support.waiting import until

SECONDS_MAX: Final = 15
"""Within so many, on a quiet machine, an incident is told."""
METRIC: Final = "taskmesh.fleet.findings"


class Watched:
    """A mesh, and what it says of itself."""

    def __init__(self, mesh: Mesh, client: PatientClient, receiver: OtlpReceiver) -> None:
        self.mesh = mesh
        self.incidents: list[Incident] = []
        self._client = client
        self._receiver = receiver
        self._seen = 0

    async def submit(self, text: str, **body: Any) -> str:
        """A task's id."""
        answer = await self._client.post(f"{self.mesh.ingress_url}/v1/tasks", json={"input": text, **body})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def doctor(self, **variables: str) -> tuple[int, dict[str, dict[str, str]]]:
        """What the doctor says, by check."""
        return await doctor({**self.mesh.environment, **variables})

    async def pause(self, what: str, **body: object) -> None:
        """Shut a valve: `pool/default`."""
        answer = await self._client.put(f"{self.mesh.ingress_url}/v1/valves/{what}", json=body)
        assert answer.status_code == 200, answer.text

    async def readiness(self) -> tuple[int, dict[str, dict[str, Any]]]:
        """The status of readiness, and its checks."""
        answer = await self._client.get(f"{self.mesh.ingress_url}/health/ready")
        return answer.status_code, {check["name"]: check for check in answer.json()["checks"]}

    def measured(self, check: str) -> bool:
        """Whether the last point of the metric says that a check is not well."""
        points = [one for one in self._receiver.metrics(METRIC) if one["attributes"].get("taskmesh.check") == check]
        return bool(points) and points[-1]["value"] == 1

    async def waiting(self, task: str) -> dict[str, Any]:
        """What a task waits for."""
        answer = await self._client.get(f"{self.mesh.ingress_url}/v1/tasks/{task}")
        waiting: dict[str, Any] = answer.json().get("waiting") or {}
        return waiting

    async def until_waits(self, task: str, on: str) -> str:
        """Wait until a task waits for something, and say it as `meshctl why` does."""

        async def waits() -> bool:
            return (await self.waiting(task)).get("on") == on

        try:
            await until(waits, SECONDS_MAX)
        except TimeoutError:
            pytest.fail(f"it does not wait for {on}, but: {await self.waiting(task)}")
        return str((await self.waiting(task))["detail"])

    async def why(self, task: str) -> dict[str, Any]:
        """What `meshctl why` says."""
        answer = await meshctl("why", task, environment={**ENVIRONMENT, "MESH_INGRESS_URL": self.mesh.ingress_url})
        assert (answer.returncode, answer.stderr) == (0, "")
        said: dict[str, Any] = json.loads(answer.stdout)
        return said

    async def until_told(self, *checks: str, seconds: float = SECONDS_MAX) -> dict[str, dict[str, Any]]:
        """Wait until readiness and the metric tell of these checks; what readiness says."""

        async def told() -> bool:
            _, ready = await self.readiness()
            return ready.keys() >= set(checks) and all(map(self.measured, checks))

        try:
            await until(told, seconds)
        except TimeoutError:
            unsaid = set(checks) - (await self.readiness())[1].keys()
            unmeasured = [check for check in checks if not self.measured(check)]
            pytest.fail(f"readiness does not say {unsaid}, the metric does not say {unmeasured}")
        return (await self.readiness())[1]


async def doctor(environment: dict[str, str]) -> tuple[int, dict[str, dict[str, str]]]:
    """What the doctor says, by check."""
    answer = await meshctl("doctor", environment=environment)
    assert answer.stderr == ""
    lines = [json.loads(line) for line in answer.stdout.splitlines()]
    return answer.returncode, {line["check"]: line for line in lines}


def said(lines: dict[str, dict[str, str]], check: str) -> str:
    """A line of the doctor's that is not well, for the table."""
    line = lines[check]
    assert line["status"] in ("fail", "warn"), line
    warn = " (`warn`)" if line["status"] == "warn" else ""
    return f"`{check}`{warn}: {line['detail']} → {line['remedy']}"


def shown(checks: dict[str, dict[str, Any]], check: str) -> str:
    """What readiness says of a check, for the table."""
    assert checks[check]["ok"] is True
    return f"`{check}`: {checks[check]['detail']}"
