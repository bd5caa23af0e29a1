"""Packing what has just ended, and looking at what is packed, and what is left."""

from __future__ import annotations

from datetime import datetime, timedelta

from mesh.archive import lookup
from mesh.broker.connection import Connection
from mesh.broker.direct_get import read_page
from mesh.clock import now
from mesh.configuration.settings import Settings
from steward.archiving.packing import Packing
from tests.support.past import stored_messages

DAY = timedelta(days=1)


def tomorrow() -> datetime:
    """When all that was stored by now has ended a day ago, and has waited long enough for more."""
    return now() + DAY + timedelta(hours=1)


async def pack_all(connection: Connection, settings: Settings, owner: str = "test") -> None:
    """Pack whatever has ended by now."""
    packer = Packing(connection.requests, settings, owner)
    while await packer.round(tomorrow()):
        pass


async def left_of(connection: Connection, *tasks: str) -> set[str]:
    """Subjects in EVENTS and the bucket that have to do with these tasks."""
    left = {
        **await stored_messages(connection.requests, "EVENTS"),
        **await stored_messages(connection.requests, "KV_tasks"),
    }
    return {subject for subject in left if any(task in subject for task in tasks)}


async def packed_ids(connection: Connection) -> list[str]:
    """The tasks of all packs, as often as they are there."""
    messages = (await read_page(connection.requests, "ARCHIVE", ">", 0)).messages
    directories = [lookup.directory_of(message) for message in messages]
    return [each.record.id for directory in directories if directory is not None for each in directory.tasks]
