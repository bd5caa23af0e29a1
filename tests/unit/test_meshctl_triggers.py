"""`meshctl triggers`: rules from files and flags, and what `test` says of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contracts.errors import InvalidName, InvalidPayload
from contracts.triggers.rules import TriggerRule
from meshctl.__main__ import build_parser
from meshctl.commands.triggers import rule_of, rules_table, tried

FLAGS = ("--name", "low", "--signal", "stock.*", "--task", '{"input": "Buy {{payload.sku}}"}')
FILE = 'name = "low"\ntenant = "acme"\n[on]\nsignal = "stock.*"\n[task]\ninput = "Buy {{payload.sku}}"\n'


def rule(*arguments: str) -> TriggerRule:
    """The rule of a command line."""
    return rule_of(build_parser().parse_args(["triggers", "add", *arguments]))


def test_a_rule_of_flags() -> None:
    given = rule(
        *(*FLAGS, "--tenant", "acme", "--per-minute-max", "5"),
        *("--when", '{"field": "/a", "op": "eq", "value": 1}', "--when", '{"field": "/b", "op": "exists"}'),
    )
    assert (given.tenant, given.name, given.on.signal, given.per_minute_max) == ("acme", "low", "stock.*", 5)
    assert [condition.field for condition in given.when] == ["/a", "/b"]
    assert rule(*FLAGS).tenant == "default"


def test_flags_are_laid_over_a_file(tmp_path: Path) -> None:
    toml, json = tmp_path / "rule.toml", tmp_path / "rule.json"
    toml.write_text(FILE)
    json.write_text(
        '{"name": "low", "tenant": "acme", "on": {"signal": "stock.*"}, "task": {"input": "Buy {{payload.sku}}"}}'
    )
    assert rule(str(toml)) == rule(str(json))
    changed = rule(str(toml), "--tenant", "other", "--schedule", "@daily", "--task", '{"input": "x"}')
    assert (changed.tenant, changed.on.signal, changed.on.schedule) == ("other", None, "@daily")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "name"),
        (("--name", "A", *FLAGS[2:]), "name"),
        ((*FLAGS, "--schedule", "@daily"), "either signal or schedule"),
        ((*FLAGS[:4], "--task", "rubbish"), "--task: not valid JSON"),
        ((*FLAGS, "--when", "[]"), r"when\[0\]"),
        (("/there/is/none.toml",), "No such file"),
    ],
)
def test_a_rule_that_is_none_is_told_in_one_line(arguments: tuple[str, ...], reason: str) -> None:
    with pytest.raises(InvalidPayload, match=reason) as refused:
        rule(*arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"rubbish", b"[1]", b"\xff", b""])
def test_a_file_that_holds_no_rule_is_named(tmp_path: Path, content: bytes) -> None:
    for name in ("rule.json", "rule.toml"):
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(InvalidPayload):
            rule(str(file))


@pytest.mark.parametrize(
    ("payload", "name", "reason"),
    [
        ({"sku": "a"}, None, None),
        ({"sku": "a"}, "stock.zero", None),
        ({"sku": "a"}, "other", "filter does not take"),
        ({}, None, "trigger-field-missing"),
        ({"sku": 7}, None, None),
    ],
)
def test_what_a_payload_would_come_to(payload: Any, name: str | None, reason: str | None) -> None:
    said = tried(rule(*FLAGS), payload, name)
    assert said["fires"] is (reason is None)
    assert reason is None or reason in said["reason"]


def test_a_condition_that_does_not_hold_is_said() -> None:
    picky = rule(*FLAGS, "--when", '{"field": "/stock", "op": "eq", "value": 0}')
    assert tried(picky, {"sku": "a", "stock": 1}, None)["reason"] == "its conditions do not hold"
    with pytest.raises(InvalidName):
        tried(picky, {}, "not a subject")


def test_rules_are_listed_one_on_a_line() -> None:
    scheduled = rule(
        "--name", "r", "--schedule", "0 0 9 * * *", "--time-zone", "Europe/Berlin", "--task", '{"input": "x"}'
    )
    assert rules_table([rule(*FLAGS), scheduled]).row_count == 2
