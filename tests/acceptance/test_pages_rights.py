"""docs/rights.md: its commands as printed, and a server that runs what they print."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Final

import nats
import pytest

from contracts.generation import accounts
from contracts.generation.accounts import password_variable
from contracts.permissions import ROLES
from tests.support import children
from tests.support.broker import PROGRAM, free_port
from tests.support.pages import read_page
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance

PAGE = read_page("docs/rights.md")
WALKS = (PAGE,)
ENVIRONMENT: Final = {
    **{name: value for name, value in os.environ.items() if not name.startswith("MESH_")},
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "MESH_CONFIG": os.devnull,
}


async def printed(folder: Path) -> dict[str, str]:
    """What each command of the page prints, into a file or not."""
    found: dict[str, str] = {}
    for command in PAGE.commands:
        ended = await children.run(["sh", "-c", command.text], ENVIRONMENT, cwd=folder)
        assert ended.returncode == 0, (command.text, ended.stderr)
        _, into, file = command.text.partition(" > ")
        found[command.text] = (folder / file).read_text() if into else ended.stdout
    return found


async def test_a_server_takes_what_the_commands_print_and_lets_each_user_in(tmp_path: Path) -> None:
    texts = await printed(tmp_path)
    assert json.loads(texts["meshctl permissions steward --format json"])["user"] == "steward"
    # What is printed is what is committed.
    assert accounts.files()["accounts.conf"].endswith(texts["meshctl permissions > accounts.conf"])
    assert "RUNNER_charge" in texts["meshctl permissions runner --tool charge"]
    [block] = [each for each in PAGE.blocks if "include" in each.text]
    port = free_port()
    text = block.text.replace("0.0.0.0:4222", f"127.0.0.1:{port}").replace("/var/lib/nats", str(tmp_path / "store"))
    (tmp_path / "nats.conf").write_text(text)
    variables = {password_variable(role): f"pw-{role}" for role in ROLES}
    command = [PROGRAM, "-c", str(tmp_path / "nats.conf")]
    lacking = {name: value for name, value in variables.items() if name != "STEWARD_PASSWORD"}
    refused = await children.run(command, {**ENVIRONMENT, **lacking}, cwd=tmp_path)
    assert refused.returncode != 0
    assert "STEWARD_PASSWORD" in refused.stderr
    with (tmp_path / "log").open("wb") as log:
        server = children.start(command, {**ENVIRONMENT, **variables}, stdout=log, stderr=log)
    try:
        await until(lambda: b"Server is ready" in (tmp_path / "log").read_bytes())
        for role in ROLES:
            client = await nats.connect(f"nats://{role}:pw-{role}@127.0.0.1:{port}")
            await client.close()
    finally:
        server.terminate()
        server.wait()
