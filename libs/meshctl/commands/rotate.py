"""`meshctl rotate`: new logins for everybody at the embedded broker, while the mesh works."""

from __future__ import annotations

import argparse
import asyncio
import os
from typing import Any, Final

from mesh.configuration.settings import load_variables
from mesh.errors import SettingsError
from meshctl.display import output
from meshctl.flags import add_setting_flags, environment_with
from meshctl.supervision.control import Order, ordered
from meshctl.supervision.home import Home
from meshctl.supervision.rotation import GRACE_SECONDS

GRACE_SECONDS_MAX: Final = 86_400.0
_DESCRIPTION = f"""\
Replace every login of the embedded broker of the mesh that meshctl up runs on MESH_HOME. New ones are made beside the
old ones, and written to MESH_HOME/logins; each process takes its own within two seconds, with nothing lost. Then the
old ones are refused. Who goes on using one, such as a `nats` CLI in another terminal, is cut off after
{GRACE_SECONDS:g} s, or what --grace says.

A NATS of your own rotates in its own way: have it take the old and the new, then replace the file that
MESH_NATS_CREDS, or its like, names. Processes read it anew within two seconds.
"""


def add_commands(commands: Any) -> None:
    """Register `rotate`."""
    parser = commands.add_parser(
        "rotate",
        help="replace the logins of the embedded broker",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE_SECONDS,
        metavar="SECONDS",
        help=f"how long the old ones are good for who still uses them [{GRACE_SECONDS:g}]",
    )
    add_setting_flags(parser, ("home",))
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    settings = load_variables(environment_with(arguments, os.environ))
    if not 0 <= arguments.grace <= GRACE_SECONDS_MAX:
        raise SettingsError(f"--grace {arguments.grace:g}: must be between 0 and {GRACE_SECONDS_MAX:g}")

    async def rotate() -> None:
        async for said in ordered(Home(settings.home), Order(order="rotate", grace_seconds=arguments.grace)):
            if output.for_people():
                print(output.printable(_text(said)), flush=True)
            else:
                output.json_line(said)

    asyncio.run(rotate())
    return 0


def _text(said: dict[str, Any]) -> str:
    match said["event"]:
        case "logins.written":
            return f"new logins are good, and written: {', '.join(said['logins'])}"
        case "login.cut_off":
            return f"{said['name'] or 'somebody'} still used {said['user']}, and is cut off"
        case _:
            return "the old logins are refused"
