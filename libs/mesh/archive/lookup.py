"""Finding a packed task: the bucket `archive` says where it lies, ARCHIVE has it.

Who finds nothing of a task where living ones are looks here before it says that there is none, or begins one: a pack is
stored, and its tasks are written into the bucket, before anything of them is purged. So a task is in one place, or in
both for a moment, and who looks in this order finds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from contracts import subjects
from contracts.codec import decode
from contracts.records.archive import PackedTask, PackLocation
from contracts.streams import ARCHIVE, ARCHIVE_BUCKET
from mesh.archive.pack import read_task
from mesh.broker import key_value
from mesh.broker.direct_get import read_sequence
from mesh.broker.requests import Requests

Places = dict[str, PackLocation]
"""A value of the bucket: where the tasks lie whose key it is, by `<tenant>.<task>`."""


async def find(requests: Requests, tenant: str, task: str) -> PackedTask | None:
    """A packed task; None if it is in no pack. Raises `BrokerUnavailable`, `InvalidPayload`."""
    place = await locate(requests, tenant, task)
    if place is None:
        return None
    if place.parts:
        messages = [await read_sequence(requests, ARCHIVE.name, part) for part in place.parts]
        compressed = b"".join(message.payload for message in messages if message is not None)
        if None in messages:
            return None
    else:
        message = await read_sequence(requests, ARCHIVE.name, place.sequence)
        if message is None:
            return None  # Its pack was old enough to go: nothing is left of it.
        compressed = message.payload[place.offset : place.offset + place.size]
    return read_task(compressed, tenant, task)


async def locate(requests: Requests, tenant: str, task: str) -> PackLocation | None:
    """Where a packed task lies; None if it is in no pack, as one replica knows. Raises `BrokerUnavailable`."""
    entry = await key_value.get(requests, ARCHIVE_BUCKET.name, subjects.archive_key(tenant, task))
    if entry is None or not entry.value:
        return None
    return places(entry.value).get(subjects.task_key(tenant, task))


async def located(requests: Requests, tasks: Iterable[tuple[str, str]]) -> Mapping[str, PackLocation]:
    """Where each of these tasks, `(tenant, task)`, lies that is packed; by `<tenant>.<task>`. At most 1,024."""
    keys = {subjects.task_key(*each): subjects.archive_key(*each) for each in tasks}
    entries = await key_value.get_many(requests, ARCHIVE_BUCKET.name, list(keys.values()))
    found: Places = {}
    for name, key in keys.items():
        entry = entries.get(key)
        place = places(entry.value).get(name) if entry is not None and entry.value else None
        if place is not None:
            found[name] = place
    return found


def places(value: bytes) -> Places:
    """A value of the bucket. Raises `InvalidPayload`."""
    return decode(value, Places)
