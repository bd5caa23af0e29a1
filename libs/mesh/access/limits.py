"""How often callers may ask: limits by identity and by source, told by the head of a request alone.

What is refused is answered before its body is read. There are two limits. One bounds the requests of a caller: of who
is known by their name, of who is not by their source. The other slows down who shows credentials that are not right,
by their source: when too many were wrong, those that are not known to be right are refused unseen, but for a few.
Credentials that were right a while ago are always looked at, so that nobody locks a neighbour behind the same address
out. Each process counts for itself, in tables of a fixed size.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import structlog
from litestar.types import HTTPScope

from contracts.actors import BY_HTTP, BY_LINK
from contracts.errors import TaskmeshError
from mesh.access.callers import Door, Identity, open_door
from mesh.access.sources import counted_as, source_of, unmapped
from mesh.configuration.access_tables import AuthConfiguration
from mesh.configuration.settings import Settings
from mesh.serving.http import RequestRefused, http_code, note_quota
from mesh.serving.rate_limit_fields import Quota, policy, quota
from mesh.telemetry import metrics

log = structlog.get_logger("mesh.access.limits")

CALLERS_MAX: Final = 10_000
"""So many callers are counted at once, and so many sources: some two megabytes. Who has asked least lately goes."""
KNOWN_MAX: Final = 10_000
"""So many credentials are remembered to have been right."""
LOG_SECONDS: Final = 10.0
"""How often it is said that requests are refused here."""
REQUESTS_PER_SECOND: Final = 200.0
FAILURES_PER_MINUTE: Final = 60.0
"""What holds where `[auth]` says nothing, but in mode `open`: there nothing does."""
ROUNDING_SECONDS: Final = 1e-6
"""Times that were added up are no exact multiples of an interval: the last of a burst would be refused for it."""
REQUESTS: Final = "requests"
"""What the limit of a caller's requests is called in `RateLimit`."""
COME_BACK_SECONDS_MAX: Final = 60.0
"""Nobody who sends too much is told to come much later than this."""
BURST_SECONDS: Final = 5.0
"""Of so many seconds all requests may come at once, where `[auth]` says nothing else."""

_WRONG: Final = frozenset({"unauthorized", "forbidden"})
"""The codes by which a door says that credentials are not right."""
_NOBODY_CAN_TELL: Final = frozenset({"broker-unavailable", "credentials-unavailable"})
"""The codes by which it says that they can't be looked up at present."""
_LINK: Final = re.compile(rb"(?:^|&)link=([^&]*)")


class Rates:
    """So many a second for each name, and so many at once (the generic cell rate algorithm; ITU-T I.371, annex A)."""

    def __init__(self, per_second: float, burst: float, names_max: int = CALLERS_MAX) -> None:
        self.burst_seconds = burst / per_second
        """How long it takes until as many may come at once again as ever."""
        self._interval_seconds = 1.0 / per_second
        self._tolerance_seconds = (burst - 1) * self._interval_seconds
        self._names_max = names_max
        self._due: OrderedDict[str, float] = OrderedDict()
        """When each would have been served, had all that it asked for come evenly."""
        self._told: OrderedDict[str, float] = OrderedDict()
        """When the last one that was refused was told to come again."""

    def __len__(self) -> int:
        return len(self._due)

    def take(self, name: str, at: float) -> float:
        """Count one more at this time, if it may be: 0. Else nothing is counted: seconds until one may."""
        due = self._due.get(name, at)
        wait_seconds = due - self._tolerance_seconds - at
        if wait_seconds <= ROUNDING_SECONDS:
            wait_seconds = 0.0
            self._due[name] = max(due, at) + self._interval_seconds
        self._due.move_to_end(name)
        if len(self._due) > self._names_max:
            self._due.popitem(last=False)
        return wait_seconds

    def quota(self, name: str, at: float) -> Quota:
        """How many may come at once, and when it is as many again as ever."""
        ahead = max(0.0, self._due.get(name, at) - at)
        left = math.floor((self._tolerance_seconds - ahead + ROUNDING_SECONDS) / self._interval_seconds) + 1
        most = round(self._tolerance_seconds / self._interval_seconds + 1)
        return quota(REQUESTS, policy(REQUESTS, most, self.burst_seconds), max(0, left), ahead)

    def come_back(self, name: str, at: float, wait_seconds: float) -> tuple[float, int]:
        """When one may come again that was refused, of whom one may after `wait_seconds`; and how many come before.

        Of many at once each is told a later time, as far apart as it may send them: so most of them are not refused
        again.
        """
        due = max(self._told.get(name, 0.0), at + wait_seconds - self._interval_seconds) + self._interval_seconds
        before = round((due - at - wait_seconds) / self._interval_seconds)
        if due - at <= COME_BACK_SECONDS_MAX:
            self._told[name] = due
            self._told.move_to_end(name)
            if len(self._told) > self._names_max:
                self._told.popitem(last=False)
        return due - at, before

    def give_back(self, name: str) -> None:
        """Count one less."""
        due = self._due.get(name)
        if due is not None:
            self._due[name] = due - self._interval_seconds


