"""`meshctl keys rotate-links`: another key for signed links to events."""

from __future__ import annotations

import argparse
import asyncio
import os
from dataclasses import replace
from typing import Any, Final

from contracts.links import LINK_SECONDS_MAX, LinkKey
from mesh.access.link_keys import rotate_keys
from mesh.configuration.settings import load_variables
from mesh.telemetry import traces
from meshctl.display import output
from meshctl.flags import add_setting_flags, environment_with
from meshctl.supervision import discovery
from meshctl.supervision.acts import tell_act
from meshctl.supervision.broker_setup import connected

_SETTINGS: Final = ("home", "nats_url", "nats_domain", "nats_port")
_DESCRIPTION: Final = """\
Sign links to events with another key from now on. Links that were made before hold until they expire, or for the grace
at most; with --grace-seconds 0 none of them opens a stream any more, and streams that are open end when their link
expires. Services learn of the new key by themselves, within 10 s.
"""


def add_action(actions: Any) -> None:
    """Register `rotate-links` among the actions of `keys`."""
    parser = actions.add_parser(
        "rotate-links",
        help="sign links to events with another key",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--grace-seconds",
        metavar="SECONDS",
        type=_seconds,
        default=LINK_SECONDS_MAX,
        help=f"how long links of before may hold [{LINK_SECONDS_MAX}, as long as any link does]",
    )
    parser.add_argument("--json", action="store_true", help="JSON lines on a terminal, too")
    add_setting_flags(parser, _SETTINGS)
    parser.set_defaults(run=_run_rotate)


def _run_rotate(arguments: argparse.Namespace) -> int:
    settings = discovery.at_broker(load_variables(environment_with(arguments, os.environ)))
    # What the connection has to say is said by the error, in one line.
    traces.configure(replace(settings, log_level="error"), "meshctl")

    async def rotate() -> list[LinkKey]:
        async with connected(settings) as connection:
            keys = await rotate_keys(connection.requests, arguments.grace_seconds)
            await tell_act(connection, "rotate-links")
            return keys

    key, *before = asyncio.run(rotate())
    until = max((each.until for each in before if each.until is not None), default=None)
    if arguments.json or not output.for_people():
        output.json_line({"event": "link_key.rotated", "id": key.id, "links_of_before_until": until})
    else:
        held = f"; links of before hold until {until:%Y-%m-%d %H:%M:%S}Z at most" if until is not None else ""
        print(f"links are signed with key {key.id} from now on{held}")
    return 0


def _seconds(raw: str) -> int:
    if not (raw.isascii() and raw.isdigit() and len(raw) <= 5 and int(raw) <= LINK_SECONDS_MAX):  # noqa: PLR2004 - digits
        raise argparse.ArgumentTypeError(f"must be between 0 and {LINK_SECONDS_MAX}")
    return int(raw)
