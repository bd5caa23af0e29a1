"""Secrets of a mesh that `meshctl up` starts: each service has its own alone, and programs of MCP servers none."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.up import FREE_PORTS, up
from tests.support.waiting import until

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc"),
]

KEYS = {"MODEL_KEY": "model-key", "HOOK_SECRET": "whsec_" + "a" * 43 + "=", "FILES_TOKEN": "files-token"}
PROGRAM = """
import json, os, sys


def variables(pid):
    try:
        return open(f"/proc/{pid}/environ").read()
    except PermissionError:
        return ""


parent = os.getppid()
grandparent = int(open(f"/proc/{parent}/stat").read().rpartition(")")[2].split()[1])
seen = {"own": dict(os.environ), "own file": variables("self"), "others": [variables(parent), variables(grandparent)]}
open("seen.new", "w").write(json.dumps(seen))
os.rename("seen.new", "seen")
sys.stdin.read()
"""

# Root reads everything: without capabilities it is as any other user. A mesh that had them would be out of reach for a
# program without, whether it keeps private or not.
AS_A_USER = ("setpriv", "--bounding-set=-all") if os.geteuid() == 0 else ()


def environment_of(pid: int) -> str:
    """A process's variables, as others of its user may read them: none, if they may not."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode()
    except PermissionError:
        return ""


async def test_no_service_and_no_program_has_the_secrets_of_another(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    file = tmp_path / "mesh.toml"
    file.write_text(
        f"""
        [providers.own]
        kind = "openai"
        base_url = "http://127.0.0.1:9/v1"
        api_key_env = "MODEL_KEY"
        [pools.default]
        provider = "own"
        model = "tiny"
        [webhooks.billing]
        url = "https://billing.example/"
        secret_env = "HOOK_SECRET"
        on = ["task.completed"]
        [mcp.files]
        command = ["{sys.executable}", "{tmp_path}/program.py"]
        env_from = ["FILES_TOKEN"]
        cwd = "{tmp_path}"
        """
    )
    owners = {"inference_worker": "MODEL_KEY", "steward": "HOOK_SECRET", "tool_runner": "FILES_TOKEN"}
    async with up(
        tmp_path / "home", *FREE_PORTS, variables={"MESH_CONFIG": str(file), **KEYS}, under=AS_A_USER
    ) as mesh:
        for service, pids in mesh.pids().items():
            if service == "meshctl":
                continue
            for pid in pids:
                seen = environment_of(pid)
                assert {name for name in KEYS if f"{name}=" in seen} <= {owners.get(service)}, service
        program = tmp_path / "seen"
        await until(program.exists)
    seen = json.loads(program.read_text())
    given = seen["own"]
    assert set(KEYS) & set(given) == {"FILES_TOKEN"}
    assert not any(name.startswith(("MESH_", "OTEL_")) for name in given)
    assert KEYS["FILES_TOKEN"] in seen["own file"], "it can read the variables of a process that lets it"
    assert seen["others"] == ["", ""], "neither the runner's, which has started it, nor those of meshctl up"
