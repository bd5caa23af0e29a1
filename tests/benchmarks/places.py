"""The checker over ids: each task that was written is in exactly one place, and is found there."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field

from contracts import headers, subjects
from contracts.records.archive import PackDirectory, PackLocation
from mesh.archive import lookup, pack
from mesh.broker.direct_get import Stored, read_page
from mesh.broker.requests import Requests
from mesh.journal.journal import Journal
from tests.support.months import Ledger, Task

SAMPLE = 300
"""Looked for by the code that services use, at random."""
PAGE_MESSAGES_MAX = 1_024
PACKS_AT_ONCE = 8
PAGE_BYTES_MAX = 4 * 1024 * 1024


@dataclass
class Places:
    """Where tasks are, by `<tenant>.<task>`."""

    hot: set[str] = field(default_factory=set)
    """With a journal in EVENTS, or anything left of one."""
    records: set[str] = field(default_factory=set)
    packed: Counter[str] = field(default_factory=Counter)
    """How many packs have it, by their directories."""
    misplaced: set[str] = field(default_factory=set)
    """Whose place in the bucket is not where its pack has it, or that is in no line there."""
    packs: int = 0


async def look(requests: Requests) -> Places:
    """Look through all there is: journals, records, packs with each line, and the bucket of places."""
    found = Places()
    async for message in _all(requests, "EVENTS", PAGE_MESSAGES_MAX):
        journal = subjects.parse_journal(message.subject)
        found.hot.add(subjects.task_key(journal.tenant, journal.task))
    async for message in _all(requests, "KV_tasks", PAGE_MESSAGES_MAX):
        found.records.add(message.subject.removeprefix("$KV.tasks."))
    located: lookup.Places = {}
    async for message in _all(requests, "KV_archive", PAGE_MESSAGES_MAX):
        located |= lookup.places(message.payload)
    async for message in _all(requests, "ARCHIVE", PACKS_AT_ONCE):
        at = message.headers.get(headers.PACK_DIRECTORY)
        if at is not None:
            found.packs += 1
            directory = pack.read_directory(message.payload, int(at))
            _look_into(found, message, directory, located)
    return found


def _look_into(found: Places, message: Stored, directory: PackDirectory, located: lookup.Places) -> None:
    lines: dict[tuple[int, int], set[str]] = {}
    for entry in directory.tasks:
        name = subjects.task_key(entry.record.tenant, entry.record.id)
        found.packed[name] += 1
        place = located.get(name)
        if place != PackLocation(message.sequence, entry.offset, entry.size, entry.parts):
            found.misplaced.add(name)
            continue
        if entry.parts:
            continue  # In messages of its own: the sample reads some.
        member = (entry.offset, entry.size)
        if member not in lines:
            tasks = pack.read_tasks(message.payload[entry.offset : entry.offset + entry.size])
            lines[member] = {subjects.task_key(each.tenant, each.task) for each in tasks}
        if name not in lines[member]:
            found.misplaced.add(name)


async def check(
    requests: Requests, ledger: Ledger, *, dropped: int = 0, strangers: bool = False, seed: int = 0
) -> Places:
    """Raises `RuntimeError` unless each task, but for the first `dropped`, is in exactly one place, and is found there.

    The first ones are nowhere, or were not yet dropped. `strangers`: there may be others.
    """
    found = await look(requests)
    wrong: list[str] = []
    for number in range(len(ledger)):
        task = ledger[number]
        name = f"{task.tenant}.{task.id}"
        is_hot, is_record, packs = name in found.hot, name in found.records, found.packed[name]
        is_gone = number < dropped and not (is_hot or is_record or packs)
        if not is_gone and (is_hot, is_record, packs) not in ((True, True, 0), (False, False, 1)):
            wrong.append(f"{name}: journal {is_hot}, record {is_record}, packs {packs}")
    if not strangers and len(found.hot | found.packed.keys()) > len(ledger):
        wrong.append("there are others")
    wrong += [f"{name}: not where the bucket says" for name in found.misplaced]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(ledger)} are wrong: {wrong[:5]}")
    await _check_sample(requests, found, _sample(ledger, seed, range(dropped, len(ledger))))
    return found


async def _check_sample(requests: Requests, found: Places, sample: Iterable[Task]) -> None:
    for task in sample:
        packed = await lookup.find(requests, task.tenant, task.id)
        if (packed is not None) != (found.packed[f"{task.tenant}.{task.id}"] == 1):
            raise RuntimeError(f"{task} is not found where it is")
        journal = await Journal.load(requests, task.tenant, task.id)
        if journal.state.status != task.status:
            raise RuntimeError(f"{task} reads as {journal.state.status}")


def _sample(ledger: Ledger, seed: int, numbers: Sequence[int]) -> list[Task]:
    return [ledger[number] for number in random.Random(seed).sample(numbers, min(SAMPLE, len(numbers)))]


async def _all(requests: Requests, stream: str, messages_max: int) -> AsyncIterator[Stored]:
    after = 0
    while True:
        # Without a filter: for each page with one the broker counts all of its subjects.
        page = await read_page(requests, stream, ">", after, messages_max, PAGE_BYTES_MAX)
        for message in page.messages:
            yield message
            after = message.sequence
        if not page.more or not page.messages:
            return
