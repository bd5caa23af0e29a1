"""Records of DEAD_LETTERS, as a list and a task's page have them. Pure but for a line in the log."""

from __future__ import annotations

from typing import Any

import msgspec
import structlog

from contracts import subjects
from contracts.api.dead_letters import ERROR_CHARACTERS_LISTED_MAX, ListedDeadLetter, ShownDeadLetter
from contracts.codec import decode
from contracts.errors import ErrorInfo, InvalidName, InvalidPayload
from contracts.messages.work import DeadLetter
from mesh.broker.direct_get import Stored

log = structlog.get_logger("ingress.listing.letter_records")


def listed(message: Stored) -> ListedDeadLetter | None:
    """A record as the list has it; None for what is no record, or not of the subject that it is on."""
    letter = read(message)
    if letter is None:
        return None
    last = letter.errors[-1]
    return ListedDeadLetter(
        record_sequence=message.sequence,
        id=letter.id,
        time=letter.time,
        open=True,
        error=ErrorInfo(last.code, last.message[:ERROR_CHARACTERS_LISTED_MAX]),
        stream=letter.stream,
        subject=letter.subject,
        deliveries=letter.deliveries,
        tenant=letter.tenant,
        task=letter.task,
        step=letter.step,
        gen=letter.gen,
        tool=_tool_of(letter),
        tries=letter.tries,
        worker=letter.worker,
        provider=letter.provider,
        model=letter.model,
        traceparent=letter.traceparent,
    )


def shown(message: Stored, letter: DeadLetter, *, is_open: bool) -> ShownDeadLetter:
    """A record in full."""
    fields: dict[str, Any] = msgspec.structs.asdict(letter)
    return ShownDeadLetter(**fields, record_sequence=message.sequence, open=is_open, tool=_tool_of(letter))


def read(message: Stored) -> DeadLetter | None:
    """What a message of DEAD_LETTERS says; None for what is no record, or not of the subject that it is on."""
    try:
        letter = decode(message.payload, DeadLetter)
        if message.subject != _subject_of(letter):
            raise InvalidPayload(f"its record belongs on {_subject_of(letter)}")
    except (InvalidPayload, InvalidName) as error:
        # Anybody may have written it: it must not hide the others.
        log.warning("dead_letter.unreadable", subject=message.subject, record=message.sequence, error=str(error))
        return None
    return letter


def _subject_of(letter: DeadLetter) -> str:
    if letter.task is None or letter.tenant is None:
        return subjects.malformed_dead_letter(letter.tenant)
    return subjects.dead_letter(letter.tenant, letter.task)


def _tool_of(letter: DeadLetter) -> str | None:
    try:
        return subjects.parse_tools(letter.subject) if letter.stream == "TOOLS" else None
    except InvalidName:
        return None
