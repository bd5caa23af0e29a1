"""`meshctl triggers`: the rules by which signals and schedules start tasks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.table import Table

from contracts import subject_filters, subjects
from contracts.codec import decode
from contracts.errors import InvalidPayload, TaskmeshError
from contracts.headers import TENANT_DEFAULT
from contracts.triggers import rules
from contracts.triggers.rules import Signal, TriggerRule
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.rules.trigger_bucket import RuleBook, RuleUnknown, add, remove
from meshctl.display import output
from meshctl.display.tables import cell, plain_table
from meshctl.flags import add_setting_flags
from meshctl.supervision.acts import act_at_broker

RULE_FILE_BYTES_MAX: Final = 1024 * 1024
_SETTINGS = ("home", "nats_url", "nats_domain", "nats_port")
_FLAGS: Final = ("name", "signal", "schedule", "time_zone", "when", "task", "sends", "per_minute_max")


def add_commands(commands: Any) -> None:
    """Register `triggers`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "triggers",
        help="rules that start tasks by themselves",
        description="Rules by which signals (NATS messages below signals.<tenant>.) and schedules start tasks.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    text = (
        "Add a rule, from a JSON or TOML file, from flags, or from a file with flags laid over it. All of it is"
        " checked first. It acts on signals that come from then on."
    )
    adding = actions.add_parser("add", help="add a rule", description=text)
    _add_rule_options(adding)
    adding.add_argument("--replace", action="store_true", help="put it in the place of the rule that has its name")
    adding.set_defaults(run=_run_add)

    listing = actions.add_parser("list", help="list rules", description="Print the rules of a tenant, or of all.")
    _add_tenant(listing, "only of this tenant")
    add_setting_flags(listing, _SETTINGS)
    listing.set_defaults(run=_run_list)

    text = "Take a rule away. Tasks that it has started go on; signals that wait for it start none."
    removing = actions.add_parser("remove", help="take a rule away", description=text)
    removing.add_argument("rule", help="the rule's name")
    _add_tenant(removing, "whose rule it is [default]")
    add_setting_flags(removing, _SETTINGS)
    removing.set_defaults(run=_run_remove)

    text = (
        "Say whether a rule would fire for a payload, and which task it would start. Starts nothing. Without a file"
        " the rule is the stored one of that --name."
    )
    testing = actions.add_parser("test", help="try a rule with a payload", description=text)
    _add_rule_options(testing)
    testing.add_argument("--payload", metavar="JSON", default="{}", help="the signal's payload; - reads it from stdin")
    testing.add_argument("--subject", metavar="NAME", help="the signal's name [the rule's own, x for a wildcard]")
    testing.set_defaults(run=_run_test)


def _add_rule_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", help="the rule: a .json or .toml file; - reads JSON from standard input")
    _add_tenant(parser, "whose rule it is [the file's, else default]")
    options = parser.add_argument_group("rule")
    options.add_argument("--name", help="its name")
    options.add_argument("--signal", metavar="FILTER", help="signals that set it off, such as inventory.* or orders.>")
    options.add_argument("--schedule", metavar="WHEN", help="@every 1h30m, @daily, or six cron fields, seconds first")
    options.add_argument("--time-zone", metavar="ZONE", help="the cron fields' time zone [UTC]")
    options.add_argument(
        "--when",
        metavar="JSON",
        action="append",
        help='a condition, such as {"field": "/stock", "op": "eq", "value": 0}; may be repeated: all must hold',
    )
    options.add_argument("--task", metavar="JSON", help="the task's template: a task request with {{payload.…}} in it")
    options.add_argument(
        "--sends", metavar="FILTER", action="append", help="a signal that its tasks may send; may be repeated"
    )
    options.add_argument(
        "--per-minute-max", metavar="N", type=int, help="the most tasks that it starts in a minute [60]"
    )
    add_setting_flags(parser, _SETTINGS)


def _add_tenant(parser: argparse.ArgumentParser, text: str) -> None:
    # No default: `--tenant` may stand before the command too.
    parser.add_argument("--tenant", default=argparse.SUPPRESS, help=text)


def _run_add(arguments: argparse.Namespace) -> int:
    rule = rule_of(arguments)
    added = act_at_broker(
        arguments,
        lambda requests: add(requests, rule, replace=arguments.replace),
        "trigger-add",
        tenant=rule.tenant,
    )
    if output.for_people():
        print(f"rule {added.name} of tenant {added.tenant} is added")
    else:
        output.json_line(added)
    return 0


def _run_list(arguments: argparse.Namespace) -> int:
    rules = act_at_broker(arguments, _read)
    tenant = getattr(arguments, "tenant", None)
    rules = [rule for rule in rules if tenant in (None, rule.tenant)]
    if output.for_people():
        output.show(rules_table(rules))
    else:
        for rule in rules:
            output.json_line(rule)
    return 0


def _run_remove(arguments: argparse.Namespace) -> int:
    tenant = getattr(arguments, "tenant", None) or TENANT_DEFAULT
    act_at_broker(arguments, lambda requests: remove(requests, tenant, arguments.rule), "trigger-remove", tenant=tenant)
    if output.for_people():
        print(f"rule {output.printable(arguments.rule)} of tenant {output.printable(tenant)} is gone")
    else:
        output.json_line({"event": "trigger.removed", "tenant": tenant, "name": arguments.rule})
    return 0


