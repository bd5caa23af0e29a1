"""Least rights as people give them to a NATS: a server's configuration, `nsc` commands of operator mode, and JSON.

What each user may do is `contracts.permissions` and `contracts.guests`; here it is only written down. The files
accounts.conf and accounts.nsc.sh of deploy/nats are this for the roles alone; `meshctl permissions` prints it for more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from contracts.guests import Guest, Import
from contracts.permission_lists import Permissions
from contracts.permissions import ROLES, permissions_of

ACCOUNT: Final = "TASKMESH"
"""The account of a mesh: its streams, and the users of its services."""
_INDENT: Final = "  "


class User(NamedTuple):
    """A user in the mesh's account, named as its role."""

    name: str
    permissions: Permissions


def password_variable(user: str) -> str:
    """The variable of the server's environment that has a user's password, or a bcrypt hash of it."""
    return f"{user.upper().replace('-', '_')}_PASSWORD"


def role_users(
    *,
    domain: str | None = None,
    pools: Iterable[str] | None = None,
    webhooks: Iterable[str] | None = None,
) -> list[User]:
    """One user for each role; the arguments as of `permissions_of`. Raises `InvalidName`."""
    pools, webhooks = (tuple(each) if each is not None else None for each in (pools, webhooks))
    return [User(role, permissions_of(role, domain=domain, pools=pools, webhooks=webhooks)) for role in ROLES]


# A server's configuration


def accounts_conf(users: Sequence[User], guests: Sequence[Guest] = ()) -> str:
    """The accounts of a server: the mesh's with these users, and one for each guest."""
    lines = [
        "accounts {",
        f"  {ACCOUNT}: {{",
        "    jetstream: enabled",
        "    users: [",
        *_indented(3, [line for user in users for line in user_lines(user.name, user.permissions)]),
        "    ]",
        *_indented(2, export_lines(guests)),
        "  }",
        *_indented(1, [line for guest in guests for line in account_lines(guest)]),
        "}",
    ]
    return _text(lines)


def users_conf(users: Sequence[User]) -> str:
    """These users alone, for the list of an account's users."""
    return _text([line for user in users for line in user_lines(user.name, user.permissions)])


def guests_conf(guests: Sequence[Guest]) -> str:
    """What the mesh's account exports to these guests, and the accounts that they are in."""
    named = ", ".join(guest.user for guest in guests)
    lines = [f"# In the account {ACCOUNT}, for {named}:", *export_lines(guests), "# Beside it:"]
    return _text([*lines, *(line for guest in guests for line in account_lines(guest))])


def export_lines(guests: Sequence[Guest]) -> list[str]:
    """The `exports` of the mesh's account: each subject to those guests alone that have it; nothing without guests."""
    accounts: dict[str, list[str]] = {}
    streamed = {each.subject: each.is_streamed for guest in guests for each in guest.imports}
    for guest in guests:
        for subject in dict.fromkeys(each.subject for each in guest.imports):
            accounts.setdefault(subject, []).append(guest.account)
    exported = [
        f"{{ service: {json.dumps(subject)}, {'response_type: stream, ' if streamed[subject] else ''}"
        f"accounts: [ {', '.join(names)} ] }}"
        for subject, names in accounts.items()
    ]
    return ["exports: [", *_indented(1, exported), "]"] if exported else []


def account_lines(guest: Guest) -> list[str]:
    """The account of a guest, with what it has of the mesh."""
    return [
        f"{guest.account}: {{",
        "  users: [",
        *_indented(2, user_lines(guest.user, guest.permissions)),
        "  ]",
        "  imports: [",
        *_indented(2, map(_import_line, guest.imports)),
        "  ]",
        "}",
    ]


def _import_line(each: Import) -> str:
    there = f"{{ account: {ACCOUNT}, subject: {json.dumps(each.subject)} }}"
    renamed = f", to: {json.dumps(each.local)}" if each.local != each.subject else ""
    return f"{{ service: {there}{renamed} }}"


def user_lines(name: str, permissions: Permissions) -> list[str]:
    """One user. Its password comes from a variable of the server's environment."""
    login = f'user: "{name}", password: ${password_variable(name)}'
    return ["{", f"  {login}", *_indented(1, permissions_lines(permissions)), "}"]


def permissions_lines(permissions: Permissions) -> list[str]:
    """A user's `permissions`."""
    responses = permissions.allow_responses
    return [
        "permissions: {",
        *_allow("publish", permissions.publish),
        *_allow("subscribe", permissions.subscribe),
        *([f'  allow_responses: {{ max: {responses.max}, expires: "{responses.seconds}s" }}'] if responses else []),
        "}",
    ]


