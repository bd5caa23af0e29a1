"""The pace of all providers, in one process: it keeps to it, and writes what it has to say into the bucket `providers`.

A record is read, and written by compare-and-set. What all should know at once, such as a refusal, is announced on
`providers.paced.<provider>`; an announcement may be lost, and the record is what counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Mapping

import structlog

from contracts import subjects
from contracts.codec import encode
from contracts.errors import TaskmeshError
from contracts.records.pace import PaceRecord, pace_key
from contracts.streams import PROVIDERS_BUCKET
from mesh.background import first_of
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.clock import lease_clock, now
from mesh.configuration.pace_table import PaceSettings
from mesh.loop_health import LoopHealth
from mesh.pacing.pacer import Pacer
from mesh.pacing.rules import Wanted, book, shut_until, sound
from mesh.telemetry import metrics

log = structlog.get_logger("mesh.pacing.pacing")

TRIES_MAX = 20
"""Compare-and-sets of one booking that others may win before it is left to the next round."""
SOON_SECONDS = 0.02
"""How much later gates and the record learn of turns that come and go: of many at once, and not on the way to a first
token."""
UNAVAILABLE_SECONDS = 1.0
GIVE_BACK_SECONDS_MAX = 1.0
"""How long a process that stops takes to give back what it has booked."""


class Pacing:
    """The pace of each provider, by its name. `run` keeps it, and must be running."""

    def __init__(self, requests: Requests, configured: Mapping[str, PaceSettings], worker: str) -> None:
        self._requests = requests
        self._worker = worker
        self._configured = frozenset(configured)
        self._pacers = {name: Pacer(name, settings, worker) for name, settings in configured.items()}
        self._wakes: dict[str, asyncio.Event] = {}
        """Of those that are kept."""
        self._more = asyncio.Event()
        """Whether there are others."""
        self._callbacks: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._came_or_went: set[Pacer] = set()
        """Where turns have, since gates and records have learnt of it."""

    def pacer(self, provider: str) -> Pacer:
        """That of a provider; of one that is not configured one without limits."""
        if provider not in self._pacers:
            self._pacers[provider] = Pacer(provider, PaceSettings(), self._worker)
            self._more.set()
        return self._pacers[provider]

    def keeps(self, provider: str) -> bool:
        """Whether anything is known of a provider's limits, or it may refuse."""
        return provider in self._configured

    def room(self, provider: str) -> float:
        """How much may begin at a provider now, by all workers: 0.0 is nothing, 1.0 all that it allows."""
        return self.pacer(provider).part(now().timestamp())

    def configure(self, configured: Mapping[str, PaceSettings]) -> None:
        """Go by other limits, and other providers. What was booked and is owed stays."""
        self._configured = frozenset(configured)
        for name in {*self._pacers, *configured}:
            self.pacer(name).settings = configured.get(name, PaceSettings())
        self.changed()

    def on_changed(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever there may be another room."""
        self._callbacks.append(callback)

    def changed(self) -> None:
        """Something happened that gates must learn of, or the records."""
        self._tell(self._pacers.values())

    def came_or_went(self, pacer: Pacer) -> None:
        """A turn has, at this provider: gates and its record learn of it soon, together with those that follow.

        One that nothing limits, and that was not refused, costs nothing more.
        """
        if not pacer.has_a_say:
            return
        if not self._came_or_went:
            asyncio.get_running_loop().call_later(SOON_SECONDS, self._tell_of_turns)
        self._came_or_went.add(pacer)

    def _tell_of_turns(self) -> None:
        pacers, self._came_or_went = self._came_or_went, set()
        self._tell(pacers)

    def _tell(self, pacers: Iterable[Pacer]) -> None:
        self._tell_gates()
        at = now().timestamp()
        for each in pacers:
            if each.wanted(at) is not None and each.provider in self._wakes:
                self._wakes[each.provider].set()

    async def run(self) -> None:
        """Book, and write what this process has to say, until cancelled; then give back what is left."""
        await self._requests.on_announced(subjects.PROVIDERS_PACED, self._heard)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._more.clear()
                    for name in self._pacers.keys() - self._wakes.keys():
                        self._wakes[name] = asyncio.Event()
                        group.create_task(self._keep(self._pacers[name], self._wakes[name]))
                    await self._more.wait()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            with contextlib.suppress(TaskmeshError, TimeoutError):
                async with asyncio.timeout(GIVE_BACK_SECONDS_MAX):
                    await asyncio.gather(*(self._write(pacer, stopping=True) for pacer in self._pacers.values()))

    async def _keep(self, pacer: Pacer, wake: asyncio.Event) -> None:
        """One provider's. One that many write at, from afar, holds up no other."""
        health = LoopHealth(log, "pacing.records_unavailable", provider=pacer.provider)
        while True:
            wake.clear()
            try:
                await self._tend(pacer)
                health.succeeded()
                at = now().timestamp()
                pause_seconds = max(0.001, pacer.next_at(at) - at)
            except TaskmeshError as error:
                health.failed(error)
                pause_seconds = UNAVAILABLE_SECONDS
            await first_of(wake, seconds=pause_seconds)

    async def _tend(self, pacer: Pacer) -> None:
        if pacer.is_to_look(now().timestamp()):
            await self._read(pacer)
            self._tell_gates()
        while await self._write(pacer):
            self._tell_gates()

    async def _write(self, pacer: Pacer, *, stopping: bool = False) -> bool:
        """Write what the process has to say; whether that was done, and there may be more."""
        for _ in range(TRIES_MAX):
            at = now().timestamp()
            wanted = pacer.wanted(at, stopping=stopping)
            if wanted is None:
                return False
            began_at = lease_clock()
            revision = await self._read(pacer)
            if await self._replace(pacer, wanted, revision, at):
                return not stopping
            await asyncio.sleep(random.uniform(0, pacer.lost(lease_clock() - began_at)))
        return False

    async def _read(self, pacer: Pacer) -> int:
        # Of what is told from here on the answer may not know.
        told, pacer.must_look = pacer.must_look, False
        try:
            entry = await key_value.get(self._requests, PROVIDERS_BUCKET.name, pace_key(pacer.provider))
        except BaseException:
            pacer.must_look = told
            raise
        found = key_value.record_of(entry, PaceRecord, log, "pace.record_unreadable", provider=pacer.provider)
        was_shut = shut_until(pacer.record)
        at = now().timestamp()
        record = sound(found, at) if found is not None else None
        pacer.see(record, at, told=told)
        if was_shut < shut_until(record) > at:
            log.info("pace.seen_shut", provider=pacer.provider, seconds=round(shut_until(record) - at, 3))
        return entry.revision if entry is not None else 0

    async def _replace(self, pacer: Pacer, wanted: Wanted, revision: int, at: float) -> bool:
        was_shut = shut_until(pacer.record)
        before = pacer.record
        booked = book(before, pacer.provider, pacer.settings, self._worker, wanted, at)
        if not booked.is_new:
            pacer.got(wanted, booked, now().timestamp())
            return True
        payload = encode(booked.record)
        if not await key_value.compare_and_set(
            self._requests, PROVIDERS_BUCKET.name, pace_key(pacer.provider), payload, revision
        ):
            return False
        pacer.got(wanted, booked, now().timestamp())
        if shut_until(booked.record) > max(was_shut, at):
            seconds = round(shut_until(booked.record) - at, 3)
            log.warning("pace.shut", provider=pacer.provider, seconds=seconds, refusals=booked.record.refusals)
            metrics.pace_shut(pacer.provider)
        if booked.record.told != (before.told if before is not None else {}):
            log.info("pace.told", provider=pacer.provider, a_minute=booked.record.told)
        if booked.news:
            await self._requests.announce(subjects.provider_changed(pacer.provider, "paced"))
        return True

    def _heard(self, subject: str | None) -> None:
        for name, pacer in self._pacers.items():
            if subject is None or subject == subjects.provider_changed(name, "paced"):
                pacer.must_look = True
                if name in self._wakes:
                    self._wakes[name].set()

    def _tell_gates(self) -> None:
        for callback in self._callbacks:
            callback()
        self._set_timer()

    def _set_timer(self) -> None:
        """Tell gates when the next turn may begin: nothing else happens then."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = now().timestamp()
        next_at = min((each for pacer in self._pacers.values() if (each := pacer.changes_at(at))), default=None)
        if next_at is not None:
            self._timer = asyncio.get_running_loop().call_later(max(next_at - at, 0.001), self.changed)