def _run_test(arguments: argparse.Namespace) -> int:
    others = {flag for flag in _FLAGS if flag != "name" and getattr(arguments, flag) is not None}
    if arguments.file is None and not others:
        tenant = getattr(arguments, "tenant", None) or TENANT_DEFAULT
        rule = act_at_broker(arguments, lambda requests: _stored(requests, tenant, arguments.name or ""))
    else:
        rule = rule_of(arguments)
    text = sys.stdin.read() if arguments.payload == "-" else arguments.payload
    payload: Any = decode(text.encode("utf-8", "surrogateescape"), Any)
    said = tried(rule, payload, arguments.subject)
    if output.for_people():
        print("it would start this task:" if said["fires"] else f"it would not fire: {said['reason']}")
        if said["fires"]:
            print(output.printable(msgspec.json.format(msgspec.json.encode(said["request"]), indent=2).decode()))
    else:
        output.json_line(said)
    return 0


def rule_of(arguments: argparse.Namespace) -> TriggerRule:
    """The rule of a command line: what its file says, and its flags over that. Raises `InvalidPayload`."""
    fields = _read_file(arguments.file) if arguments.file is not None else {}
    tenant = getattr(arguments, "tenant", None)
    if tenant is not None or "tenant" not in fields:
        fields["tenant"] = tenant or TENANT_DEFAULT
    given = {flag: getattr(arguments, flag) for flag in _FLAGS if getattr(arguments, flag) is not None}
    source = {flag: given.pop(flag) for flag in ("signal", "schedule", "time_zone") if flag in given}
    if source:
        fields["on"] = source
    if "when" in given:
        given["when"] = [_json(text, "--when") for text in given["when"]]
    if "task" in given:
        given["task"] = _json(given["task"], "--task")
    try:
        rule = msgspec.convert({**fields, **given}, TriggerRule)
    except msgspec.ValidationError as error:
        raise InvalidPayload(str(error)) from None
    rules.check_rule(rule)
    return rule


def tried(rule: TriggerRule, payload: Any, name: str | None) -> dict[str, Any]:
    """What a rule makes of a payload. Pure but for the time. Raises `InvalidName` for a name that is none."""
    signal_filter = rule.on.signal
    if signal_filter is None:
        subject = subjects.cron_fired(rule.tenant, rule.name)
    else:
        sample = name or ".".join("x" if token in ("*", ">") else token for token in signal_filter.split("."))
        subject = subjects.signal(rule.tenant, sample)
    signal = Signal(subject, payload, rule.after + 1, now())
    said: dict[str, Any] = {"event": "trigger.tested", "name": rule.name, "subject": subject, "fires": False}
    if signal_filter is not None and not subject_filters.matches(f"signals.{rule.tenant}.{signal_filter}", subject):
        return {**said, "reason": "its filter does not take the subject"}
    if signal_filter is not None and not rules.takes(rule, signal):
        return {**said, "reason": "its conditions do not hold"}
    try:
        request = rules.request_for(rule, signal)
    except TaskmeshError as error:
        return {**said, "reason": f"{error.code}: {error}"}
    return {**said, "fires": True, "request": request}


def rules_table(rules: list[TriggerRule]) -> Table:
    """Rules, one on each line."""
    table = plain_table("TENANT", "RULE", "ON", "A MINUTE", "INPUT")
    for rule in rules:
        on = rule.on.signal or " ".join(filter(None, [rule.on.schedule, rule.on.time_zone]))
        text = rule.task.get("input")
        table.add_row(
            cell(rule.tenant),
            cell(rule.name),
            cell(on),
            cell(rule.per_minute_max),
            cell(text if isinstance(text, str) else "messages"),
        )
    return table


async def _read(requests: Requests) -> list[TriggerRule]:
    book = RuleBook(requests)
    await book.refresh()
    return book.rules


async def _stored(requests: Requests, tenant: str, name: str) -> TriggerRule:
    book = RuleBook(requests)
    await book.refresh()
    rule = book.get(tenant, name)
    if rule is None:
        raise RuleUnknown(f"tenant {tenant} has no rule {name}")
    return rule


def _read_file(name: str) -> dict[str, Any]:
    try:
        content = sys.stdin.buffer.read(RULE_FILE_BYTES_MAX + 1) if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise InvalidPayload(f"{name}: {error.strerror}") from None
    if len(content) > RULE_FILE_BYTES_MAX:
        raise InvalidPayload(f"{name}: more than {RULE_FILE_BYTES_MAX} bytes")
    try:
        if name.endswith(".toml"):
            fields: Any = msgspec.toml.decode(content)
        else:
            fields = decode(content, Any)
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidPayload) as error:
        raise InvalidPayload(f"{name}: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise InvalidPayload(f"{name}: a rule is an object")
    return fields


def _json(text: str, flag: str) -> Any:
    try:
        return decode(text.encode("utf-8", "surrogateescape"), Any)
    except InvalidPayload as error:
        raise InvalidPayload(f"{flag}: {error}") from None
