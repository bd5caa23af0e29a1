"""docs/access.md: each command as printed, against a mesh of `meshctl up` that asks for keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import read_page
from tests.support.up import meshctl
from tests.support.walks import Walk, page_mesh

pytestmark = pytest.mark.acceptance

PAGE = read_page("docs/access.md")
WALKS = (PAGE,)
FIRST = "3f9k2m7q1x8z5b0c"
VARIES = (r"tm_[0-9a-z]{16}_\S+", r"\b[0-9a-z]{16}\b")
"""Keys, and their ids."""


async def keys_of(walk: Walk, *arguments: str) -> list[dict[str, Any]]:
    """What `meshctl keys` says into a pipe."""
    ended = await meshctl("keys", *arguments, environment=walk.environment)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


async def with_a_key(walk: Walk) -> None:
    """The reader has written down a key like that of the page."""
    [made] = await keys_of(walk, "create", "--tenant", "acme", "--scopes", "submit,read")
    walk.environment["MESH_API_KEY"] = made["key"]


async def with_the_pages_key(walk: Walk) -> None:
    """The id that the page shows is that of the key that was made on it."""
    first = next(key for key in await keys_of(walk, "list") if key["name"] == "shop")
    walk.examples.put(FIRST, first["id"])


async def test_the_page_works_as_printed(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text('[auth]\nmode = "keys"\n')
    before = {
        'curl -s localhost:8080/v1/tasks -H "Authorization: Bearer $MESH_API_KEY"': with_a_key,
        "meshctl keys list": with_the_pages_key,
    }
    with page_mesh(tmp_path, MESH_CONFIG=str(file)) as mesh:
        await Walk(mesh, before=before, varies=VARIES).through(PAGE)
