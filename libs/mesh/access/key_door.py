"""Who an API key stands for, by its record in the bucket `keys`: read once, and again when something may have changed.

A record counts as known for some seconds. Whoever writes one publishes on its subject, which is heard here, so that it
is read again at the next request; after a reconnect all are. So a revocation holds within a second where the line is
well, and within `FRESH_SECONDS` wherever it was not heard.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from contracts import subjects
from contracts.access import KeyRecord, hash_of, is_secret_of, parse_key
from contracts.streams import KEYS_BUCKET
from mesh.access.bearer import refused
from mesh.access.callers import Identity
from mesh.access.keys import decode_record, state_of
from mesh.access.pace import Pace
from mesh.background import is_seen
from mesh.broker import key_value
from mesh.broker.connection import Connection
from mesh.clock import now
from mesh.errors import BrokerUnavailable
from mesh.serving.http import RequestRefused

FRESH_SECONDS: Final = 5.0
"""How long what was read counts, if nothing else is heard."""
UNHEARD_FRESH_SECONDS: Final = 0.8
"""The same where no record is heard of: servers keep `$KV.>` within a domain."""
SETTLING_SECONDS: Final = 1.0
"""How long after a record was heard of it may still be read as it was: it is heard before it is stored, and a replica
may be behind."""
SETTLING_FRESH_SECONDS: Final = 0.1
"""How long what was read counts meanwhile."""
AWAY_SECONDS_MAX: Final = 60.0
"""How long a record counts that can't be read again, since the broker is away."""
AGAIN_SECONDS: Final = 1.0
"""How long until it is tried again then."""
LOOK_SECONDS_MAX: Final = 2.0
KNOWN_MAX: Final = 10_000
"""Keys that are kept: about a kilobyte each."""
ABSENT_MAX: Final = 4_096
"""Ids that are kept as those of no key. They have room of their own, so that they push out no key."""
LOOKS_PER_SECOND: Final = 200.0
LOOKS_BURST: Final = 400
"""Ids that were never seen: so many are looked up. A flood of them must not become one of reads."""


@dataclass(slots=True)
class _Known:
    """What the bucket said of an id."""

    record: KeyRecord | None
    identity: Identity | None
    read_at: float
    fresh_until: float


_NOBODYS: Final = KeyRecord(
    id="0" * 16, tenant="default", scopes=[], hash=hash_of(""), created_at=datetime.fromtimestamp(0, UTC), by="nobody"
)
"""What a secret is compared with where there is no record."""


