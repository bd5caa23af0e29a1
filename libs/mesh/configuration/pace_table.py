"""The limits of a model provider, as mesh.toml sets them: `[providers.<name>.pace]`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.records.pace import LIMITS, Limit

_AMinute = Annotated[float, Meta(ge=0.1, le=1e12)]


class PaceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a provider allows all workers together. They keep to it: a turn begins once there is room for it.

    What is unset is not limited. A provider that says itself that it allows less is believed.
    """

    requests_per_minute: _AMinute | None = None
    """Requests. A turn is one; one more for each other try, and for each other model that it goes to."""
    tokens_per_minute: _AMinute | None = None
    """Tokens read and put out, together."""
    input_tokens_per_minute: _AMinute | None = None
    """Tokens read."""
    output_tokens_per_minute: _AMinute | None = None
    """Tokens put out."""
    concurrency: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """Turns that it works on at a time."""

    @property
    def by_minute(self) -> Mapping[Limit, float]:
        """The limits by the minute that are set."""
        return _by_minute(self)

    @property
    def is_set(self) -> bool:
        """Whether anything is limited."""
        return bool(self.by_minute) or self.concurrency is not None


@lru_cache(maxsize=1_024)
def _by_minute(settings: PaceSettings) -> Mapping[Limit, float]:
    limits = {limit: getattr(settings, f"{limit}_per_minute") for limit in LIMITS}
    return MappingProxyType({limit: allowed for limit, allowed in limits.items() if allowed is not None})
