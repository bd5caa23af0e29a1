"""Requests to the broker over one shared wildcard inbox.

One subscription serves every request of a process: an inbox of its own for each call costs twice the time
(measured). Requests end in one of three ways: an answer, an error of the broker, or `BrokerUnavailable` when
nothing came in time or the connection broke, and then nobody knows whether it was carried out.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import msgspec
import nats.errors

from contracts import headers, subjects
from contracts.declarations import MESSAGE_BYTES_MAX
from mesh import faults
from mesh.broker.backlog_lanes import BacklogLanes
from mesh.broker.levels import TimerRoom
from mesh.errors import BrokerError, BrokerUnavailable, MessageTooLarge, NoLeader, NoRoom, NotAllowed

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from mesh.broker.nats_client import NatsClient

WRONG_LAST_SEQUENCE = (10071, 10164)
"""JetStream's error numbers for an expected revision that is not the last one."""
MESSAGE_TOO_LARGE = 10054
NO_ROOM = (10077, 10047, 10023)
"""Maximum messages or bytes of a subject or stream; no storage left. All mean: not now (`NoRoom`)."""
NOT_NOW = (10004, 10007, 10008, 10009, 10041, 10075, 10118, 10119, 10158, 10163, 10167, 10194, 10195)
"""Not a word on what was asked: the stream or the whole cluster has no leader, the one that is asked is none any more,
a replica is not ready, the same message is just being stored, or too many ask. The same request may succeed later.
(nats-server's errors.json; 10158 and 10163 come for some milliseconds after a leader was elected.)"""
NO_MESSAGE_FOUND = (10037, 10043, 10057)
"""No message has that sequence: never stored, or deleted by now."""
REQUEST_TIMEOUT_SECONDS = 5.0
"""How long one request may take, waiting for a reconnect included."""
SILENCE_SECONDS_MIN = 1.0
"""A publish that waited less for its answer says nothing of its stream."""
SILENCE_SECONDS_MAX = 60.0
"""How long a stream counts as silent after a publish without an answer, if nobody tries another."""

_NEW_SHARE = 0.1
"""What the newest request counts for in the average."""

_decode_answer = msgspec.json.Decoder(dict[str, Any]).decode


class PubAck(msgspec.Struct, frozen=True):
    """A stored publish. `duplicate`: the message id was seen before, and `seq` is the first one's."""

    seq: int = 0
    duplicate: bool = False
    error: dict[str, Any] | None = None


_decode_pub_ack = msgspec.json.Decoder(PubAck).decode


class _Server(msgspec.Struct, frozen=True):
    id: str


class _SystemAnswer(msgspec.Struct, frozen=True):
    server: _Server


_decode_system_answer = msgspec.json.Decoder(_SystemAnswer).decode


class _Waiter:
    __slots__ = ("future", "messages", "server_id", "subject", "timer")

    def __init__(
        self,
        subject: str,
        future: asyncio.Future[Msg],
        timer: asyncio.TimerHandle,
        messages: list[Msg] | None,
        server_id: str | None,
    ) -> None:
        self.subject = subject
        self.future = future
        self.timer = timer
        self.messages = messages
        self.server_id = server_id
        """Whose answer alone is one; None: anybody's."""