class KeyDoor:
    """Tells who an API key stands for. `open` it before the first request comes."""

    def __init__(self, connection: Connection, *, is_heard: bool = True) -> None:
        """`is_heard`: whether what is published on a record's subject comes here."""
        self._connection = connection
        self._requests = connection.requests
        self._fresh_seconds = FRESH_SECONDS if is_heard else UNHEARD_FRESH_SECONDS
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._absent: OrderedDict[str, _Known] = OrderedDict()
        self._heard: OrderedDict[str, float] = OrderedDict()
        self._all_heard_at = -SETTLING_SECONDS
        self._looks: dict[str, asyncio.Task[_Known]] = {}
        self._pace = Pace(LOOKS_PER_SECOND, LOOKS_BURST)

    async def open(self) -> None:
        """Hear of records that change."""
        await self._requests.on_announced(subjects.KEYS_ALL, self._on_heard)

    async def identity(self, text: str) -> Identity:
        """Who this key stands for. Raises `RequestRefused`, and `BrokerUnavailable` where nobody can tell."""
        key = parse_key(text)
        if key is None:
            raise refused("these credentials are not known here")
        known = self._known.get(key.id) or self._absent.get(key.id)
        at = _time()
        if known is None or at >= known.fresh_until:
            known = await self._look(key.id, known, at)
        elif known.record is not None:
            self._known.move_to_end(key.id)
        record, identity = known.record, known.identity
        # Compared in any case, so that an id of nobody takes the same time as a wrong secret.
        is_right = is_secret_of(record or _NOBODYS, key.secret)
        if record is None or identity is None or not is_right:
            raise refused("these credentials are not known here")
        state = "valid" if record.revoked_at is None and record.expires_at is None else state_of(record, now())
        if state != "valid":
            raise refused("the API key was revoked" if state == "revoked" else "the API key has expired")
        return identity

    def _on_heard(self, subject: str | None) -> None:
        at = _time()
        if subject is None:
            self._all_heard_at = at
            for known in (*self._known.values(), *self._absent.values()):
                known.fresh_until = at
            return
        key_id = subject.rpartition(".")[2]
        self._heard[key_id] = at
        self._heard.move_to_end(key_id)
        while len(self._heard) > ABSENT_MAX:
            self._heard.popitem(last=False)
        changed = self._known.get(key_id) or self._absent.get(key_id)
        if changed is not None:
            changed.fresh_until = at

    async def _look(self, key_id: str, known: _Known | None, at: float) -> _Known:
        """Read a record again, once for all who ask at the same time."""
        has_record = known is not None and known.record is not None
        if known is not None and has_record and not self._connection.is_connected:
            return _while_away(known, at)
        look = self._looks.get(key_id)
        if look is None:
            if not has_record and not self._pace.takes(at):
                detail = "too many unknown credentials at once"
                raise RequestRefused("rate-limited", detail, retry_after_seconds=1, cause="credentials")
            look = self._looks[key_id] = asyncio.create_task(self._read(key_id))
            look.add_done_callback(is_seen)
            look.add_done_callback(lambda _: self._looks.pop(key_id, None))
        try:
            # Whoever is cancelled leaves it to the others.
            return await asyncio.shield(look)
        except BrokerUnavailable:
            if known is None or not has_record:
                raise
            return _while_away(known, at)

    async def _read(self, key_id: str) -> _Known:
        began_at = _time()
        try:
            async with asyncio.timeout(LOOK_SECONDS_MAX):
                entry = await key_value.get(self._requests, KEYS_BUCKET.name, key_id)
                if entry is None:
                    # A replica may be behind, and who has just been given a key must not be sent away.
                    entry = await key_value.get_from_leader(self._requests, KEYS_BUCKET.name, key_id)
        except TimeoutError:
            raise BrokerUnavailable("the credentials can't be looked up at present") from None
        record = decode_record(key_id, entry)
        heard_at = max(self._heard.get(key_id, self._all_heard_at), self._all_heard_at)
        is_settled = began_at >= heard_at + SETTLING_SECONDS
        fresh_seconds = self._fresh_seconds if is_settled else SETTLING_FRESH_SECONDS
        identity = identity_of(record) if record is not None else None
        known = _Known(record, identity, began_at, began_at + fresh_seconds)
        self._keep(key_id, known)
        return known

    def _keep(self, key_id: str, known: _Known) -> None:
        place, other, most = self._known, self._absent, KNOWN_MAX
        if known.record is None:
            place, other, most = self._absent, self._known, ABSENT_MAX
        other.pop(key_id, None)
        place[key_id] = known
        place.move_to_end(key_id)
        while len(place) > most:
            place.popitem(last=False)


def identity_of(record: KeyRecord) -> Identity:
    """Who a key stands for, by its record."""
    return Identity(
        f"key:{record.id}",
        record.tenant,
        frozenset(record.scopes),
        pool=record.pool,
        budget_tokens=record.budget_tokens,
        any_tenant=record.any_tenant,
        until=record.expires_at,
    )


def _while_away(known: _Known, at: float) -> _Known:
    """What was known last, for a while. Raises `BrokerUnavailable` after it."""
    if at - known.read_at > AWAY_SECONDS_MAX:
        raise BrokerUnavailable("the credentials can't be looked up at present")
    known.fresh_until = at + AGAIN_SECONDS
    return known


def _time() -> float:
    return asyncio.get_running_loop().time()
