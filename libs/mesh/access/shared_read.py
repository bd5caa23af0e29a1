"""A read that many ask for at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class SharedRead:
    """Reads for all who ask: each has a read that begins after they have asked, and those who wait share the next."""

    def __init__(self, read: Callable[[], Awaitable[None]]) -> None:
        self._read = read
        self._lock = asyncio.Lock()
        self._begun = 0
        self._done = 0

    async def again(self, may_begin: Callable[[], Awaitable[bool]]) -> bool:
        """Have it read. Raises what the read raises.

        `may_begin` is asked right before a read of one's own, and may take its time: who asks meanwhile shares that
        read. False: it said no, and nothing was read.
        """
        wanted = self._begun + 1
        async with self._lock:
            if self._done >= wanted:
                return True
            if not await may_begin():
                return False
            self._begun += 1
            begun = self._begun
            await self._read()
            self._done = begun
            return True
