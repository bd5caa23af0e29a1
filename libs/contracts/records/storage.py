"""How much room there is, and was: the answer on `storage.room`, and the record in the bucket `storage`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.fields import Count, Ordinal, Time

SAMPLES_KEY = "samples"
"""The one key of the bucket `storage`."""
SAMPLES_MAX = 26
"""Samples that are kept: an hour apart, so that one of them is a day old."""


class StoreRoom(msgspec.Struct, frozen=True, kw_only=True):
    """How much room the broker's store has on its disk, and what its machine has of memory, in bytes.

    `used_bytes` is what the store takes of the disk, `free_bytes` what anybody may still take, `reserve_bytes` the part
    of that which is not for the store. `share_bytes` is what the sizes of streams were worked out from: what the store
    could have when the broker was started.
    """

    used_bytes: Count
    free_bytes: Count
    reserve_bytes: Count
    share_bytes: Count
    memory_bytes: Ordinal

    @property
    def limit_bytes(self) -> int:
        """What the store could take at present."""
        return max(1, self.used_bytes + self.free_bytes - self.reserve_bytes)


class StorageSample(msgspec.Struct, frozen=True, kw_only=True):
    """How many bytes each stream held at a time, by its name."""

    time: Time
    bytes: dict[str, Count]


class StorageSamples(msgspec.Struct, frozen=True, kw_only=True):
    """The samples of the last day, the oldest first."""

    samples: Annotated[list[StorageSample], Meta(max_length=SAMPLES_MAX)]
