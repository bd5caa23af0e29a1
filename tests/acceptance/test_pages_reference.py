"""docs/reference: the commands of the rendered pages, as printed. They need no mesh."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from subprocess import STDOUT

import pytest

from tests.support import children
from tests.support.pages import ROOT, Command, Examples, read_page

pytestmark = pytest.mark.acceptance

SETTINGS = read_page("docs/reference/settings.md")
MESH_TOML = read_page("docs/reference/mesh-toml.md")
WALKS = (SETTINGS, MESH_TOML)


async def run(command: Command, folder: Path) -> str:
    """What a command prints in a folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    variables = {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ended = await children.run(["sh", "-c", command.text], variables, cwd=folder, stderr=STDOUT)
    return ended.stdout


@pytest.mark.parametrize("command", SETTINGS.commands, ids=lambda command: command.text)
async def test_a_wrong_setting_is_named_as_the_page_shows(command: Command, tmp_path: Path) -> None:
    assert command.output is not None
    assert Examples({}).missed(command.output, await run(command, tmp_path)) is None
    assert not list(tmp_path.iterdir()), "nothing was started"


async def test_the_example_becomes_a_file(tmp_path: Path) -> None:
    [command] = MESH_TOML.commands
    assert await run(command, tmp_path) == ""
    assert (tmp_path / "mesh.toml").read_bytes() == (ROOT / "mesh.example.toml").read_bytes()
