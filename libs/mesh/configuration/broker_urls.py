"""The URL of a broker, or of several that are one cluster: taken apart for a client, and shown without its password."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote

from mesh.configuration.addresses import is_host

DEFAULT_PORT: Final = 4222
HIDDEN: Final = "***"
SCHEMES: Final = ("nats", "tls", "ws", "wss")

# The last @ ends what is secret, be there others in it: better too much is hidden than too little.
_SERVER = re.compile(
    r"(?:(?P<scheme>[a-z]+)://)?(?:(?P<login>.*)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::(?P<port>[0-9]{1,5}))?/?",
    re.DOTALL,
)
_PORT_MAX: Final = 65_535
_RULE: Final = "must be nats://[<user>:<password>@]<host>[:<port>], several with commas between them"
_ENCODE: Final = "; in a user or password write %40 for @, %3A for :, %2F for /, %2C for a comma"


class BrokerLogin(NamedTuple):
    """Who logs in. With a token there is neither user nor password; without either it is nobody."""

    user: str | None = None
    password: str | None = None
    token: str | None = None


class BrokerUrl(NamedTuple):
    """What MESH_NATS_URL says: the servers, each `scheme://host:port` without a login, and the one login of all."""

    servers: tuple[str, ...]
    login: BrokerLogin


def parse_broker_url(url: str) -> BrokerUrl:
    """Take a URL, or a list with commas, apart; the login's percent encoding goes.

    Raises `ValueError`, which names no part of the URL that may be secret.
    """
    servers: list[str] = []
    logins: list[BrokerLogin] = []
    for piece in _pieces(url):
        match = _SERVER.fullmatch(piece)
        if match is None or not _is_server(match):
            raise ValueError(_RULE + (_ENCODE if "@" in url else ""))
        servers.append(f"{match['scheme'] or 'nats'}://{match['host']}:{match['port'] or DEFAULT_PORT}")
        if match["login"] is not None:
            login = _login(match["login"])
            if login not in logins:
                logins.append(login)
    if len(logins) > 1:
        raise ValueError("its servers have different logins: they are one cluster, with one user for all")
    return BrokerUrl(tuple(servers), logins[0] if logins else BrokerLogin())


def without_password(url: str) -> str:
    """A broker's URL as it may be shown or logged: `nats://user:secret@host` → `nats://***@host`, each of a list.

    What can't be read as a server is hidden as a whole, since nobody can tell what in it is secret.
    """
    shown: list[str] = []
    for piece in _pieces(url):
        match = _SERVER.fullmatch(piece)
        if match is None or not _is_server(match):
            shown.append(HIDDEN)
        elif match["login"] is None:
            shown.append(piece)
        else:
            shown.append(piece[: match.start("login")] + HIDDEN + piece[match.end("login") :])
    return ",".join(shown)


def without_login(url: str) -> str:
    """Any URL as it may be shown: `https://user:secret@host/x` → `https://***@host/x`, up to the last @ of all."""
    scheme, slashes, rest = url.partition("//")
    if not slashes:
        scheme, rest = "", url
    _, at, after = rest.rpartition("@")
    return f"{scheme}{slashes}{HIDDEN}@{after}" if at else url


def _pieces(url: str) -> list[str]:
    return [piece.strip() for piece in url.split(",")]


def _is_server(match: re.Match[str]) -> bool:
    host = match["host"].removeprefix("[").removesuffix("]")
    scheme_is_known = (match["scheme"] or SCHEMES[0]) in SCHEMES
    return scheme_is_known and is_host(host) and int(match["port"] or DEFAULT_PORT) in range(1, _PORT_MAX + 1)


def _login(text: str) -> BrokerLogin:
    user, colon, password = text.partition(":")
    if not colon:
        return BrokerLogin(token=unquote(user))
    return BrokerLogin(unquote(user), unquote(password))
