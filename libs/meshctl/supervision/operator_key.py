"""The API key of whoever runs `meshctl up`: made where its services ask for keys, and kept in MESH_HOME."""

from __future__ import annotations

from typing import Final

from contracts.access import NAME_CHARACTERS_MAX, SCOPES, is_secret_of, parse_key
from contracts.headers import TENANT_DEFAULT
from mesh.access.keys import Rights, make, read, state_of
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.configuration.settings import Settings
from meshctl.operators import operator_name
from meshctl.supervision.broker_setup import connected
from meshctl.supervision.home import Home

NAME: Final = "meshctl up"


async def operator_key_at(settings: Settings, home: Home) -> str:
    """The key that this home has, if it still opens the mesh; else a new one, which is kept there.

    It may do everything, for each tenant. Raises `BrokerUnavailable`.
    """
    async with connected(settings) as connection:
        kept = home.read_operator_key()
        if kept is not None and await _opens(connection.requests, kept):
            return kept
        rights = Rights(TENANT_DEFAULT, [*SCOPES], f"{NAME} on {home.path}"[:NAME_CHARACTERS_MAX], any_tenant=True)
        made = await make(connection.requests, rights, operator_name())
        home.write_operator_key(str(made.key))
        return str(made.key)


async def _opens(requests: Requests, text: str) -> bool:
    key = parse_key(text)
    record = await read(requests, key.id) if key is not None else None
    return (
        key is not None
        and record is not None
        and record.any_tenant
        and is_secret_of(record, key.secret)
        and state_of(record, now()) == "valid"
    )