class Requests:
    """All requests of one connection."""

    def __init__(self, client: NatsClient, domain: str | None = None) -> None:
        """`domain`: that of the JetStream that is meant; None is the one of whoever the client is connected to."""
        self._client = client
        self._api = subjects.jetstream_api(domain)
        self.domain = domain
        """That of the JetStream that is meant; None is the one of whoever the client is connected to."""
        self._prefix = ""
        self._numbers = itertools.count()
        self._waiters: dict[str, _Waiter] = {}
        self._connected = asyncio.Event()
        self.round_trip_seconds = 0.0
        """About how long a request takes at present, as an average that forgets."""
        self.timers = TimerRoom(self)
        """Whether TIMERS takes one more; ask before each."""
        self.backlog_lanes = BacklogLanes(self)
        """Which lanes the stewards order: what is new there goes by BACKLOG."""
        self._listeners: list[Callable[[str | None], None]] = []
        self._silent_since: dict[str, float] = {}
        """When a publish got no answer though the connection was there, by the subject's first name."""

    async def start(self) -> str:
        """Subscribe the inbox, and return its subject. Once, after the connection is up."""
        self._prefix = self._client.new_inbox() + "."
        await self._client.listen(self._prefix + "*", self._on_answer)
        self._connected.set()
        return self._prefix + "*"

    @contextlib.asynccontextmanager
    async def held(self, seconds_max: float) -> AsyncIterator[None]:
        """A block that begins once nothing is under way, or after so long; later requests wait for its connection."""
        self._connected.clear()
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + seconds_max
        try:
            while self._waiters and (left := give_up_at - loop.time()) > 0:
                await asyncio.wait([each.future for each in self._waiters.values()], timeout=left)
                await asyncio.sleep(0)  # Who waited takes the answer.
            yield
        finally:
            if self._client.is_connected:
                self._connected.set()

    def on_disconnected(self) -> None:
        """Fail what is in flight at once, instead of at its timeout: its answers will never come."""
        self._connected.clear()
        for waiter in list(self._waiters.values()):
            if not waiter.future.done():
                waiter.future.set_exception(BrokerUnavailable("the connection to the broker broke"))

    def on_connected(self) -> None:
        """Let new requests go."""
        # A stream whose disk gave out stays silent until its server starts again: this may be that start.
        self._silent_since.clear()
        self._connected.set()
        for listener in self._listeners:
            listener(None)

    def on_not_allowed(self, subject: str) -> None:
        """Fail what waits on a subject that the user may not publish to: no answer comes. In any case of letters."""
        for waiter in list(self._waiters.values()):
            if waiter.subject.lower() == subject.lower() and not waiter.future.done():
                waiter.future.set_exception(NotAllowed(f"the broker's user may not publish to {waiter.subject}"))

    @property
    def servers(self) -> int:
        """How many servers JetStream has at least, as the one that this process is at tells; 1 if it is no cluster.

        0 if it can't tell: a cluster that advertises no others, or the domain of another server.
        """
        # What a server says first: nats-py hands it out nowhere else.
        told = self._client._server_info
        if self.domain and told.get("domain") != self.domain:
            return 0
        if not told.get("cluster"):
            return 1
        discovered = len(self._client.discovered_servers)
        known = max(len(told.get("connect_urls") or ()), discovered, len(self._client.servers) - discovered)
        return known if known > 1 else 0

    @property
    def domain_in_rights(self) -> str | None:
        """The domain as a user's rights have it: a server of the domain takes it out of a subject before it looks.

        Tried with nats-server 2.15.1, which names the plain subject in its refusals then.
        """
        return None if self._client._server_info.get("domain") == self.domain else self.domain

    def api_subject(self, call: str) -> str:
        """The subject of a call of the JetStream API, such as `STREAM.INFO.TASKS`, in the domain that is meant."""
        return self._api + call

    @property
    def payload_bytes_max(self) -> int:
        """The largest message: the broker's `max_payload`, or what streams are declared with, if that is less."""
        return min(self._client.max_payload, MESSAGE_BYTES_MAX)

    def fitting(self, bytes_max: int) -> int:
        """A bound that was made for messages of 1 MiB, shrunk in proportion where the broker takes smaller ones."""
        return bytes_max * self.payload_bytes_max // MESSAGE_BYTES_MAX

    def is_silent(self, prefix: str) -> bool:
        """Whether the last publish below `prefix`, such as `tasks`, got no answer, in the last minute.

        After a write error nats-server (2.15) answers no publish into that stream, while it still answers for the
        stream's state and refuses what breaks a condition: only a publish shows it.
        """
        since = self._silent_since.get(prefix)
        return since is not None and asyncio.get_running_loop().time() - since < SILENCE_SECONDS_MAX

    async def one(
        self,
        subject: str,
        payload: bytes = b"",
        message_headers: dict[str, str] | None = None,
        timeout_seconds: float = REQUEST_TIMEOUT_SECONDS,
    ) -> Msg:
        """Send, and return the first answer. Raises `BrokerUnavailable`."""
        return await self._send(subject, payload, message_headers, timeout_seconds, None)

    async def of_own_server(self, subject: str, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS) -> Msg:
        """Ask the server that this process is connected to, and return its answer. Raises `BrokerUnavailable`.

        A question to the system account goes over links of leaves, too, and the hub's answer may be the first: it
        is about the link (tried with nats-server 2.15.1).
        """
        server_id = str(self._client._server_info.get("server_id", ""))
        return await self._send(subject, b"", None, timeout_seconds, None, server_id)

    async def many(
        self, subject: str, payload: bytes, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS
    ) -> tuple[list[Msg], Msg]:
        """Send, and return all answers up to the one with a status, and that one. Raises `BrokerUnavailable`."""
        messages: list[Msg] = []
        last = await self._send(subject, payload, None, timeout_seconds, messages)
        return messages, last

    async def publish(
        self,
        subject: str,
        payload: bytes,
        message_headers: dict[str, str] | None = None,
        timeout_seconds: float = REQUEST_TIMEOUT_SECONDS,
    ) -> PubAck:
        """Publish into a stream and wait until it is stored.

        Raises `BrokerError` if the stream refused it, for want of room `NoRoom`; `BrokerUnavailable` if nobody knows.
        """
        faults.reach("before-publish", subject)
        try:
            answer = await self._send(self._stored_by(subject), payload, message_headers, timeout_seconds, None)
        except NotAllowed:
            raise
        except BrokerUnavailable:
            if self._connected.is_set() and timeout_seconds >= SILENCE_SECONDS_MIN:
                self._silent_since[_prefix(subject)] = asyncio.get_running_loop().time()
            raise
        if self._silent_since:
            self._silent_since.pop(_prefix(subject), None)
        try:
            ack = _decode_pub_ack(answer.data)
        except msgspec.DecodeError:
            raise BrokerUnavailable(f"no stream answers on {subject}{self._where}") from None
        if ack.error is not None:
            raise _broker_error(ack.error)
        faults.reach("after-publish", subject)
        return ack

    async def api(
        self, subject: str, body: dict[str, Any] | None = None, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS
    ) -> dict[str, Any]:
        """Call the JetStream API, e.g. `STREAM.INFO.TASKS`. Raises `BrokerError` or `BrokerUnavailable`."""
        payload = msgspec.json.encode(body) if body is not None else b""
        answer = await self.one(self.api_subject(subject), payload, timeout_seconds=timeout_seconds)
        try:
            result = _decode_answer(answer.data)
        except msgspec.DecodeError:
            raise BrokerUnavailable(f"JetStream does not answer on {subject}{self._where}") from None
        if "error" in result:
            raise _broker_error(result["error"])
        return result

    async def announce(self, subject: str, payload: bytes = b"") -> None:
        """Tell those who listen, on core NATS. Nobody may hang on it: it is not stored, and may be lost."""
        if self._client.is_connected:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._client.publish(subject, payload)

    async def on_announced(self, subject: str, listener: Callable[[str | None], None]) -> None:
        """Call `listener` with each announcement's subject; with None after a reconnect: some may be lost."""

        async def heard(message: Msg) -> None:
            listener(message.subject)

        self._listeners.append(listener)
        await self._client.subscribe(subject, cb=heard)

    async def delete_message(self, stream: str, sequence: int) -> bool:
        """Delete a message, without overwriting its bytes. False if it was gone.

        Raises `BrokerError`, `BrokerUnavailable`.
        """
        try:
            await self.api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})
        except BrokerError as error:
            if error.number not in NO_MESSAGE_FOUND:
                raise
            return False
        return True

    async def purge(self, stream: str, subject_filter: str, below: int | None = None) -> None:
        """Purge messages of a filter; `below`: only those with a lower sequence. Nothing to purge is as good.

        Raises `BrokerError`, `BrokerUnavailable`.
        """
        body: dict[str, Any] = {"filter": subject_filter}
        if below is not None:
            body["seq"] = below
        await self.api(f"STREAM.PURGE.{stream}", body)

    def _stored_by(self, subject: str) -> str:
        """Where to publish what a stream of the domain stores: servers keep `$KV.>` within a domain (NATS ADR-8)."""
        return self._api + subject if self.domain and subject.startswith("$KV.") else subject

    @property
    def _where(self) -> str:
        return f" in domain {self.domain}" if self.domain else ""

    async def _send(
        self,
        subject: str,
        payload: bytes,
        message_headers: dict[str, str] | None,
        timeout_seconds: float,
        messages: list[Msg] | None,
        server_id: str | None = None,
    ) -> Msg:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        if not self._connected.is_set():
            # Never publish into the client's reconnect buffer: what times out there may still be stored later.
            try:
                await asyncio.wait_for(self._connected.wait(), timeout_seconds)
            except TimeoutError:
                raise BrokerUnavailable("not connected to the broker") from None
        token = str(next(self._numbers))
        future: asyncio.Future[Msg] = loop.create_future()
        timer = loop.call_at(deadline, _time_out, future, subject)
        self._waiters[token] = _Waiter(subject, future, timer, messages, server_id)
        try:
            sent_at = loop.time()
            await self._client.publish(subject, payload, reply=self._prefix + token, headers=message_headers)
            answer = await future
            self.round_trip_seconds += (loop.time() - sent_at - self.round_trip_seconds) * _NEW_SHARE
            return answer
        except (nats.errors.Error, OSError) as error:
            if isinstance(error, nats.errors.MaxPayloadError):
                raise self._too_large(len(payload)) from None
            raise BrokerUnavailable(f"the broker does not take {subject}: {error}") from None
        finally:
            timer.cancel()
            self._waiters.pop(token, None)

    def _too_large(self, payload_bytes: int) -> MessageTooLarge:
        said = f"a message of {payload_bytes} bytes; the broker takes {self._client.max_payload} (its max_payload)"
        return MessageTooLarge(MESSAGE_TOO_LARGE, said)

    def _on_answer(self, message: Msg) -> None:
        waiter = self._waiters.get(message.subject[len(self._prefix) :])
        if waiter is None or waiter.future.done():
            return
        if waiter.server_id is not None and _answering_server(message.data) != waiter.server_id:
            return
        if waiter.messages is None or (message.headers and headers.STATUS in message.headers):
            waiter.future.set_result(message)
        else:
            waiter.messages.append(message)


def _answering_server(payload: bytes) -> str | None:
    """The id of the server that an answer of the system account is from; None where it has none."""
    try:
        return _decode_system_answer(payload).server.id
    except msgspec.MsgspecError:
        return None


def _prefix(subject: str) -> str:
    """What stands for a subject's stream: `tasks`, `events`; of a bucket `$KV.<bucket>`."""
    names = subject.split(".", 2)
    return ".".join(names[:2]) if names[0] == "$KV" else names[0]


def _time_out(future: asyncio.Future[Msg], subject: str) -> None:
    if not future.done():
        future.set_exception(BrokerUnavailable(f"no answer in time on {subject}"))


def _broker_error(error: dict[str, Any]) -> BrokerError | NoLeader:
    number = int(error.get("err_code") or error.get("code") or 0)
    if number in NOT_NOW:
        return NoLeader(f"{error.get('description', 'not available')} ({number})")
    kind = NoRoom if number in NO_ROOM else MessageTooLarge if number == MESSAGE_TOO_LARGE else BrokerError
    return kind(number, str(error.get("description", "error")))
