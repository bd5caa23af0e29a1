"""The embedded broker that runs on a MESH_HOME, as another process finds it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import msgspec

from mesh.configuration.settings import Settings
from meshctl.supervision.embedded_broker import HOST
from meshctl.supervision.home import Home, is_alive

_SYNC_INTERVAL: Final = re.compile(r'^\s*sync_interval: "([^"]*)"$', re.MULTILINE)


def running_url(home: Home) -> str | None:
    """Where the embedded broker of this home listens; None if none runs."""
    return next(_urls(home), None)


def at_broker(settings: Settings) -> Settings:
    """Settings with the broker's URL: as given, else that of the mesh that runs on MESH_HOME, if there is one.

    So a second terminal finds a mesh on a free port without being told where it is. A port that was asked for holds.
    """
    if settings.nats_url is not None or settings.nats_port not in (0, Settings().nats_port):
        return settings
    return replace(settings, nats_url=running_url(Home(settings.home)) or settings.broker_url)


def sync_interval(home: Home) -> str | None:
    """What the embedded broker's configuration says; None if it can't be read."""
    try:
        match = _SYNC_INTERVAL.search(home.nats_config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return match[1] if match else None


def _urls(home: Home) -> Iterator[str]:
    for path in sorted(home.nats_ports.glob("*.ports")):
        pid = path.stem.rpartition("_")[2]
        try:
            addresses = msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]])["nats"]
            port = int(addresses[0].rpartition(":")[2])
            alive = is_alive(int(pid))
        except (OSError, msgspec.MsgspecError, KeyError, IndexError, ValueError):
            continue  # Half written, or not the broker's.
        if alive:
            yield f"nats://{HOST}:{port}"