def _allow(verb: str, names: Sequence[str]) -> list[str]:
    # An empty list would allow everything.
    rule, listed = ("allow", names) if names else ("deny", [">"])
    return [f"  {verb}: {{ {rule}: [", *_indented(2, map(json.dumps, listed)), "  ] }"]


def _indented(levels: int, lines: Iterable[str]) -> list[str]:
    return [_INDENT * levels + line for line in lines]


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


# Operator mode

_LET_IN: Final = f"""\
# let_in <account> <subject> <as> <answers>: the mesh exports a subject to that account alone, which calls it so.
let_in() {{
  nsc add export --account {ACCOUNT} --service --private --name "$2" --subject "$2" --response-type "$4"
  nsc generate activation --account {ACCOUNT} --subject "$2" --output-file "$1.activation" \\
    --target-account "$(nsc describe account --name "$1" --field sub | tr -d '"')"
  nsc add import --account "$1" --name "$2 as $3" --token "$1.activation" --local-subject "$3"
}}
"""


def nsc_commands(users: Sequence[User], guests: Sequence[Guest] = (), *, account: bool = True) -> str:
    """`nsc` commands that make the same, for a shell. `account`: make the mesh's account, too."""
    lines: list[str] = []
    if account:
        limits = ["--js-disk-storage -1", "--js-mem-storage 64M", "--js-streams -1", "--js-consumer -1"]
        lines += [f"nsc add account --name {ACCOUNT}", _command(f"nsc edit account --name {ACCOUNT}", limits)]
    lines += [_add_user(ACCOUNT, user.name, user.permissions) for user in users]
    for guest in guests:
        lines += [f"nsc add account --name {guest.account}", _add_user(guest.account, guest.user, guest.permissions)]
        lines += [
            f"let_in {guest.account} '{each.subject}' '{each.local}' {'Stream' if each.is_streamed else 'Singleton'}"
            for each in guest.imports
        ]
    return (_LET_IN if guests else "") + _text(lines)


def _add_user(account: str, name: str, permissions: Permissions) -> str:
    flags = [f"--allow-pub '{each}'" for each in permissions.publish] or ["--deny-pub '>'"]
    flags += [f"--allow-sub '{each}'" for each in permissions.subscribe] or ["--deny-sub '>'"]
    responses = permissions.allow_responses
    if responses is not None:
        flags += [f"--allow-pub-response={responses.max}", f"--response-ttl {responses.seconds}s"]
    return _command(f"nsc add user --account {account} --name {name}", flags)


def _command(command: str, flags: Sequence[str]) -> str:
    return " \\\n".join([command, *(_INDENT + flag for flag in flags)])


# JSON


def as_json(users: Sequence[User], guests: Sequence[Guest] = ()) -> list[dict[str, Any]]:
    """The users as data: `user`, `account`, what it may `publish` and `subscribe`; of a guest its `imports`, too."""
    told = [{"user": user.name, "account": ACCOUNT, **_json(user.permissions)} for user in users]
    for guest in guests:
        imports = [{"subject": each.subject, "to": each.local} for each in guest.imports]
        told.append({"user": guest.user, "account": guest.account, **_json(guest.permissions), "imports": imports})
    return told


def _json(permissions: Permissions) -> dict[str, Any]:
    responses = permissions.allow_responses
    answers = {"max": responses.max, "seconds": responses.seconds} if responses is not None else None
    return {
        "publish": list(permissions.publish),
        "subscribe": list(permissions.subscribe),
        **({"allow_responses": answers} if answers else {}),
    }


# The files of deploy/nats

_HEAD: Final = """\
# Rendered from contracts.permissions by `make schemas`: change nothing here. {what}
"""
_CONF: Final = """\
# A server takes it by `include "accounts.conf"`. Each user's password, or a bcrypt hash of it (`nats server passwd`),
# is in a variable of the server's environment, such as INGRESS_PASSWORD; it begins with a letter, or is a hash.
# `meshctl permissions --tool <tool> --tenant <tenant>` prints these accounts with one account more for each
# runner in another language, and for who sends a tenant's signals.
"""
_NSC: Final = """\
# Then `nsc generate creds --account TASKMESH --name ingress > ingress.creds`, and so on, for MESH_NATS_CREDS.
"""


def files() -> dict[str, str]:
    """The files of deploy/nats that are rendered from here, by name."""
    users = role_users()
    return {
        "accounts.conf": _HEAD.format(what="One user for each process of a mesh, with its least rights.")
        + _CONF
        + accounts_conf(users),
        "accounts.nsc.sh": _HEAD.format(what="The same users for a NATS in operator mode, by nsc.")
        + _NSC
        + nsc_commands(users),
    }
