"""`meshctl permissions`: what it prints, and what it says of a command line that asks for nothing."""

from __future__ import annotations

import json
import os

import pytest

from meshctl.__main__ import main
from tests.support import children


@pytest.fixture(autouse=True)
def no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_CONFIG", os.devnull)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["runner"], "permissions runner: name the tool that it serves with --tool"),
        (["signals"], "permissions signals: name the tenant whose signals it sends with --tenant"),
        (["ingress", "--tool", "charge"], "permissions ingress: --tool is for runner"),
        (["runner", "--tool", "a", "--tenant", "b"], "permissions runner: --tenant is for signals"),
        (["runner", "--tool", "a b"], "not a valid tool: 'a b' (expected [a-z0-9][a-z0-9_-]{0,47})"),
        (["signals", "--tenant", "A"], "not a valid tenant: 'A' (expected [a-z0-9][a-z0-9-]{0,31})"),
    ],
)
def test_what_asks_for_nothing_gets_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["permissions", *arguments]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"meshctl: {says}\n")


@pytest.mark.processes
@pytest.mark.parametrize("arguments", [[], ["--tool", "charge", "--tenant", "acme"], ["runner", "--tool", "a-b"]])
async def test_each_command_for_operator_mode_is_one_for_a_shell(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["permissions", *arguments, "--format", "nsc"]) == 0
    commands = capsys.readouterr().out
    assert commands.startswith(("nsc ", "# let_in "))
    # Only read, not run.
    checked = await children.run(["sh", "-n"], text=commands)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_json_is_one_line_for_each_user_with_guests_behind_the_roles(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["permissions", "--tool", "charge", "--tenant", "acme", "--format", "json"]) == 0
    users = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    accounts = {user["user"]: user["account"] for user in users}
    assert accounts["ingress"] == accounts["supervisor"] == "TASKMESH"
    assert accounts["runner_charge"] == "RUNNER_charge"
    assert accounts["signals_acme"] == "SIGNALS_ACME"
    [runner] = [user for user in users if user["user"] == "runner_charge"]
    assert {"subject": "tools.charge", "to": "tools.charge"} in runner["imports"]


def test_a_domain_and_what_is_configured_narrow_the_lists(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_NATS_DOMAIN", "hub")
    assert main(["permissions", "inference_worker", "--narrow", "--format", "json"]) == 0
    [worker] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "$JS.hub.API.CONSUMER.MSG.NEXT.TASKS.default-high" in worker["publish"]
    assert not [each for each in worker["publish"] if "MSG.NEXT" in each and each.endswith(".*")]
