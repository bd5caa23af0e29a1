"""A NATS of one's own that asks who is there: in operator mode, with TLS first and certificates, with token files.

With `TASKMESH_TEST_BROKER` as one of `KINDS` each mesh of a test's own has such a broker, but for one that a test
configures itself: so the whole suite runs on it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from mesh.configuration.settings import BROKER_ROLES
from tests.support import enforced
from tests.support.broker import Broker
from tests.support.certificates import Authority
from tests.support.operator_mode import OperatorMode, private, user_key

TOKEN: Final = "t0ken-of-a-file"


class Own(NamedTuple):
    """A broker's configuration, its URL's scheme, the variables for a mesh, and the secrets in them."""

    extra: str
    scheme: str
    variables: Mapping[str, str]
    secrets: tuple[str, ...]

    def broker(self, folder: Path, max_payload: str = "1MB") -> Broker:
        """It, without any streams, and not started yet."""
        made = Broker(folder, extra=self.extra, max_payload=max_payload)
        made.url, made.variables = made.url.replace("nats", self.scheme, 1), self.variables
        return made


def in_operator_mode(folder: Path) -> Own:
    """Creds for each service, and others for everybody else."""
    operator = OperatorMode()
    files = {role: private(folder / f"{role}.creds", operator.creds(role)) for role in (*BROKER_ROLES, "all")}
    variables = {f"MESH_NATS_CREDS_{role.upper()}": str(files[role]) for role in BROKER_ROLES}
    seeds = (re.findall(r"^SU\w+$", file.read_text(), re.MULTILINE)[0] for file in files.values())
    return Own(operator.configuration(), "nats", {**variables, "MESH_NATS_CREDS": str(files["all"])}, tuple(seeds))


def with_tls_first(folder: Path) -> Own:
    """TLS before anything else, certificates of both sides, and an nkey."""
    authority, key = Authority(folder), user_key()
    server, client = authority.issue("server"), authority.issue("client")
    tls = f"tls {{ {authority.broker_tls(server)}, handshake_first: true }}"
    extra = f"{tls}\nauthorization {{ users: [ {{ nkey: {key.public} }} ] }}"
    variables = {
        "MESH_NATS_TLS_FIRST": "1",
        "MESH_NATS_TLS_CA": str(authority.file),
        "MESH_NATS_TLS_CERT": str(client.certificate),
        "MESH_NATS_TLS_KEY": str(client.key),
        "MESH_NATS_NKEY": str(private(folder / "user.nk", key.seed + "\n")),
    }
    return Own(extra, "tls", variables, (key.seed, client.key.read_text().splitlines()[1]))


def with_token_files(folder: Path) -> Own:
    """A token."""
    file = private(folder / "token", TOKEN + "\n")
    return Own(f'authorization {{ token: "{TOKEN}" }}', "nats", {"MESH_NATS_TOKEN_FILE": str(file)}, (TOKEN,))


KINDS: Final[Mapping[str, Callable[[Path], Own]]] = {
    "operator": in_operator_mode,
    "tls-first": with_tls_first,
    "token": with_token_files,
}


STRANGERS = pytest.mark.skipif(
    os.environ.get(enforced.VARIABLE) in KINDS, reason="programs of others, which this test starts, have no login there"
)


def guard(folder: Path) -> Own | None:
    """What the broker of a mesh asks for in this run; None if that is nothing. `folder`: for its secrets."""
    make = KINDS.get(os.environ.get(enforced.VARIABLE, ""))
    return make(folder) if make is not None else None
