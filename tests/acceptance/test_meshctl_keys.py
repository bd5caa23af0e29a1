"""`meshctl keys`, and how meshctl itself gets into a mesh that asks for credentials."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.issuer import SigningKey, claims, jwt_table, write_jwks
from tests.support.up import ENVIRONMENT, Up, meshctl, up

pytestmark = pytest.mark.acceptance

KEYS = '[auth]\nmode = "keys"\n'


def at(mesh: Up, **variables: str) -> dict[str, str]:
    """The environment of somebody with this home, and nothing else."""
    return {**ENVIRONMENT, "MESH_HOME": str(mesh.home), **variables}


def line_of(ended: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """The one JSON line of a command that ended well."""
    assert ended.returncode == 0, ended.stderr
    [line] = ended.stdout.splitlines()
    found: dict[str, object] = json.loads(line)
    return found


async def test_whoever_runs_a_mesh_gets_into_it_and_others_by_keys_that_were_made(tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text(KEYS)
    variables = {"MESH_CONFIG": str(tmp_path / "mesh.toml")}
    async with up(tmp_path / "home", "--first-task", variables=variables) as mesh:
        file = mesh.home / "operator.key"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        operators = file.read_text().strip()
        mine = at(mesh)
        assert line_of(await meshctl("submit", "--wait", "!say 2", environment=mine))["tenant"] == "default"
        assert (
            line_of(await meshctl("--tenant", "acme", "submit", "--wait", "!say 1", environment=mine))["tenant"]
            == "acme"
        )
        assert (await meshctl("doctor", environment=mine)).returncode == 0

        limits = ["--expires", "90d", "--name", "shop", "--pool", "default", "--budget", "1000"]
        created = line_of(
            await meshctl("keys", "create", "--tenant", "acme", "--scopes", "read,submit", *limits, environment=mine)
        )
        assert (created["event"], created["scopes"], created["state"]) == ("key.created", ["submit", "read"], "valid")
        assert (created["pool"], created["budget_tokens"], created["name"]) == ("default", 1000, "shop")
        key, key_id = str(created["key"]), str(created["id"])
        theirs = at(mesh, MESH_API_KEY=key)
        assert line_of(await meshctl("submit", "--wait", "!say 1", environment=theirs))["tenant"] == "acme"
        refused = await meshctl("--tenant", "globex", "list", environment=theirs)
        assert (refused.returncode, refused.stderr.partition(": ")[2].partition(":")[0]) == (1, "tenant-mismatch")
        (tmp_path / "key").write_text(f"{key}\n")
        from_file = at(mesh, MESH_API_KEY_FILE=str(tmp_path / "key"))
        assert len((await meshctl("list", environment=from_file)).stdout.splitlines()) == 2

        rotated = line_of(await meshctl("keys", "rotate", key_id, "--grace", "1h", environment=mine))
        assert (rotated["replaces"], rotated["scopes"], rotated["budget_tokens"]) == (key_id, ["submit", "read"], 1000)
        for each in (key, str(rotated["key"])):
            assert (await meshctl("list", environment=at(mesh, MESH_API_KEY=each))).returncode == 0
        listed = [json.loads(line) for line in (await meshctl("keys", "list", environment=mine)).stdout.splitlines()]
        assert [each["name"] for each in listed][1:] == ["shop", "shop"]
        assert not any("hash" in each or "key" in each for each in listed)
        # Who has leaked a key may show all of it.
        assert line_of(await meshctl("keys", "revoke", key, environment=mine))["state"] == "revoked"
        assert "was revoked" in (await meshctl("list", environment=theirs)).stderr
        unknown = await meshctl("keys", "revoke", "0" * 16, environment=mine)
        assert (unknown.returncode, unknown.stderr) == (1, f"meshctl: not-found: there is no key {'0' * 16}\n")
        # Nobody but this mesh is shown its key.
        other = await meshctl("list", "--url", mesh.ready["edge_url"], environment=mine)
        assert other.stderr.startswith("meshctl: unauthorized: Authorization is missing")
        assert line_of(await meshctl("keys", "revoke", operators, environment=mine))["state"] == "revoked"
    async with up(tmp_path / "home", variables=variables) as mesh:
        # The next start makes another.
        assert (await meshctl("list", environment=at(mesh))).returncode == 0
        assert (mesh.home / "operator.key").read_text().strip() != operators
    for path in (tmp_path / "home").rglob("*"):
        if path.is_file() and path.name != "operator.key":
            assert key[20:].encode() not in path.read_bytes(), path


async def test_a_mesh_that_takes_tokens_takes_whoever_runs_it_too(tmp_path: Path) -> None:
    signing = SigningKey("one")
    write_jwks(tmp_path / "jwks.json", signing)
    (tmp_path / "mesh.toml").write_text(jwt_table("jwks.json"))
    async with up(tmp_path / "home", "--first-task", variables={"MESH_CONFIG": str(tmp_path / "mesh.toml")}) as mesh:
        assert (await meshctl("list", environment=at(mesh))).returncode == 0
        token = signing.token(claims())
        submitted = line_of(await meshctl("submit", "!say 1", environment=at(mesh, MESH_API_KEY=token)))
        assert submitted["tenant"] == "acme"
        # What the table says is reloaded, but for the mode.
        (tmp_path / "mesh.toml").write_text(jwt_table("jwks.json", tenant_claim='"org"'))
        assert (await meshctl("reload", environment=at(mesh))).returncode == 0
        assert (await meshctl("list", environment=at(mesh, MESH_API_KEY=token))).returncode == 1
        moved = signing.token(claims(org="globex"))
        assert (await meshctl("list", environment=at(mesh, MESH_API_KEY=moved))).returncode == 0
        (tmp_path / "mesh.toml").write_text(KEYS)
        kept = await meshctl("reload", environment=at(mesh))
        assert kept.returncode == 1
        assert "auth.mode: can't change while processes run" in kept.stdout + kept.stderr
        assert "first task" in mesh.log.read_text() or "First task" in mesh.log.read_text()


async def test_a_mesh_for_anybody_does_not_start_elsewhere_and_makes_no_key_at_home(tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text('[auth]\nmode = "open"\n')
    variables = {**ENVIRONMENT, "MESH_CONFIG": str(tmp_path / "mesh.toml"), "MESH_HOME": str(tmp_path / "home")}
    elsewhere = await meshctl("up", "--nats-port", "0", "--edge-address", "198.51.100.7:0", environment=variables)
    assert elsewhere.returncode == 2
    assert elsewhere.stderr.splitlines()[-1].startswith("meshctl: ")
    assert 'auth.mode: "open" lets anybody in, and MESH_EDGE_ADDRESS=198.51.100.7:0' in elsewhere.stderr
    async with up(tmp_path / "home", variables={"MESH_CONFIG": str(tmp_path / "mesh.toml")}) as mesh:
        assert not (mesh.home / "operator.key").exists()
        assert (await meshctl("list", environment=at(mesh))).returncode == 0
