"""`meshctl keys`: who may call a mesh that asks for API keys."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from contracts import subjects
from contracts.access import (
    KEY_ID_PATTERN,
    KEY_PREFIX,
    NAME_CHARACTERS_MAX,
    SCOPES,
    KeyRecord,
    Scope,
    parse_key,
)
from contracts.errors import InvalidName, InvalidPayload
from contracts.headers import TENANT_DEFAULT
from contracts.links import LinkKey
from contracts.tasks import BUDGET_TOKENS_MAX
from mesh.access import keys
from mesh.access.keys import MadeKey, Rights
from mesh.access.link_keys import rotate_keys
from mesh.broker.requests import Requests
from mesh.clock import now
from meshctl import times
from meshctl.display import output
from meshctl.display.keys_table import keys_table
from meshctl.flags import add_setting_flags
from meshctl.operators import operator_name
from meshctl.supervision.acts import act_at_broker

GRACE: Final = timedelta(hours=24)
_SETTINGS: Final = ("home", "nats_url", "nats_domain", "nats_port")
_ID: Final = re.compile(rf"(?:{KEY_PREFIX})?({KEY_ID_PATTERN})")

_DESCRIPTION: Final = """\
Make API keys, list them, end them. They lie at the broker, hashed: a key is shown once, when it is made. A key
has one tenant, and scopes: submit (start tasks and cancel them), read (see tasks, events, tools, dead letters),
answer (decide on calls, and say something to a task), operate (replay and drop dead letters, load of pools).
"""


def add_commands(commands: Any) -> None:
    """Register `keys`, with what can be done to them."""
    parser = commands.add_parser(
        "keys",
        help="make, list and revoke API keys",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    create = _add(actions, "create", "make a key, and print it once", _run_create)
    # No default: it may stand before the command, too, and a default here would undo what was given there.
    create.add_argument("--tenant", default=argparse.SUPPRESS, help="whose tasks it may see [default]")
    create.add_argument("--any-tenant", action="store_true", help="let it name any tenant: for operators")
    create.add_argument("--scopes", metavar="A,B", type=_scopes, required=True, help=f"of {', '.join(SCOPES)}")
    create.add_argument(
        "--expires", metavar="TIME", type=times.span_or_time, help="a span such as 90d, or a time (RFC 3339) [never]"
    )
    create.add_argument("--name", metavar="TEXT", type=_name, help="what it is for")
    create.add_argument("--pool", type=_pool, help="the one pool that its tasks may run in [any]")
    create.add_argument("--budget", metavar="TOKENS", type=_budget, help="the most tokens of one of its tasks [none]")

    listing = _add(actions, "list", "list keys, without their secrets", _run_list)
    listing.add_argument("--tenant", default=argparse.SUPPRESS, help="only those of one tenant")

    revoke = _add(actions, "revoke", "let nobody in by a key any more", _run_revoke)
    revoke.add_argument("key", metavar="ID", type=_id, help="its id")

    rotate = _add(actions, "rotate", "make a key with the rights of another, which ends later", _run_rotate)
    rotate.add_argument("key", metavar="ID", type=_id, help="the id of the old one")
    rotate.add_argument(
        "--grace", metavar="SPAN", type=times.span, default=GRACE, help="how long the old one goes on [24h]"
    )
    rotate.add_argument(
        "--expires",
        metavar="TIME",
        type=times.span_or_time,
        help="when the new one ends [after as long as the old one was made for]",
    )

    text = "sign links to events with another key; those of before hold for a grace"
    links = _add(actions, "rotate-links", text, _run_rotate_links)
    links.add_argument("--grace", metavar="SPAN", type=times.span, default=GRACE, help="how long they may hold [24h]")


def _add(actions: Any, name: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--json", action="store_true", help="JSON lines on a terminal, too")
    add_setting_flags(parser, _SETTINGS)
    parser.set_defaults(run=run)
    return parser


def _run_create(arguments: argparse.Namespace) -> int:
    rights = Rights(
        subjects.check_tenant(getattr(arguments, "tenant", TENANT_DEFAULT)),
        arguments.scopes,
        arguments.name,
        any_tenant=arguments.any_tenant,
        pool=arguments.pool,
        budget_tokens=arguments.budget,
    )

    async def act(requests: Requests) -> MadeKey:
        return await keys.make(requests, rights, operator_name(), _end(arguments.expires))

    _tell_made(arguments, "key.created", act_at_broker(arguments, act, "key-create"))
    return 0


def _run_list(arguments: argparse.Namespace) -> int:
    async def act(requests: Requests) -> tuple[list[KeyRecord], datetime]:
        return await keys.read_all(requests), now()

    records, at = act_at_broker(arguments, act)
    found = [record for record in records if getattr(arguments, "tenant", record.tenant) == record.tenant]
    if arguments.json or not output.for_people():
        for record in found:
            output.json_line(_as_json(record, at))
    elif found:
        output.show(keys_table(found, at))
    else:
        print("there are no keys")
    return 0


def _run_revoke(arguments: argparse.Namespace) -> int:
    async def act(requests: Requests) -> tuple[KeyRecord, datetime]:
        return await keys.revoke(requests, arguments.key), now()

    record, at = act_at_broker(arguments, act, "key-revoke")
    if arguments.json or not output.for_people():
        output.json_line({"event": "key.revoked", **_as_json(record, at)})
    else:
        print(f"key {record.id} lets nobody in any more")
    return 0


def _run_rotate(arguments: argparse.Namespace) -> int:
    async def act(requests: Requests) -> MadeKey:
        return await keys.rotate(requests, arguments.key, operator_name(), arguments.grace, _end(arguments.expires))

    _tell_made(arguments, "key.rotated", act_at_broker(arguments, act, "key-rotate"), old=arguments.key)
    return 0


def _run_rotate_links(arguments: argparse.Namespace) -> int:
    async def act(requests: Requests) -> list[LinkKey]:
        return await rotate_keys(requests, arguments.grace.total_seconds())

    key, *before = act_at_broker(arguments, act, "rotate-links")
    until = max((each.until for each in before if each.until is not None), default=None)
    if arguments.json or not output.for_people():
        output.json_line({"event": "link_key.rotated", "id": key.id, "links_of_before_until": until})
    else:
        held = f"; links of before hold until {until:%Y-%m-%d %H:%M:%S}Z at most" if until is not None else ""
        print(f"links are signed with key {key.id} from now on{held}")
    return 0


def _tell_made(arguments: argparse.Namespace, event: str, made: MadeKey, old: str | None = None) -> None:
    record = made.record
    if arguments.json or not output.for_people():
        replaced = {"replaces": old} if old is not None else {}
        output.json_line({"event": event, "key": str(made.key), **_as_json(record, record.created_at), **replaced})
        return
    print(made.key)
    tenant = "any tenant" if record.any_tenant else f"tenant {record.tenant}"
    ends = f", until {record.expires_at:%Y-%m-%d %H:%M:%S}Z" if record.expires_at is not None else ""
    print(f"\nkey {record.id}: {tenant}, {', '.join(record.scopes)}{ends}. It is not shown again.")
    if old is not None:
        print(f"key {old} goes on for {arguments.grace}, unless it ends before.")


def _as_json(record: KeyRecord, at: datetime) -> dict[str, Any]:
    """What there is to say of a key. Its hash is nobody's business."""
    return {
        "id": record.id,
        "state": keys.state_of(record, at),
        "tenant": record.tenant,
        "any_tenant": record.any_tenant,
        "scopes": record.scopes,
        "name": record.name,
        "created_at": record.created_at,
        "by": record.by,
        "expires_at": record.expires_at,
        "revoked_at": record.revoked_at,
        "pool": record.pool,
        "budget_tokens": record.budget_tokens,
    }


