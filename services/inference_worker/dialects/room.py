"""Room in memory for what many turns hold at once: who takes of it waits until there is some, the first one first."""

from __future__ import annotations

import asyncio


class Room:
    """So many bytes of one process. What is taken is given back by who took it."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.free_bytes = bytes_max
        self._next = asyncio.Lock()
        self._freed = asyncio.Event()

    async def take(self, wanted_bytes: int, seconds_max: float) -> bool:
        """Take as much once it is free; False if it is not in so many seconds, and at once if it can't ever be."""
        if wanted_bytes > self.bytes_max:
            return False
        try:
            # One after the other: who wants little would else keep those who want much waiting.
            async with asyncio.timeout(seconds_max), self._next:
                while self.free_bytes < wanted_bytes:
                    self._freed.clear()
                    await self._freed.wait()
                self.free_bytes -= wanted_bytes
        except TimeoutError:
            return False
        return True

    def give_back(self, taken_bytes: int) -> None:
        """Let others have what was taken."""
        self.free_bytes += taken_bytes
        self._freed.set()
