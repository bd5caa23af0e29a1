"""How it stands with many tasks at once: which of them have a journal, and which have ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from contracts import headers, subjects
from contracts.codec import encode
from contracts.journal.events import TERMINAL_TYPES, decode_head
from mesh.archive.lookup import journal_of
from mesh.broker.direct_get import journal_exists
from mesh.broker.requests import Requests
from mesh.errors import BrokerUnavailable

ANSWER_BYTES_MAX = 4 * 1024 * 1024
"""Of one answer about journals; what is left is asked for again."""

Task = tuple[str, str]
"""A tenant, and the id of a task."""
Standing = Literal["living", "ended", "packed", "absent"]
"""absent: neither EVENTS nor the archive has it, as the leaders say."""


async def standings(requests: Requests, tasks: Iterable[Task]) -> dict[Task, Standing]:
    """How it stands with each of up to 1,024 tasks. Raises `TaskmeshError`."""
    wanted = {subjects.journal_log(*task): task for task in tasks}
    found: dict[Task, Standing] = {}
    for subject, is_over in (await _last_types(requests, list(wanted))).items():
        found[wanted[subject]] = "ended" if is_over else "living"
    for task in wanted.values():
        if task in found:
            continue
        if await journal_exists(requests, *task):
            found[task] = "living"  # A replica lags: the next look tells.
        else:
            found[task] = "packed" if await journal_of(requests, *task) else "absent"
    return found


async def _last_types(requests: Requests, log_subjects: list[str]) -> dict[str, bool]:
    """Whether the last milestone of each journal that is there is its end."""
    found: dict[str, bool] = {}
    missing = log_subjects
    while missing:
        body = {"multi_last": missing, "max_bytes": ANSWER_BYTES_MAX}
        messages, last = await requests.many("$JS.API.DIRECT.GET.EVENTS", encode(body))
        for message in messages:
            subject = (message.headers or {})[headers.SUBJECT]
            found[subject] = decode_head(message.data).type in TERMINAL_TYPES
        status_headers = last.headers or {}
        if status_headers.get(headers.STATUS) not in ("204", "404"):
            raise BrokerUnavailable(f"EVENTS answered {status_headers.get(headers.STATUS)}")
        if int(status_headers.get(headers.NUM_PENDING, "0")) == 0 or not messages:
            break
        missing = [subject for subject in missing if subject not in found]
    return found
