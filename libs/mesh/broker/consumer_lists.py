"""What consumers a stream has, however many: the server answers in pages, of 256 descriptions or 1,024 names."""

from __future__ import annotations

from typing import Any

from mesh.broker.requests import Requests


async def all_consumers(requests: Requests, stream: str) -> list[dict[str, Any]]:
    """Each consumer as `CONSUMER.INFO` describes it. Raises `BrokerUnavailable`, `BrokerError`."""
    return await _all(requests, f"CONSUMER.LIST.{stream}")


async def all_consumer_names(requests: Requests, stream: str) -> list[str]:
    """The names of all of them. Raises `BrokerUnavailable`, `BrokerError`."""
    return await _all(requests, f"CONSUMER.NAMES.{stream}")


async def _all(requests: Requests, subject: str) -> list[Any]:
    listed: list[Any] = []
    while True:
        page = await requests.api(subject, {"offset": len(listed)})
        found = page.get("consumers") or []
        listed += found
        if not found or len(listed) >= int(page.get("total", 0)):
            return listed
