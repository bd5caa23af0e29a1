"""`meshctl` against a mesh of a test's own, into a pipe."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from tests.support import children
from tests.support.children import PIPE
from tests.support.processes import Mesh

MESHCTL = [sys.executable, "-m", "meshctl"]


def environment_of(mesh: Mesh) -> dict[str, str]:
    """With what a command finds the mesh."""
    return mesh.environment | {"MESH_INGRESS_URL": mesh.ingress_url, "MESH_EDGE_URL": mesh.edge_url}


async def started(mesh: Mesh, *arguments: str) -> asyncio.subprocess.Process:
    """A command that runs."""
    return await children.begin([*MESHCTL, *arguments], environment_of(mesh), stdout=PIPE, stderr=PIPE)


async def meshctl(mesh: Mesh, *arguments: str, status: int = 0) -> list[dict[str, Any]]:
    """Run a command that ends with this status; the lines that it prints."""
    ended = await children.run([*MESHCTL, *arguments], environment_of(mesh))
    assert ended.returncode == status, (ended.stdout[-2_000:], ended.stderr[-2_000:])
    return [json.loads(line) for line in ended.stdout.splitlines()]
