"""The keys that sign links to tasks' events, as a process knows them: it makes links with them, and checks some.

The keys lie in the bucket `keys`. They are read when a link is made or shown, and again where a link names a key that
is not known here: so whoever has rotated them has nobody to tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from contracts.codec import decode, encode
from contracts.errors import InvalidPayload, TaskmeshError
from contracts.links import (
    LINK_KEYS_KEY,
    Link,
    LinkInvalid,
    LinkKey,
    LinkKeys,
    expiry_of,
    key_of,
    new_link_key,
    rotated,
    sign,
    verify,
)
from contracts.streams import KEYS_BUCKET
from mesh.access.shared_read import SharedRead
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.errors import BrokerUnavailable

KNOWN_SECONDS: Final = 10.0
"""How long keys that were read stand for those that there are, for who shows a link."""
SIGNING_KNOWN_SECONDS: Final = 1.0
"""The same, for who gets one: it must not be signed with a key that holds no more."""
READ_PAUSE_SECONDS: Final = 0.1
"""Links with made-up keys cost the broker no more than one read in so long."""
WRITE_TRIES_MAX: Final = 16


class SignedLink(NamedTuple):
    """A link's token, and what it lets its holder read."""

    token: str
    link: Link


class LinkSigning:
    """Makes links and checks them, with the signing keys of the mesh."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._keys: list[LinkKey] = []
        self._read_at: float | None = None
        self._reading = SharedRead(self._read)
        self._failure: TaskmeshError | None = None
        """What the last read ended with, if it gave no keys."""

    async def make(self, tenant: str, task: str, seconds: int) -> SignedLink:
        """A link to a task that is this tenant's. The first one that a mesh makes, makes its key.

        Raises `BrokerUnavailable`.
        """
        keys = await self._known(SIGNING_KNOWN_SECONDS)
        if not keys:
            await change_keys(self._requests, lambda found: found or [new_link_key(now())])
            await self._refresh()
            keys = self._keys
        if not keys:
            raise BrokerUnavailable("the keys that sign links can't be read yet")
        link = Link(tenant, task, expiry_of(now(), seconds))
        return SignedLink(sign(keys[0], link), link)

    async def check(self, token: str, task: str) -> Link:
        """What a token lets its holder read. Raises `LinkInvalid`, `LinkExpired`, `BrokerUnavailable`."""
        key = key_of(token)
        if key is None:
            raise LinkInvalid("the link is not valid")
        return verify(await self._known(KNOWN_SECONDS, key), token, task, now())

    async def _known(self, seconds: float, key: str | None = None) -> list[LinkKey]:
        """The keys, read no longer ago than this, and again if `key` is none of them."""
        age = asyncio.get_running_loop().time() - self._read_at if self._read_at is not None else seconds
        if age < seconds and (key is None or any(each.id == key for each in self._keys)):
            return self._keys
        if self._keys:
            # What is known goes on to hold while nobody can be asked.
            with suppress(BrokerUnavailable):
                await self._refresh()
        else:
            await self._refresh()
        return self._keys

    async def _refresh(self) -> None:
        """Have the keys as they are now, or later. Those who ask while a read is under way share the next one."""
        await self._reading.again(self._pause)
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    async def _pause(self) -> bool:
        if self._read_at is not None:
            since = asyncio.get_running_loop().time() - self._read_at
            await asyncio.sleep(max(0.0, READ_PAUSE_SECONDS - since))
        return True

    async def _read(self) -> None:
        try:
            # From the leader: who was given a link by one process shows it to another in the next moment.
            entry = await key_value.get_from_leader(self._requests, KEYS_BUCKET.name, LINK_KEYS_KEY)
            self._keys = _readable(entry)
            self._failure = None
        except TaskmeshError as error:
            # Theirs, too, who wait for this read: one after the other each would wait for as long.
            self._failure = error
        finally:
            self._read_at = asyncio.get_running_loop().time()


async def rotate_keys(requests: Requests, grace_seconds: float) -> list[LinkKey]:
    """Sign with a new key from now on; links of those before hold for as long as the grace at most.

    Returns the keys, the new one first. Raises `BrokerUnavailable`.
    """
    return await change_keys(requests, lambda keys: rotated(keys, now(), grace_seconds))


async def change_keys(requests: Requests, change: Callable[[list[LinkKey]], list[LinkKey]]) -> list[LinkKey]:
    """Write other keys in place of those that there are, whoever else does so. Raises `BrokerUnavailable`."""
    for _ in range(WRITE_TRIES_MAX):
        entry = await key_value.get_from_leader(requests, KEYS_BUCKET.name, LINK_KEYS_KEY)
        found = _readable(entry)
        keys = change(found)
        if keys == found:
            return keys
        revision = entry.revision if entry is not None else 0
        value = encode(LinkKeys(keys=keys))
        if await key_value.compare_and_set(requests, KEYS_BUCKET.name, LINK_KEYS_KEY, value, revision):
            return keys
    raise BrokerUnavailable("the keys that sign links are contended")


def _readable(entry: key_value.KeyValueEntry | None) -> list[LinkKey]:
    if entry is None or not entry.value:
        return []
    try:
        return decode(entry.value, LinkKeys).keys
    except InvalidPayload:
        # Not what is wrong with it: that might show a part of a key.
        raise TaskmeshError("this version can't read the keys that sign links") from None