def _end(told: timedelta | datetime | None) -> datetime | None:
    """When a key ends, by the broker's clock. Raises `InvalidPayload` for a time that has gone by."""
    end = now() + told if isinstance(told, timedelta) else told
    if end is not None and end <= now():
        raise InvalidPayload(f"--expires: {end.isoformat()} has gone by")
    return end


def _scopes(raw: str) -> list[Scope]:
    named = {part.strip() for part in raw.split(",")}
    unknown = sorted(named - {*SCOPES})
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no scope {unknown[0]!r}; {', '.join(SCOPES)}")
    return [scope for scope in SCOPES if scope in named]


def _name(raw: str) -> str:
    if not 1 <= len(raw) <= NAME_CHARACTERS_MAX:
        raise argparse.ArgumentTypeError(f"must have 1 to {NAME_CHARACTERS_MAX} characters")
    return raw


def _pool(raw: str) -> str:
    try:
        return subjects.check_pool(raw)
    except InvalidName as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _budget(raw: str) -> int:
    if not (raw.isascii() and raw.isdigit() and len(raw) <= 10 and 1 <= int(raw) <= BUDGET_TOKENS_MAX):  # noqa: PLR2004 - digits
        raise argparse.ArgumentTypeError(f"must be between 1 and {BUDGET_TOKENS_MAX}")
    return int(raw)


def _id(raw: str) -> str:
    """The id in an id, or in a whole key: who has leaked one has no time to take it apart."""
    whole = parse_key(raw)
    if whole is not None:
        return whole.id
    match = _ID.fullmatch(raw)
    if match is None:
        # Not shown: it may be most of a key.
        raise argparse.ArgumentTypeError("must be the id of a key, as meshctl keys list shows it")
    return match[1]