class Remembered:
    """Credentials that were right, as digests that say nothing about them. The longest unused go."""

    def __init__(self, count_max: int = KNOWN_MAX) -> None:
        self._salt = secrets.token_bytes(16)
        self._count_max = count_max
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def digest(self, credentials: bytes) -> bytes:
        """What is remembered of credentials."""
        return hashlib.blake2b(credentials, digest_size=16, key=self._salt).digest()

    def has(self, digest: bytes) -> bool:
        """Whether they were right when they were last seen."""
        if digest not in self._digests:
            return False
        self._digests.move_to_end(digest)
        return True

    def add(self, digest: bytes) -> None:
        """They were right."""
        self._digests[digest] = None
        if len(self._digests) > self._count_max:
            self._digests.popitem(last=False)

    def remove(self, digest: bytes) -> None:
        """They are not any more."""
        self._digests.pop(digest, None)


class _Looking:
    """A look at credentials that nobody has shown before, for all who show the same ones meanwhile."""

    def __init__(self) -> None:
        self.is_over = asyncio.Event()
        self.nobody_can_tell: TaskmeshError | None = None


class Limits:
    """The limits of one process. `is_open`: nobody is known by name there, and nothing holds that is not asked for."""

    def __init__(self, auth: AuthConfiguration, *, is_open: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_open = is_open
        self._clock = clock
        self._known = Remembered()
        self._looking: dict[bytes, _Looking] = {}
        """Credentials that are just being looked at for the first time."""
        self._refused: dict[str, int] = {}
        self._next_log = 0.0
        self._rates: tuple[tuple[float, float], float] = ((0.0, 0.0), 0.0)
        self._requests: Rates | None = None
        self._failures: Rates | None = None
        self.configure(auth)

    def configure(self, auth: AuthConfiguration) -> None:
        """Go by these from the next request on. Counts of limits that have not changed go on."""
        per_second = self._or_default(auth.requests_per_second, REQUESTS_PER_SECOND)
        burst = float(auth.burst) if auth.burst is not None else per_second * BURST_SECONDS
        per_minute = self._or_default(auth.failures_per_minute, FAILURES_PER_MINUTE)
        self._proxies = [unmapped(network) for network in auth.networks()]
        self._header = auth.source_header
        (requests, failures), self._rates = self._rates, ((per_second, burst), per_minute)
        if requests != (per_second, burst):
            self._requests = Rates(per_second, max(1.0, burst)) if per_second else None
        if failures != per_minute:
            self._failures = Rates(per_minute / 60, max(1.0, per_minute)) if per_minute else None

    async def take(self, settings: Settings) -> None:
        """Go by a changed configuration."""
        self.configure(settings.configuration.auth)

    def _or_default(self, value: float | None, default: float) -> float:
        if value is not None:
            return float(value)
        return 0.0 if self._is_open else default

    def source(self, scope: HTTPScope) -> str:
        """Where a request comes from."""
        return source_of(scope, self._proxies, self._header)

    async def admit(self, door: Door, scope: HTTPScope) -> Identity:
        """Who asks, by what the door says, if they may ask now. Raises `RequestRefused`, and what the door raises."""
        if self._requests is None and self._failures is None:
            return await door(scope)
        source = counted_as(self.source(scope))
        identity = await self._identity(door, scope, source)
        if self._requests is not None:
            caller = source if identity.name in (BY_HTTP, BY_LINK) else identity.name
            at = self._clock()
            wait_seconds = self._requests.take(caller, at)
            left = self._requests.quota(caller, at)
            if wait_seconds:
                wait_seconds, before = self._requests.come_back(caller, at, wait_seconds)
                detail = "this caller sends more requests than it may"
                raise self._too_many("requests", source, detail, wait_seconds, before, left.in_seconds(wait_seconds))
            note_quota(scope, left)
        return identity

    async def _identity(self, door: Door, scope: HTTPScope, source: str) -> Identity:
        credentials = _credentials(scope)
        if self._failures is None or self._is_open or credentials is None:
            return await door(scope)
        digest = self._known.digest(credentials)
        # Many clients that share a key come at once to a service that has just started: one of them is looked at.
        while not self._known.has(digest) and (looking := self._looking.get(digest)) is not None:
            await looking.is_over.wait()
            if looking.nobody_can_tell is not None:
                # One after the other would each wait for as long.
                raise RequestRefused(looking.nobody_can_tell.code, str(looking.nobody_can_tell))
        # Counted before they are looked at, since many may come at once; given back if they are right.
        wait_seconds = self._failures.take(source, self._clock())
        if wait_seconds and not self._known.has(digest):
            detail = "too many credentials that came from there were not right"
            raise self._too_many("credentials", source, detail, wait_seconds)
        is_wrong = False
        looked = self._looking.setdefault(digest, _Looking()) if not self._known.has(digest) else None
        try:
            identity = await door(scope)
            self._known.add(digest)
        except TaskmeshError as error:
            is_wrong = error.code in _WRONG
            if is_wrong:
                self._known.remove(digest)
            if looked is not None and error.code in _NOBODY_CAN_TELL:
                looked.nobody_can_tell = error
            raise
        finally:
            if looked is not None:
                self._looking.pop(digest, None)
                looked.is_over.set()
            if not (is_wrong or wait_seconds):
                self._failures.give_back(source)
        return identity

    def _too_many(
        self,
        kind: str,
        source: str,
        detail: str,
        wait_seconds: float,
        before: int | None = None,
        quota: Quota | None = None,
    ) -> RequestRefused:
        self._refused[kind] = self._refused.get(kind, 0) + 1
        at = self._clock()
        if at >= self._next_log:
            self._next_log = at + LOG_SECONDS
            # Of many sources the one that has come now stands for all: the log does not grow with them.
            log.warning("access.limited", source=source, refused=self._refused)
            self._refused = {}
        quotas = () if quota is None else (quota,)
        return RequestRefused(
            "rate-limited", detail, retry_after_seconds=wait_seconds, cause=kind, depth=before, quotas=quotas
        )


def limited(door: Door, limits: Limits) -> Door:
    """A door that lets nobody in more often than they may. What it refuses is counted by its code."""

    async def admit(scope: HTTPScope) -> Identity:
        try:
            return await limits.admit(door, scope)
        except Exception as error:
            metrics.request_refused(http_code(error))
            raise

    return admit


def limits_of(door: Door, auth: AuthConfiguration) -> Limits:
    """The limits for who comes through a door."""
    return Limits(auth, is_open=door is open_door)


def _credentials(scope: HTTPScope) -> bytes | None:
    """What a request shows of itself, in `Authorization` or by a link; None if nothing."""
    shown = [value for name, value in scope["headers"] if name == b"authorization"]
    # What else is in the query changes from one try to the next.
    query = scope["query_string"]
    shown += _LINK.findall(query) or ([query] if b"link" in query else [])
    return b"\n".join(shown) if shown else None
