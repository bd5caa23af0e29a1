"""Turns of a tenant that is paused: put off into BACKLOG by the worker that gets one, and brought back by a steward.

A paused tenant shares its lanes with others, so that no gate can be shut for it, and a message that went back to its
queue would use up its deliveries. What is put off keeps its payload, and says where it came from. Neither way is one
lost: it is stored in the one stream before it is taken from the other, under an id that is made of where it was.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from contracts import headers, subjects
from contracts.codec import encode
from contracts.errors import InvalidName
from contracts.identifiers import turn_message_id
from contracts.messages.work import TurnWork, Work
from contracts.streams import BACKLOG
from mesh.broker.deliveries import Delivery
from mesh.broker.direct_get import Stored, last_sequence
from mesh.broker.requests import Requests
from mesh.broker.scanning import Scan
from mesh.errors import NoRoom
from mesh.valves.watched import Valves

log = structlog.get_logger("mesh.valves.parking")

PUT_OFF: Final = "Mesh-Put-Off"
"""On what a worker has put off: the subject that it is to have again."""
AT_ONCE_MAX: Final = 32
MESSAGES_PER_PAGE_MAX: Final = 256


class Parking:
    """Where a worker leaves turns that are not to be begun now."""

    def __init__(self, requests: Requests, valves: Valves) -> None:
        self._requests = requests
        self._valves = valves

    def has_to_wait(self, work: Work) -> bool:
        """Whether a step that nobody has begun is not to be begun now: a turn of a tenant that is paused."""
        return isinstance(work, TurnWork) and self._valves.is_paused(tenant=work.tenant)

    async def put_off(self, delivery: Delivery, work: Work) -> bool:
        """Store a turn in BACKLOG; False if there is no room for it. Its delivery may be acked then.

        Raises `BrokerUnavailable`.
        """
        if not isinstance(work, TurnWork):
            raise TypeError("not a turn")
        turn = turn_message_id(work.task, work.turn, work.gen)
        message_headers = {
            headers.MESSAGE_ID: f"{turn}.{delivery.stream}.{delivery.sequence}",
            PUT_OFF: delivery.subject,
        }
        traceparent = delivery.headers.get(headers.TRACEPARENT)
        if traceparent is not None:
            message_headers[headers.TRACEPARENT] = traceparent
        try:
            await self._requests.publish(
                subjects.backlog(work.pool, work.priority, work.tenant), delivery.payload, message_headers
            )
        except NoRoom as error:
            log.warning("step.no_room_to_wait", error=str(error))
            return False
        lane = {"pool": work.pool, "priority": work.priority, "tenant": work.tenant}
        await self._requests.announce(subjects.BACKLOG_GREW, encode(lane))
        return True


class Returns:
    """Brings back what was put off, once its tenant may go on. Any number of stewards may: a move happens once."""

    def __init__(self, requests: Requests, valves: Valves) -> None:
        self._requests = requests
        self._valves = valves
        self._scan = Scan(requests, BACKLOG.name)
        self._cursor = 0
        """Up to there is nothing that may go on."""

    def begin_anew(self) -> None:
        """Look at all of it again: a tenant may go on."""
        self._cursor = 0

    async def round(self) -> int:
        """Bring back what may go on; how many that were. Raises `NoRoom` if its queue is full, `BrokerUnavailable`."""
        moved, more = 0, True
        if self._cursor and await last_sequence(self._requests, BACKLOG.name) < self._cursor:
            self._cursor = 0  # The stream was made anew.
        while more:
            page = await self._scan.page(self._cursor, MESSAGES_PER_PAGE_MAX)
            due = [message for message in page.messages if self._may_go_on(message)]
            for start in range(0, len(due), AT_ONCE_MAX):
                some = due[start : start + AT_ONCE_MAX]
                for done in await asyncio.gather(*map(self._move, some), return_exceptions=True):
                    if isinstance(done, BaseException):
                        raise done
            moved += len(due)
            more = page.more
            if page.messages:
                self._cursor = page.messages[-1].sequence
        return moved

    def _may_go_on(self, message: Stored) -> bool:
        if PUT_OFF not in message.headers or headers.MESSAGE_ID not in message.headers:
            return False  # It waits for something else.
        return not self._valves.is_paused(tenant=message.subject.rpartition(".")[2])

    async def _move(self, message: Stored) -> None:
        subject = message.headers[PUT_OFF]
        try:
            subjects.parse_tasks(subject) if subject.startswith("tasks.") else subjects.parse_turns(subject)
        except InvalidName as error:
            log.warning("backlog.not_understood", message=message.sequence, error=str(error))
            return
        # Made of the id that it was put off under, which no other message has.
        message_headers = {headers.MESSAGE_ID: f"{message.headers[headers.MESSAGE_ID]}.back"}
        if headers.TRACEPARENT in message.headers:
            message_headers[headers.TRACEPARENT] = message.headers[headers.TRACEPARENT]
        await self._requests.publish(subject, message.payload, message_headers)
        await self._requests.delete_message(BACKLOG.name, message.sequence)
