"""`meshctl pause`, `resume`, `valves`, `limit`: what is paused, or limited for a while, and by whom."""

from __future__ import annotations

import argparse
import asyncio
from datetime import timedelta
from typing import Any, Final

import msgspec

from contracts.errors import InvalidName
from contracts.records.valves import WHY_CHARACTERS_MAX, TenantLimits, Valve
from contracts.subjects import check_tenant
from contracts.valve_keys import VALVE_KINDS, ValveKind, check_valve_name
from meshctl import times
from meshctl.commands.tasks import client_of
from meshctl.display import output
from meshctl.display.rendering import time_text
from meshctl.display.valves_table import limits_text, valves_table
from meshctl.errors import MeshctlError

_PAUSE: Final = """\
Begin no more turns of a pool, of a lane (default.low), of a tenant, or at a provider; turns that are under way end.
New tasks are accepted, and wait: whoever submits them is told so, with the reason. A turn whose provider is paused
goes to another one of its pool, if there is one. What is paused already stays so, with what is said now.
"""
_LIMIT: Final = """\
Give a tenant other limits for a while: any keys of a table [tenants.<name>] of mesh.toml, as running=2 or
tokens_per_minute=20000, in place of what is said there; null takes a limit away. --end gives it those of mesh.toml
again.
"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Register the commands."""
    pause = _add(commands, common, "pause", "begin no turns of a pool, lane, tenant or provider", _PAUSE, _pause)
    _add_what(pause)
    _add_while(pause)
    text = "Begin turns there again, within a second."
    resume = _add(commands, common, "resume", "let what is paused go on", text, _resume)
    _add_what(resume)
    resume.add_argument("--reason", metavar="TEXT", type=_reason, help="why: it is in the audit log")
    text = (
        "Print what is paused, and which tenants have other limits for a while: since when, until when, by whom, why."
    )
    _add(commands, common, "valves", "list what is paused or limited for a while", text, _valves)
    limit = _add(commands, common, "limit", "give a tenant other limits for a while", _LIMIT, _limit)
    limit.add_argument("of", metavar="TENANT", type=_tenant, help="whose limits these are")
    limit.add_argument("limits", metavar="K=V", type=_limit_pair, nargs="*", help="a limit; may be repeated")
    limit.add_argument("--end", action="store_true", help="give it those of mesh.toml again")
    _add_while(limit)


def _add(commands: Any, common: argparse.ArgumentParser, name: str, text: str, more: str, act: Any) -> Any:
    parser = commands.add_parser(
        name,
        parents=[common],
        help=text,
        description=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda arguments: asyncio.run(act(arguments)))
    return parser


def _add_what(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=VALVE_KINDS, metavar="WHAT", help=", ".join(VALVE_KINDS))
    parser.add_argument("name", metavar="NAME", help="its name; of a lane <pool>.<priority>")


def _add_while(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", metavar="TEXT", type=_reason, help="why: shown to operators and to submitters")
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--for", metavar="SPAN", dest="span", type=times.span, help="for so long, such as 1h")
    end.add_argument("--until", metavar="TIME", type=times.time, help="until a time (RFC 3339)")


async def _pause(arguments: argparse.Namespace) -> int:
    kind, name = _what(arguments)
    async with client_of(arguments) as client:
        answer = await client.shut_valve(kind, name, _wanted(arguments))
    if output.for_people():
        print(output.printable(sentence(answer.value)))
    else:
        output.raw_line(answer.raw)
    return 0


async def _resume(arguments: argparse.Namespace) -> int:
    kind, name = _what(arguments)
    async with client_of(arguments) as client:
        answer = await client.open_valve(kind, name, arguments.reason)
    if output.for_people():
        print(f"{kind} {name} goes on")
    else:
        output.raw_line(answer.raw)
    return 0


async def _valves(arguments: argparse.Namespace) -> int:
    async with client_of(arguments) as client:
        answer = await client.valves()
    if not output.for_people():
        output.raw_line(answer.raw)
    elif answer.value.valves or answer.value.limits:
        output.show(valves_table(answer.value))
    else:
        print("nothing is paused, and no tenant has other limits for a while")
    return 0


async def _limit(arguments: argparse.Namespace) -> int:
    limits = dict(arguments.limits)
    async with client_of(arguments) as client:
        if arguments.end:
            if limits:
                raise MeshctlError("limit: --end takes no limits", code="invalid-request")
            answer = await client.end_limits(arguments.of, arguments.reason)
            text = f"tenant {arguments.of} has the limits of mesh.toml again"
        else:
            if not limits or (arguments.span is None and arguments.until is None):
                raise MeshctlError(
                    "limit: say which limits, as running=2, and for how long (--for 1h)", code="invalid-request"
                )
            answer = await client.limit_tenant(arguments.of, {"limits": limits, **_wanted(arguments)})
            text = limited_sentence(answer.value)
    if output.for_people():
        print(output.printable(text))
    else:
        output.raw_line(answer.raw)
    return 0


def sentence(valve: Valve) -> str:
    """What is paused, for people."""
    until = f"until {time_text(valve.until)}" if valve.until is not None else "until it is resumed"
    return f"{valve.kind} {valve.name} is paused since {time_text(valve.since)}, {until}"


def limited_sentence(limits: TenantLimits) -> str:
    """Which limits a tenant has, for people."""
    return f"tenant {limits.tenant} has {limits_text(limits.limits)} until {time_text(limits.until)}"


def _what(arguments: argparse.Namespace) -> tuple[ValveKind, str]:
    return arguments.kind, check_valve_name(arguments.kind, arguments.name)


def _wanted(arguments: argparse.Namespace) -> dict[str, Any]:
    wanted: dict[str, Any] = {"reason": arguments.reason, "until": arguments.until}
    told: timedelta | None = arguments.span
    if told is not None:
        wanted["seconds"] = told.total_seconds()
    return {key: value for key, value in wanted.items() if value is not None}


def _tenant(raw: str) -> str:
    try:
        return check_tenant(raw)
    except InvalidName as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _reason(raw: str) -> str:
    if not 1 <= len(raw) <= WHY_CHARACTERS_MAX:
        raise argparse.ArgumentTypeError(f"must have 1 to {WHY_CHARACTERS_MAX} characters")
    return raw


def _limit_pair(raw: str) -> tuple[str, Any]:
    key, equals, value = raw.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError("must be <key>=<value>, such as running=2")
    try:
        return key, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return key, value
