"""The archive as a checker reads it: what each pack says that it holds, and where the bucket says a task lies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from contracts import headers, subjects
from contracts.errors import InvalidPayload
from contracts.journal.events import TERMINAL_TYPES
from contracts.records.archive import PackDirectory, PackedTask, PackLocation
from contracts.streams import ARCHIVE, ARCHIVE_BUCKET
from mesh.archive import pack
from mesh.archive.lookup import places
from mesh.broker.direct_get import Stored, read_page
from mesh.broker.requests import Requests


@dataclass
class Archive:
    """What ARCHIVE and the bucket `archive` hold. Tasks are named `<tenant>.<task>`."""

    directories: dict[int, PackDirectory] = field(default_factory=dict)
    """By the pack's sequence."""
    places: dict[str, PackLocation] = field(default_factory=dict)
    """Those whose pack is there: a place whose pack is gone stands for nothing."""
    tasks: dict[str, PackedTask] = field(default_factory=dict)
    """As they are found by their places."""
    problems: list[str] = field(default_factory=list)
    """What can't be read, or lies where nobody finds it."""

    @property
    def packed(self) -> Counter[str]:
        """How often each task is in a pack."""
        return Counter(
            subjects.task_key(each.record.tenant, each.record.id)
            for directory in self.directories.values()
            for each in directory.tasks
        )


async def read_archive(requests: Requests) -> Archive:
    """Read all of it. Raises `BrokerUnavailable`."""
    archive = Archive()
    # The places first: what they say by then is in a pack by then.
    said: dict[str, PackLocation] = {}
    for message in await _all(requests, ARCHIVE_BUCKET.stream_name, f"$KV.{ARCHIVE_BUCKET.name}.*"):
        said |= places(message.payload) if message.payload else {}
    messages = {message.sequence: message for message in await _all(requests, ARCHIVE.name, ">")}
    for sequence, message in messages.items():
        at = message.headers.get(headers.PACK_DIRECTORY)
        if at is not None:
            archive.directories[sequence] = pack.read_directory(message.payload, int(at))
    archive.places = {name: place for name, place in said.items() if place.sequence in archive.directories}
    for name, place in archive.places.items():
        try:
            archive.tasks[name] = _found(messages, name, place)
        except InvalidPayload as error:
            archive.problems.append(f"I1: task {name} is not where the archive says, at {_told(place)}: {error}")
    return archive


def _found(messages: dict[int, Stored], name: str, place: PackLocation) -> PackedTask:
    """A task, found as any reader finds it: by its place alone. Raises `InvalidPayload`."""
    if place.parts:
        missing = [part for part in place.parts if part not in messages]
        if missing:
            raise InvalidPayload(f"its parts {missing} are not there")
        member = b"".join(messages[part].payload for part in place.parts)
    else:
        member = messages[place.sequence].payload[place.offset : place.offset + place.size]
    tenant, _, task = name.partition(".")
    return pack.read_task(member, tenant, task)


async def _all(requests: Requests, stream: str, subject_filter: str) -> list[Stored]:
    messages: list[Stored] = []
    more = True
    while more:
        page = await read_page(requests, stream, subject_filter, messages[-1].sequence if messages else 0)
        messages += page.messages
        more = page.more
    return messages


def check_archive(archive: Archive, journals: Collection[str] = (), records: Collection[str] = ()) -> list[str]:
    """What is wrong once nobody packs any more: what is packed is there once, is found there, and is nowhere else.

    `journals` and `records`: names of the tasks that EVENTS and the bucket `tasks` have something of.
    """
    problems = [*archive.problems]
    packed = archive.packed
    problems += [f"I10: task {name} is packed {count} times" for name, count in packed.items() if count > 1]
    for sequence, directory in archive.directories.items():
        for each in directory.tasks:
            name = subjects.task_key(each.record.tenant, each.record.id)
            place = archive.places.get(name)
            if place is None or (packed[name] == 1 and place != pack.location(sequence, each)):
                told = "nothing" if place is None else _told(place)
                problems.append(f"I1: task {name} is in pack {sequence}, and the archive says {told}")
    problems += [
        f"I1: the archive says that task {name} is in pack {place.sequence}, which knows nothing of it"
        for name, place in archive.places.items()
        if not packed[name]
    ]
    problems += [f"I10: task {name} is packed, and left in EVENTS" for name in packed if name in journals]
    problems += [f"I10: task {name} is packed, and its record is left" for name in packed if name in records]
    for name, found in archive.tasks.items():
        problems += [f"{problem} ({name})" for problem in _check_packed(found)]
    return problems


def _check_packed(found: PackedTask) -> list[str]:
    """What one packed task shows by itself."""
    if not found.events:
        return ["I1: it is packed without a journal"]
    last = found.events[-1]
    end = json.loads(bytes(last.event))["type"]
    if end not in TERMINAL_TYPES:
        return [f"I1: it is packed with the end {end}"]
    if end != f"task.{found.record.status}" or found.record.sequence != last.sequence:
        record = f"{found.record.status} at {found.record.sequence}"
        return [f"I10: it ended with {end} at {last.sequence}, its record says {record}"]
    return []


def _told(place: PackLocation) -> str:
    return f"{place.sequence}, {place.offset} and {place.size} bytes, parts {place.parts}"
