"""Finding a packed task: the bucket `archive` says where it lies, ARCHIVE has it.

Who finds nothing of a task where living ones are looks here before it says that there is none, or begins one: a pack is
stored, and its tasks are written into the bucket, before anything of them is purged. So a task is in one place, or in
both for a moment, and who looks in this order finds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from contracts import headers, subjects
from contracts.codec import decode
from contracts.errors import InvalidPayload
from contracts.fields import whole_number
from contracts.records.archive import PackDirectory, PackedTask, PackLocation
from contracts.streams import ARCHIVE, ARCHIVE_BUCKET
from mesh.archive.pack import read_directory, read_task
from mesh.broker import key_value
from mesh.broker.direct_get import Stored, find_sequence, last_from_leader
from mesh.broker.levels import STREAM_NOT_FOUND
from mesh.broker.requests import Requests
from mesh.errors import BrokerError

OFFSET_DIGITS_MAX = 9
Places = dict[str, PackLocation]
"""A value of the bucket: where the tasks lie whose key it is, by `<tenant>.<task>`."""


async def find(requests: Requests, tenant: str, task: str) -> PackedTask | None:
    """A packed task; None, which is the leaders' word, if it is in no pack.

    Raises `BrokerUnavailable`, `InvalidPayload`.
    """
    place = await locate(requests, tenant, task)
    if place is None:
        return None
    compressed = await member_of(requests, place)
    return None if compressed is None else read_task(compressed, tenant, task)


async def journal_of(requests: Requests, tenant: str, task: str) -> list[Stored]:
    """The milestones of a packed task as EVENTS had them; none if it is in no pack.

    Raises `BrokerUnavailable`, `InvalidPayload`.
    """
    packed = await find(requests, tenant, task)
    return [] if packed is None else milestones(packed)


def milestones(packed: PackedTask) -> list[Stored]:
    """The journal of a packed task as EVENTS had it, but for its deltas."""
    subject = subjects.journal_log(packed.tenant, packed.task)
    return [
        Stored(each.sequence, subject, bytes(each.event), {headers.TIME_STAMP: each.stored_at.isoformat()})
        for each in packed.events
    ]


def directory_of(stored: Stored) -> PackDirectory | None:
    """The directory of a message of ARCHIVE; None of a part of a large task. Raises `InvalidPayload`."""
    at = stored.headers.get(headers.PACK_DIRECTORY)
    if at is None:
        return None
    offset = whole_number(at, OFFSET_DIGITS_MAX)
    if offset is None:
        raise InvalidPayload(f"{headers.PACK_DIRECTORY}: not an offset: {at!r:.40}")
    return read_directory(stored.payload, offset)


async def locate(requests: Requests, tenant: str, task: str) -> PackLocation | None:
    """Where a packed task lies; None if it is in no pack. Raises `BrokerUnavailable`, `InvalidPayload`.

    It is the leader's word: a replica may be behind, and what hangs on "it is not packed" is a task that begins anew.
    """
    subject = f"$KV.{ARCHIVE_BUCKET.name}.{subjects.archive_key(tenant, task)}"
    try:
        last = await last_from_leader(requests, ARCHIVE_BUCKET.stream_name, subject)
    except BrokerError as error:
        if error.number != STREAM_NOT_FOUND:
            raise
        # In an upgrade: the version before packed nothing, and no steward of this one has made the bucket yet.
        return None
    return places(last.payload).get(subjects.task_key(tenant, task)) if last is not None and last.payload else None


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


async def member_of(requests: Requests, place: PackLocation, pack: Stored | None = None) -> bytes | None:
    """The gzip member that a task is in; None if its pack was old enough to go. `pack`: that, if it is at hand.

    Raises `BrokerUnavailable`.
    """
    if not place.parts:
        payload = pack.payload if pack is not None else await _message(requests, place.sequence)
        return None if payload is None else payload[place.offset : place.offset + place.size]
    parts = [await _message(requests, part) for part in place.parts]
    found = [part for part in parts if part is not None]
    return b"".join(found) if len(found) == len(parts) else None


async def _message(requests: Requests, sequence: int) -> bytes | None:
    stored = await find_sequence(requests, ARCHIVE.name, sequence)
    return None if stored is None else stored.payload


def places(value: bytes) -> Places:
    """A value of the bucket. Raises `InvalidPayload`."""
    return decode(value, Places)
