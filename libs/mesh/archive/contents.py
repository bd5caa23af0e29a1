"""All that the archive holds, pack by pack."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple

from contracts.errors import InvalidPayload
from contracts.records.archive import PackedTask, PackEntry
from contracts.streams import ARCHIVE
from mesh.archive.lookup import directory_of, member_of
from mesh.archive.pack import location, read_tasks
from mesh.broker.direct_get import Stored, first_from_leader, read_next
from mesh.broker.requests import Requests
from mesh.broker.scanning import ALL


class Unreadable(NamedTuple):
    """A message of ARCHIVE, or a task in it, that can't be read."""

    sequence: int
    error: str


async def packed_tasks(
    requests: Requests, wanted: Callable[[PackEntry], bool]
) -> AsyncGenerator[PackedTask | Unreadable, None]:
    """Yield the packed tasks that are `wanted` by their directories, in the order of their packs.

    Raises `BrokerUnavailable`.
    """
    after = 0
    while (stored := await _next(requests, after)) is not None:
        after = stored.sequence
        try:
            directory = directory_of(stored)
            entries = [each for each in directory.tasks if wanted(each)] if directory is not None else []
            by_member: dict[tuple[int, ...], list[PackEntry]] = {}
            for each in entries:
                by_member.setdefault((each.offset, each.size, *each.parts), []).append(each)
            for together in by_member.values():
                member = await member_of(requests, location(stored.sequence, together[0]), stored)
                names = {(each.record.tenant, each.record.id) for each in together}
                for task in read_tasks(member or b""):
                    if (task.tenant, task.task) in names:
                        yield task
        except InvalidPayload as error:
            yield Unreadable(stored.sequence, str(error))


async def _next(requests: Requests, after: int) -> Stored | None:
    """The next pack. That there is none is only the leader's to say."""
    stored = await read_next(requests, ARCHIVE.name, ALL, after)
    return stored if stored is not None else await first_from_leader(requests, ARCHIVE.name, ALL, after)
