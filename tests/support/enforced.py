"""A broker that enforces the rendered lists: each process logs in as its role, and may do what its list says.

With `TASKMESH_TEST_BROKER=enforced` every broker of a test's own is one, but for those that a test configures itself:
so the whole suite runs on it. What a server then refuses fails the test that did it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from contracts.generation.accounts import User, accounts_conf, password_variable, role_users
from contracts.guests import Guest
from contracts.permission_lists import Permissions
from contracts.permissions import ROLES

VARIABLE: Final = "TASKMESH_TEST_BROKER"
ENFORCED: Final = "enforced"
ROOT: Final = "root"
"""The test's own user, who may do everything in the mesh's account."""
ROLE_BY_MODULE: Final = {"tests.chaos.runner": "tool_runner", "meshctl": "operator"}
"""Of processes that are not named as their role."""
_VIOLATION: Final = re.compile(r"\[ERR\].*(Violation|Permissions).*")


def is_enforced() -> bool:
    """Whether tests are to run on such brokers."""
    return os.environ.get(VARIABLE) == ENFORCED


def role_of(process: str) -> str:
    """The role that a service's or a test's process logs in as; the test's own user, if it is none."""
    role = ROLE_BY_MODULE.get(process, process)
    return role if role in ROLES or role.startswith(("runner_", "signals_")) else ROOT


def accounts(guests: Sequence[Guest] = (), lacking: Mapping[str, Collection[str]] | None = None) -> str:
    """The accounts of a server: as they are rendered, and the test's own user. `lacking`: what whom is taken away."""
    users = [User(user.name, _without(user.permissions, (lacking or {}).get(user.name, ()))) for user in role_users()]
    return accounts_conf([*users, User(ROOT, Permissions((">",), (">",)))], guests)


def _without(permissions: Permissions, taken: Collection[str]) -> Permissions:
    publish, subscribe = (
        tuple(each for each in names if each not in taken) for names in (permissions.publish, permissions.subscribe)
    )
    assert len(publish) + len(subscribe) == len(permissions.publish) + len(permissions.subscribe) - len(taken)
    return Permissions(publish, subscribe, permissions.allow_responses)


def passwords(guests: Sequence[Guest] = ()) -> dict[str, str]:
    """The variables that the server has the users' passwords from."""
    return {password_variable(user): password_of(user) for user in (*ROLES, ROOT, *(each.user for each in guests))}


def password_of(user: str) -> str:
    """A user's password."""
    return f"pw-{user}"


def with_login(url: str, user: str) -> str:
    """A server's URL with a user's login."""
    return url.replace("nats://", f"nats://{user}:{password_of(user)}@")


def violations(log: Path) -> list[str]:
    """What a server's log says that it has refused for want of a right."""
    if not log.exists():
        return []  # It was never started.
    return [line for line in log.read_text(errors="replace").splitlines() if _VIOLATION.search(line)]
