"""A reload: what can be taken over, and who has to agree. Pure."""

from __future__ import annotations

import json
from typing import Any

import pytest
import structlog

from contracts.messages.reloading import LINE_CHARACTERS_MAX, LINES_MAX, ReloadAnswer, lines_of
from mesh.configuration.mesh_toml import parse_configuration
from mesh.configuration.reloading import fixed_changes
from mesh.configuration.settings import Settings
from mesh.telemetry import traces
from meshctl.commands.reload import Gathered, objections_to
from meshctl.diagnosis.configuration_check import SeenConfiguration, check_configuration

SERVER = '[mcp.m]\nurl = "http://127.0.0.1:9/mcp"\n'


@pytest.mark.parametrize(
    ("old", "new", "keys"),
    [
        ("", "[pools.default]\n[pools.cpu]\n", ["pools.cpu"]),
        ("[pools.default]\n[pools.cpu]\n", "", ["pools.cpu"]),
        ("", SERVER, ["mcp.m"]),
        (SERVER, SERVER + "timeout_seconds = 3\n", ["mcp.m"]),
        ("", '[storage]\nevents = "1GiB"\n', ["storage"]),
        (
            "",
            "[pools.default]\ndeadline_seconds = 3\n[results]\ntenant_share = 1\n[tools.add]\napproval = 'always'\n"
            "[providers.a]\nkind = 'anthropic'\n[critic]\ncodes = ['x']\n[logs]\nlevel = 'debug'\n"
            "[webhooks.w]\nurl = 'https://x.example'\nsecret_env = 'W'\non = ['ended']\n",
            [],
        ),
    ],
)
def test_what_can_not_change_is_named(old: str, new: str, keys: list[str]) -> None:
    changed = fixed_changes(parse_configuration(old.encode()), parse_configuration(new.encode()))
    assert [line.split(": ")[1] for line in changed] == keys
    assert all("meshctl restart --rolling" in line for line in changed)


def answer(worker: str, **given: Any) -> ReloadAnswer:
    return ReloadAnswer(
        **{"worker": worker, "service": "steward", "ok": True, "configuration": "old", "offered": "new", **given}
    )


def objections(*answers: ReloadAnswer, silent: tuple[str, ...] = ()) -> list[str]:
    expected = {**{each.worker: "is silent" for each in answers}, **dict.fromkeys(silent, "is silent")}
    return objections_to(Gathered(expected, {each.worker: each for each in answers}))


def test_all_that_agree_take_it() -> None:
    kept = answer("up", service="meshctl", copy="host:/h/mesh.toml")
    assert objections(answer("a"), answer("b", copy="host:/h/mesh.toml"), kept) == []


def test_one_that_is_silent_keeps_it_from_all() -> None:
    assert objections(answer("a"), silent=("b",)) == ["b: is silent"]


def test_a_mistake_that_all_find_is_told_once_and_one_of_a_process_with_its_name() -> None:
    wrong = {"ok": False, "offered": None, "mistakes": ["mesh.toml: x: wrong"]}
    alone = answer("c", ok=False, mistakes=["mesh.toml: a key is not set"], fixed=["mesh.toml: pools.p: is new"])
    assert objections(answer("a", **wrong), answer("b", **wrong), alone) == [
        "mesh.toml: x: wrong",
        "mesh.toml: a key is not set (c)",
        "mesh.toml: pools.p: is new (c)",
    ]
    assert objections(answer("a", ok=False)) == ["it does not agree (a)"]


def test_who_keeps_the_copy_has_to_agree_too() -> None:
    assert objections(answer("a", copy="host:/h/mesh.toml")) == [
        "a: the meshctl up that keeps host:/h/mesh.toml gives no answer"
    ]


def test_those_that_are_alike_stay_alike_and_those_that_differ_may_differ() -> None:
    assert objections(answer("a"), answer("b", offered="other")) == [
        "the files differ that these read: new: a; other: b"
    ]
    assert objections(answer("a"), answer("b", configuration="else", offered="other")) == []


def test_an_answer_is_bounded() -> None:
    lines = lines_of(["x" * 5_000] * 500)
    assert (len(lines), len(lines[0])) == (LINES_MAX, LINE_CHARACTERS_MAX)


def test_the_least_level_of_logs_can_change(capfd: pytest.CaptureFixture[str]) -> None:
    configuration = parse_configuration(b'[logs]\nlevel = "warning"\n')
    try:
        traces.configure(Settings(log_format="json", log_level="debug", configuration=configuration), "test")
        log = structlog.get_logger("test").bind(task="t")
        log.info("before")
        traces.set_level("debug")
        log.debug("after", n=1)
    finally:
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
    [line] = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert (line["event"], line["level"], line["task"], line["n"]) == ("after", "debug", "t", 1)


@pytest.mark.parametrize(
    ("seen", "status", "said"),
    [
        (SeenConfiguration(None, "b", []), "ok", "is b"),
        (SeenConfiguration("b", "b", []), "ok", "is b"),
        (SeenConfiguration("a", "b", []), "warn", "meshctl reload"),
        (SeenConfiguration("a", None, ["x"]), "warn", "goes on with what it has"),
        (SeenConfiguration(None, None, ["x"]), "fail", "meshctl config check"),
    ],
)
def test_what_the_doctor_says_of_the_configuration(seen: SeenConfiguration, status: str, said: str) -> None:
    check = check_configuration(seen)
    assert check.status == status
    assert said in f"{check.detail} {check.remedy}"
