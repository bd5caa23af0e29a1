"""The logins of the embedded broker: one user for each service, made at the first start, and rotated.

Each lies in a file of MESH_HOME of its own. A user's name has a number, which grows with each rotation: so the old and
the new one are two users, and the broker takes both until nobody uses the old one any more.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Final, NamedTuple

from mesh.broker.embedded import ADMIN, LOGINS, login_path, read_login, render_login
from mesh.configuration.broker_urls import BrokerLogin
from meshctl.supervision.home import Home

SECRET_BYTES: Final = 32
OLD_TOKEN_FILE: Final = "broker.token"  # noqa: S105 - the file's name
"""What all clients of an earlier version showed. Nobody is let in by it any more."""

_USER = re.compile(r"([a-z_]+)-([0-9]{1,9})")
_SECRET = re.compile(r"[A-Za-z0-9_-]{20,}")


class User(NamedTuple):
    """A user of the broker, and whose rights it has."""

    role: str
    login: BrokerLogin


def made(role: str, number: int) -> User:
    """A new login."""
    return User(role, BrokerLogin(f"{role}-{number}", secrets.token_urlsafe(SECRET_BYTES)))


def kept_or_made(home: Home) -> list[User]:
    """The logins of a home, as its files have them. What is not there, or was spoilt, is made anew."""
    home.create_folder(home.logins)
    (home.path / OLD_TOKEN_FILE).unlink(missing_ok=True)
    users: list[User] = []
    for role in LOGINS:
        path = login_path(home.path, role)
        found = None if path.is_symlink() else read_login(path)
        if found is not None and _is_ours(role, found):
            path.chmod(0o600)
            users.append(User(role, found))
        else:
            users.append(made(role, 1))
            keep(home, users[-1])
    return users


def successors(users: Sequence[User]) -> list[User]:
    """A new login for each."""
    return [made(user.role, number_of(user) + 1) for user in users]


def keep(home: Home, user: User) -> None:
    """Write a login down. Whoever connects from now on takes it, and who is connected within a second or two."""
    home.write_private(login_path(home.path, user.role), render_login(user.login).encode())


def number_of(user: User) -> int:
    """How many logins of this role there were, this one included."""
    match = _USER.fullmatch(user.login.user or "")
    return int(match[2]) if match else 0


def is_unrestricted(role: str) -> bool:
    """Whether a login may do everything."""
    return role == ADMIN


def _is_ours(role: str, login: BrokerLogin) -> bool:
    match = _USER.fullmatch(login.user or "")
    return match is not None and match[1] == role and _SECRET.fullmatch(login.password or "") is not None
