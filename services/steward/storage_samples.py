"""Storage samples: how many bytes each stream holds, noted once an hour, so that growth is what was measured.

How fast streams take new messages says little of how they grow: retention and packing take others away. So the bytes
of a day ago are kept, and what they have become is the growth, whatever came and went.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog

from contracts.codec import decode, encode
from contracts.records.storage import SAMPLES_KEY, SAMPLES_MAX, StorageSample, StorageSamples
from contracts.streams import STORAGE_BUCKET
from mesh.background import repeatedly
from mesh.broker import key_value
from mesh.broker.levels import read_all_levels
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.loop_health import LoopHealth

log = structlog.get_logger("steward.storage_samples")

LOOK_SECONDS = 60.0
SAMPLE_EVERY = timedelta(hours=1)


class StorageSampling:
    """Takes the samples, with any number of stewards: the first of them that finds the last one an hour old."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def run(self) -> None:
        """Look now and then until cancelled."""
        await repeatedly(self.look, LOOK_SECONDS, LoopHealth(log, "storage_samples.unavailable"))

    async def look(self) -> None:
        """Take a sample if one is due. Raises `TaskmeshError`."""
        entry = await key_value.get(self._requests, STORAGE_BUCKET.name, SAMPLES_KEY)
        before = (
            decode(entry.value, StorageSamples) if entry is not None and entry.value else StorageSamples(samples=[])
        )
        if not is_due(before, now()):
            return
        levels = await read_all_levels(self._requests)
        sample = StorageSample(time=now(), bytes={level.name: level.used_bytes for level in levels})
        revision = entry.revision if entry is not None else 0
        # Whoever is first has taken it: that it fails here is as well.
        await key_value.compare_and_set(
            self._requests, STORAGE_BUCKET.name, SAMPLES_KEY, encode(with_sample(before, sample)), revision
        )


def is_due(samples: StorageSamples, at: datetime) -> bool:
    """Whether the last sample is an hour old. One from the future says that the broker's clock was set back."""
    if not samples.samples:
        return True
    last = samples.samples[-1].time
    return at - last >= SAMPLE_EVERY or last > at + SAMPLE_EVERY


def with_sample(before: StorageSamples, sample: StorageSample) -> StorageSamples:
    """The samples with one more, and no more than are kept; none from the future."""
    kept = [each for each in before.samples if each.time < sample.time]
    return StorageSamples(samples=[*kept, sample][-SAMPLES_MAX:])
