"""What tasks cost in the logs of all processes together, at the default level."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.http_client import PatientClient
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance

BYTES_PER_TASK_MAX = 300
BYTES_PER_ACT_MAX = 300
"""Of a line that says who did something, which is no task's but theirs."""
TASKS = 20
SERVICES = ("ingress", "stream_edge", "inference_worker", "tool_runner", "steward")
TENANT = "a-tenant-with-a-name-of-32-chars"

Act = Callable[[PatientClient, str], Awaitable[None]]


async def nothing(client: PatientClient, url: str) -> None:
    """Nobody does anything to the task."""


async def cancel(client: PatientClient, url: str) -> None:
    """Somebody cancels it once it runs."""
    await until(lambda: has_status(client, url, "running"))
    assert (await client.post(f"{url}/cancel")).status_code == 202


async def answer(client: PatientClient, url: str) -> None:
    """Somebody answers the question that it waits with."""
    await until(lambda: has_status(client, url, "waiting"))
    assert (await client.post(f"{url}/inputs", json={"kind": "message", "text": "Red"})).status_code == 202


async def has_status(client: PatientClient, url: str, status: str) -> bool:
    """Whether the task has it now."""
    return bool((await client.get(url)).json()["status"] == status)


async def run(client: PatientClient, mesh: Mesh, request: dict[str, object], act: Act, end: str) -> None:
    """One task, from its submission to its end."""
    accepted = await client.post(f"{mesh.ingress_url}/v1/tasks", json=request)
    assert accepted.status_code == 202, accepted.text
    url = f"{mesh.ingress_url}/v1/tasks/{accepted.json()['id']}"
    await act(client, url)
    await until(lambda: has_status(client, url, end), 60)


def logged_bytes(mesh: Mesh) -> int:
    """What all processes have logged."""
    return sum(process.log.stat().st_size for process in mesh.processes)


async def test_a_task_that_goes_well_costs_one_line_whatever_it_does_and_an_act_one_more(tmp_path: Path) -> None:
    tool = '!call add {"a": 1, "b": 2}\n!then\n'
    spawns = '!call spawn_task {"input": "!say 1"}\n!then\n!say 2'
    kinds: dict[str, tuple[dict[str, object], Act, str]] = {
        "plain": ({"input": "!say 5"}, nothing, "completed"),
        "with a tool": ({"input": f"{tool}!say 2", "tools": ["add"]}, nothing, "completed"),
        "with three turns of tools": ({"input": f"{tool}{tool}{tool}!say 2", "tools": ["add"]}, nothing, "completed"),
        "with a sub-task": ({"input": spawns, "tools": ["spawn_task"]}, nothing, "completed"),
        "with a question": ({"input": "!ask Which?\n!then\n!say 2"}, answer, "completed"),
        "cancelled": ({"input": "!hang 600"}, cancel, "cancelled"),
    }
    async with (
        running_mesh(tmp_path, *SERVICES) as mesh,
        PatientClient(headers={"Mesh-Tenant": TENANT}) as client,
    ):
        for name, (request, act, end) in kinds.items():
            await run(client, mesh, request, act, end)
            before = logged_bytes(mesh)
            await asyncio.gather(*(run(client, mesh, request, act, end) for _ in range(TASKS)))
            each = (logged_bytes(mesh) - before) / TASKS
            ended = 2 if "sub-task" in name else 1
            most = ended * BYTES_PER_TASK_MAX + (BYTES_PER_ACT_MAX if act is not nothing else 0)
            assert 0 < each <= most, f"{name}: {each} bytes"
        assert mesh.tracebacks() == []
