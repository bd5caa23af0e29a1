"""What an operator does at the broker itself, and telling the stewards, so that the audit log has a line of it."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

from contracts.codec import encode
from contracts.errors import TaskmeshError
from contracts.messages.acts import OperatorAct
from contracts.subjects import OPERATOR_ACTS
from mesh.broker.connection import Connection
from mesh.broker.requests import Requests
from mesh.configuration.settings import load_variables
from mesh.telemetry import traces
from meshctl.flags import environment_with
from meshctl.operators import operator_name
from meshctl.supervision import discovery
from meshctl.supervision.broker_setup import connected

Result = TypeVar("Result")

HEARD_SECONDS_MAX: Final = 2.0
"""How long a steward may take to say that it has heard it."""


async def tell_act(connection: Connection, what: str, *, tenant: str | None = None) -> None:
    """Tell what was done. Where no steward runs there is nobody to write it down: it is done all the same."""
    act = OperatorAct(what=what, by=operator_name(), tenant=tenant)
    with suppress(TaskmeshError):
        await connection.requests.one(OPERATOR_ACTS, encode(act), timeout_seconds=HEARD_SECONDS_MAX)


def act_at_broker(
    arguments: argparse.Namespace,
    act: Callable[[Requests], Awaitable[Result]],
    what: str | None = None,
    *,
    tenant: str | None = None,
) -> Result:
    """What an act at the broker that a command means comes to.

    `what`: what the audit log calls it, if it is to have a line there. `tenant`: whose it is.
    """
    settings = discovery.at_broker(load_variables(environment_with(arguments, os.environ)))
    # What can't be read is said on standard error; what the connection has to say, by the error.
    traces.configure(replace(settings, log_level="error"), "meshctl")

    async def run() -> Result:
        async with connected(settings) as connection:
            result = await act(connection.requests)
            if what is not None:
                await tell_act(connection, what, tenant=tenant)
            return result

    return asyncio.run(run())
