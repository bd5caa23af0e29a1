"""Tasks on their way in: each becomes a packed one, as it was in the mesh that it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from contracts import subjects
from contracts.codec import decode
from contracts.errors import InvalidPayload, TaskmeshError
from contracts.journal.events import UnknownEvent, decode_event
from contracts.records.archive import PackedTask
from contracts.streams import ARCHIVE_BUCKET
from mesh.archive.lookup import find, milestones
from mesh.archive.pack import Packable, milestone_of, packable
from mesh.archive.writing import Outdated, PackWriter
from mesh.broker import key_value
from mesh.broker.direct_get import journal_exists
from mesh.broker.requests import Requests
from mesh.task.fold import fold
from mesh.task.records import record
from mesh.task.state import TaskState

BATCH_TASKS_MAX = 256
BATCH_BYTES_MAX = 16 * 1024 * 1024
"""Lines that are held at once."""


@dataclass(slots=True)
class Imported:
    """What an import came to. `refused`: the number of a line, and why it was not taken."""

    taken: int = 0
    there: int = 0
    """Tasks that the mesh has already: they stay as they are."""
    refused: list[tuple[int, str]] = field(default_factory=list)


def read_line(line: bytes) -> Packable:
    """A task as it will be packed. Raises `InvalidPayload` for one that no mesh has written, or that has not ended.

    Its record is made anew from its events: they are the truth about it.
    """
    exported = decode(line, PackedTask)
    subjects.task_key(exported.tenant, exported.task)
    state = TaskState(exported.tenant, exported.task)
    for each in exported.events:
        event = decode_event(bytes(each.event))
        if not isinstance(event, UnknownEvent) and (event.task, event.tenant) != (exported.task, exported.tenant):
            raise InvalidPayload(f"events: one is of task {event.task} of tenant {event.tenant}")
        if each.sequence <= state.revision:
            raise InvalidPayload(f"events: sequence {each.sequence} does not follow {state.revision}")
        fold(state, each.sequence, event, holes_allowed=True, payload_bytes=len(bytes(each.event)))
    if state.queued is None or state.terminal is None or state.events_after_end:
        raise InvalidPayload("events: only a task that has ended can be taken, from its task.queued to its end")
    return packable(record(state), [milestone_of(each) for each in milestones(exported)])


async def import_tasks(requests: Requests, tasks: Sequence[Packable], done: Imported) -> None:
    """Put tasks into the archive that the mesh does not have. Raises `BrokerUnavailable`, `BrokerError`."""
    missing: dict[str, Packable] = {}
    for task in tasks:
        tenant, id_ = task.record.tenant, task.record.id
        name = subjects.task_key(tenant, id_)
        if (
            name in missing
            or await journal_exists(requests, tenant, id_)
            or await find(requests, tenant, id_) is not None
        ):
            done.there += 1
        else:
            missing[name] = task
    if not missing:
        return
    first = next(iter(missing.values()))
    # A subject as good as any: what others write there is found by the fence.
    writer = PackWriter(requests, subjects.archive(first.record.sequence))
    keys = {subjects.archive_key(each.record.tenant, each.record.id) for each in missing.values()}
    known = await key_value.get_many(requests, ARCHIVE_BUCKET.name, list(keys))
    try:
        await writer.write(list(missing.values()), known)
    except Outdated:
        raise TaskmeshError(
            "others write into the archive at the same time; run it again: nothing is taken twice"
        ) from None
    done.taken += len(missing)
