"""The bucket `providers`, as one process sees it: read by direct get, written by compare-and-set.

Who changes a breaker's state announces it, so that the others look at once and need not look often. The record is what
counts: an announcement may be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog

from contracts import subjects
from contracts.codec import encode
from contracts.records.providers import ProviderRecord
from contracts.streams import PROVIDERS_BUCKET
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.clock import lease_clock, now
from mesh.providers.breaker_rules import NOTHING_OBSERVED, ObservedRecord, observe

log = structlog.get_logger("mesh.providers.breaker_records")


class ProviderRecords:
    """The last sighting of each provider. One that was never looked at counts as closed."""

    def __init__(self, requests: Requests, providers: Iterable[str]) -> None:
        self.providers = tuple(sorted(providers))
        self._requests = requests
        self._sightings: dict[str, ObservedRecord] = {}
        self._open: set[str] = set()
        """Those of them that are not closed."""

    def sighting(self, provider: str) -> ObservedRecord:
        """What was seen last."""
        return self._sightings.get(provider, NOTHING_OBSERVED)

    @property
    def all_closed(self) -> bool:
        """Whether all that were seen are closed: each acceptance asks."""
        return not self._open

    async def refresh(self, provider: str) -> ObservedRecord:
        """Look again. Raises `BrokerUnavailable`."""
        entry = await key_value.get(self._requests, PROVIDERS_BUCKET.name, provider)
        # One that can't be read counts as none: a breaker never closes a pool by a slip of the pen.
        record = key_value.record_of(entry, ProviderRecord, log, "provider.record_unreadable", provider=provider)
        return self._see(provider, record, entry.revision if entry is not None else 0)

    async def replace(self, before: ObservedRecord, record: ProviderRecord) -> bool:
        """Write a record in place of the one that was seen; False if it is not the last any more.

        Raises `BrokerUnavailable`; then nobody knows, and the next look tells.
        """
        payload = encode(record)
        if not await key_value.compare_and_set(
            self._requests, PROVIDERS_BUCKET.name, record.provider, payload, before.revision
        ):
            return False
        if record.state != (before.record.state if before.record is not None else "closed"):
            await self._requests.announce(subjects.provider_changed(record.provider))
        await self.refresh(record.provider)
        return True

    async def on_changed(self, callback: Callable[[], None]) -> None:
        """Call `callback` when somebody has changed a state, and when that may have been missed."""

        def heard(subject: str | None) -> None:
            if subject is None or subject.rpartition(".")[2] in self.providers:
                callback()

        await self._requests.on_announced(subjects.PROVIDERS_CHANGED, heard)

    def _see(self, provider: str, record: ProviderRecord | None, revision: int) -> ObservedRecord:
        seen = observe(self._sightings.get(provider), record, revision, lease_clock(), now())
        self._sightings[provider] = seen
        (self._open.discard if seen.is_closed else self._open.add)(provider)
        return seen
