"""Telling the stewards what an operator has done at the broker itself, so that the audit log has a line of it."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from contracts.codec import encode
from contracts.errors import TaskmeshError
from contracts.messages.acts import OperatorAct
from contracts.subjects import OPERATOR_ACTS
from mesh.broker.connection import Connection
from meshctl.operators import operator_name

HEARD_SECONDS_MAX: Final = 2.0
"""How long a steward may take to say that it has heard it."""


async def tell_act(connection: Connection, what: str, *, tenant: str | None = None, task: str | None = None) -> None:
    """Tell what was done. Where no steward runs there is nobody to write it down: it is done all the same."""
    act = OperatorAct(what=what, by=operator_name(), tenant=tenant, task=task)
    with suppress(TaskmeshError):
        await connection.requests.one(OPERATOR_ACTS, encode(act), timeout_seconds=HEARD_SECONDS_MAX)
