"""How fast providers may be called at present, for whoever wants to know."""

from __future__ import annotations

from collections.abc import Iterable

from contracts.codec import decode
from contracts.errors import InvalidPayload
from contracts.records.pace import PaceRecord, pace_key
from contracts.streams import PROVIDERS_BUCKET
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.pacing.rules import sound


async def read_paces(requests: Requests, providers: Iterable[str]) -> dict[str, PaceRecord]:
    """The pace of each of these providers that has a record; up to 1,024. Raises `BrokerUnavailable`."""
    keys = {pace_key(provider): provider for provider in providers}
    found = await key_value.get_many(requests, PROVIDERS_BUCKET.name, list(keys)) if keys else {}
    paces: dict[str, PaceRecord] = {}
    at = now().timestamp()
    for key, entry in found.items():
        try:
            if entry.value is not None:
                paces[keys[key]] = sound(decode(entry.value, PaceRecord), at)
        except InvalidPayload:
            continue  # One that another version has written says nothing here.
    return paces
