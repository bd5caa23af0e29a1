"""Hearing of it when a server's tools change, without waiting for the next look at their list.

Since 2026-07-28 the protocol has a request whose answer is a stream of changes (`subscriptions/listen`, SEP-2575). It
breaks like any stream, and nothing of it is repeated: whoever opens it again looks at the list.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import structlog
from mcp import Client, MCPError
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost

from contracts.retries import RetryPolicy

log = structlog.get_logger("tool_runner.mcp")

LISTEN_POLICY = RetryPolicy(tries_max=1_000_000, delay_seconds_first=0.5, delay_seconds_max=300.0)
"""A server that refuses may do so for ever, or until it is restarted: its list is read now and then all the same."""
ACKNOWLEDGED_SECONDS_MAX = 30.0
"""How long a server may take to say that it will tell of changes."""
STEADY_SECONDS = 10.0
"""A stream that has lasted so long is opened again soon; servers and proxies end streams that are idle."""


async def hear(client: Client, on_change: Callable[[], None], server: str) -> None:
    """Call `on_change` for each change, and whenever one may have been missed, until cancelled.

    Returns at once where the protocol has no such stream. A server that refuses is asked again, ever less.
    """
    failures = 0
    is_said = False
    while True:
        began = time.monotonic()
        try:
            await _listen(client, on_change)
            problem = "the server has closed the stream"
        except ListenNotSupportedError:
            return
        except TimeoutError:
            problem = f"not acknowledged within {ACKNOWLEDGED_SECONDS_MAX:g} s"
        except (SubscriptionLost, MCPError) as error:
            problem = str(error)
        failures = 1 if time.monotonic() - began >= STEADY_SECONDS else failures + 1
        if failures > 1 and not is_said:
            is_said = True
            log.info("mcp.changes_unheard", server=server, error=problem[:500])
        await asyncio.sleep(LISTEN_POLICY.delay_seconds(failures, random.random()))


async def _listen(client: Client, on_change: Callable[[], None]) -> None:
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(ACKNOWLEDGED_SECONDS_MAX):
            events = await stack.enter_async_context(client.listen(tools_list_changed=True))
        if not events.honored.tools_list_changed:
            raise SubscriptionLost("the server tells nothing of its tools")
        on_change()  # Since the list was read, perhaps.
        async for _ in events:
            on_change()


class Reopened:
    """Streams of notifications of older protocols, which the client opens by itself: a change may be missed between."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._opened_at = float("-inf")

    def opened(self) -> None:
        """A stream is open. Servers that end theirs at once don't have the list read each time: it is opened again
        every second."""
        before, self._opened_at = self._opened_at, time.monotonic()
        if self._opened_at - before >= STEADY_SECONDS:
            self._on_change()
