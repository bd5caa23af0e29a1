"""How it stands with many tasks at once: which of them have a journal, and which have ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from contracts import subjects
from contracts.journal.events import TERMINAL_TYPES, decode_head
from contracts.streams import EVENTS
from mesh.archive.lookup import journal_of
from mesh.broker.direct_get import journal_exists, last_of_many
from mesh.broker.requests import Requests

Task = tuple[str, str]
"""A tenant, and the id of a task."""
Standing = Literal["living", "ended", "packed", "absent"]
"""absent: neither EVENTS nor the archive has it, as the leaders say."""


async def standings(requests: Requests, tasks: Iterable[Task]) -> dict[Task, Standing]:
    """How it stands with each of up to 1,024 tasks. Raises `TaskmeshError`."""
    wanted = {subjects.journal_log(*task): task for task in tasks}
    found: dict[Task, Standing] = {}
    for subject, last in (await last_of_many(requests, EVENTS.name, wanted)).items():
        found[wanted[subject]] = "ended" if decode_head(last.payload).type in TERMINAL_TYPES else "living"
    for task in wanted.values():
        if task in found:
            continue
        if await journal_exists(requests, *task):
            found[task] = "living"  # A replica lags: the next look tells.
        else:
            found[task] = "packed" if await journal_of(requests, *task) else "absent"
    return found
