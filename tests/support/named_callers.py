"""HTTP services whose callers say who they are: `python -m tests.support.named_callers ingress`.

The door is a test's own: `Authorization: Bearer <name> <tenant> <scope>,<scope>` is believed. All behind it is real.
"""

from __future__ import annotations

import sys
from typing import Any, cast

from litestar.types import HTTPScope

import ingress.__main__ as ingress_service
import stream_edge.__main__ as edge_service
from contracts.access import SCOPES
from mesh.access.callers import Identity
from mesh.serving.http import RequestRefused
from mesh.serving.service import run

MODULE = "tests.support.named_callers"


def shows(name: str, *scopes: str, tenant: str = "default") -> dict[str, str]:
    """The headers of a caller; without scopes they have all."""
    return {"Authorization": f"Bearer {name} {tenant} {','.join(scopes or SCOPES)}"}


async def named_door(scope: HTTPScope) -> Identity:
    """Who asks, as they say."""
    shown = next((value.decode() for name, value in scope["headers"] if name == b"authorization"), "")
    parts = shown.split(" ")
    if len(parts) != 4:
        raise RequestRefused("unauthorized", "who asks has to say who they are")
    return Identity(parts[1], parts[2], cast("Any", frozenset(parts[3].split(","))))


if __name__ == "__main__":
    service: Any = {"ingress": ingress_service, "stream_edge": edge_service}[sys.argv[1]]
    service.open_door = named_door
    run(sys.argv[1], service.main)
