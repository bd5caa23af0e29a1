"""Reading the records of dead letters in full: those of one task, and one of a message that was no work."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from contracts import subjects
from contracts.api.dead_letters import RECORDS_SHOWN_BYTES_MAX, RECORDS_SHOWN_MAX, ShownDeadLetter
from contracts.records.status import OpenDeadLetter
from contracts.streams import DEAD_LETTERS
from ingress.listing.letter_records import read, shown
from mesh.broker.direct_get import PAGE_EVENTS_MAX, find_sequence, read_page
from mesh.broker.requests import Requests
from mesh.broker.stream_states import messages_on


async def read_dead_letters(
    requests: Requests, tenant: str, task: str, open_now: Sequence[OpenDeadLetter]
) -> tuple[list[ShownDeadLetter], bool]:
    """The records of a task in full, the newest first, and whether there are older ones.

    They are read from the oldest on, as many as there are: what other tasks have is passed over by the broker. No more
    than what is shown, and a page, is in memory at once. Raises `BrokerUnavailable`.
    """
    subject = subjects.dead_letter(tenant, task)
    left = await messages_on(requests, DEAD_LETTERS.name, subject)
    open_steps = {(letter.step, letter.gen) for letter in open_now}
    found: deque[tuple[ShownDeadLetter, int]] = deque()
    size = after = 0
    is_cut = False
    while left > 0:
        messages, _ = await read_page(requests, DEAD_LETTERS.name, subject, after, min(left, PAGE_EVENTS_MAX))
        if not messages:
            break
        for message in messages:
            after = message.sequence
            letter = read(message)
            if letter is None:
                continue
            is_open = (letter.step, letter.gen) in open_steps
            found.append((shown(message, letter, is_open=is_open), len(message.payload)))
            size += len(message.payload)
            while len(found) > RECORDS_SHOWN_MAX or (len(found) > 1 and size > RECORDS_SHOWN_BYTES_MAX):
                size -= found.popleft()[1]
                is_cut = True
        left -= len(messages)
    return [letter for letter, _ in reversed(found)], is_cut


async def read_malformed(requests: Requests, tenant: str, record_sequence: int) -> ShownDeadLetter | None:
    """The record of a message that was no work; None if there is none of the tenant. Raises `BrokerUnavailable`."""
    message = await find_sequence(requests, DEAD_LETTERS.name, record_sequence)
    if message is None or message.subject != subjects.malformed_dead_letter(tenant):
        return None
    letter = read(message)
    return None if letter is None else shown(message, letter, is_open=True)
