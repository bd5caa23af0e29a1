"""`meshctl pools` and `meshctl top`: how the pools of a mesh stand, once or as long as somebody looks."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from dataclasses import replace
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from contracts.errors import TaskmeshError
from mesh.broker.connection import Connection
from mesh.configuration.settings import Settings, load_settings
from mesh.fleet.looking import read_fleet
from mesh.fleet.pool_states import pools_of
from mesh.telemetry import traces
from meshctl.commands.tasks import client_of
from meshctl.display import output
from meshctl.display.pool_tables import frame, lane_states_table, pools_table
from meshctl.display.tables import cell
from meshctl.flags import add_setting_flags, environment_with
from meshctl.supervision import discovery
from meshctl.supervision.broker_setup import connected

_SETTINGS = ("home", "nats_url", "nats_domain", "nats_port", "config")
INTERVAL_SECONDS: Final = 2.0
INTERVAL_SECONDS_MIN: Final = 0.5
"""Each look asks the broker for some dozens of things."""

TENANTS_ON_SCREEN_MAX: Final = 10
"""A thousand of them would push the processes off the screen. `meshctl pools` names more."""

_POOLS = """\
Print how the pools stand that you may use: what waits in each lane and how long tasks waited there, how many
begin a second, when one that comes now would begin and what that is worked out from, workers and their places,
the breakers of providers, and tenants' shares of the tokens used of late. Into a pipe: a JSON object for each pool.
"""
_TOP = """\
Show the whole mesh while you look: pools, lanes, providers, tenants, processes, and what is paused. Asks the broker,
so it works while no ingress does. Ends with Ctrl-C. Where standard output is no terminal, it prints one frame and
ends.
"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Register `pools` and `top`."""
    formatter = argparse.RawDescriptionHelpFormatter
    pools = commands.add_parser(
        "pools",
        parents=[common],
        help="show pools: waits, places, shares",
        description=_POOLS,
        formatter_class=formatter,
    )
    pools.set_defaults(run=_run_pools)

    top = commands.add_parser("top", help="show the whole mesh, live", description=_TOP, formatter_class=formatter)
    add_setting_flags(top, _SETTINGS)
    top.add_argument(
        "--interval",
        metavar="SECONDS",
        type=_seconds,
        default=INTERVAL_SECONDS,
        help=f"how often to look, {INTERVAL_SECONDS_MIN:g} or more [{INTERVAL_SECONDS:g}]",
    )
    top.set_defaults(run=_run_top)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not INTERVAL_SECONDS_MIN <= seconds <= 3600:  # noqa: PLR2004 - an hour
        raise argparse.ArgumentTypeError(f"from {INTERVAL_SECONDS_MIN:g} to 3600 seconds, not {text!r}")
    return seconds


def _run_pools(arguments: argparse.Namespace) -> int:
    return asyncio.run(_pools(arguments))


async def _pools(arguments: argparse.Namespace) -> int:
    async with client_of(arguments) as client:
        pools = (await client.pools()).value.pools
    if output.for_people():
        output.show(Group(pools_table(pools), Text(), lane_states_table(pools)))
    else:
        for pool in pools:
            output.json_line(pool)
    return 0


def _run_top(arguments: argparse.Namespace) -> int:
    settings = discovery.at_broker(load_settings(environment_with(arguments, os.environ)))
    traces.configure(replace(settings, log_level="error"), "meshctl")
    return asyncio.run(_top(settings, arguments.interval))


async def _top(settings: Settings, interval_seconds: float) -> int:
    async with connected(settings) as connection:
        if not output.on_a_screen():
            output.show(await _frame(connection, settings))
            return 0
        # Nothing else is taken over: what goes to standard error still goes where that leads.
        live = Live(
            await _frame(connection, settings, TENANTS_ON_SCREEN_MAX),
            console=output.console(),
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        # What is there is laid out anew at once, and not only with the next look.
        asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, live.refresh)
        with live:
            while True:
                await asyncio.sleep(interval_seconds)
                live.update(await _frame_or_trouble(connection, settings), refresh=True)


async def _frame(connection: Connection, settings: Settings, tenants_max: int | None = None) -> RenderableType:
    fleet = await read_fleet(connection, settings.pools)
    configuration = settings.configuration
    pools = pools_of(fleet, lambda pool: configuration.providers_of(pool) if pool in configuration.pools else ())
    workers = [member.record for member in fleet.alive if member.record is not None]
    return frame(pools, fleet.providers, workers, fleet.at, valves=fleet.valves, tenants_max=tenants_max)


async def _frame_or_trouble(connection: Connection, settings: Settings) -> RenderableType:
    """The next frame; while the broker is away, that it is: it may come back."""
    try:
        return await _frame(connection, settings, TENANTS_ON_SCREEN_MAX)
    except TaskmeshError as error:
        return cell(f"{error}", "bold red")
