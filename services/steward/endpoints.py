"""An endpoint of a webhook: one signed POST, bounded in time, and what its answer means."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

import httpx

from contracts.messages.notifications import signed_headers
from mesh.clock import now
from mesh.configuration.webhook_tables import WebhookConfiguration
from mesh.retry_after import parse_retry_after
from mesh.serving import pinned_http
from mesh.serving.pinned_http import AddressForbidden, HostUnresolved

_PASSING = frozenset({408, 425, 429})
"""Of the answers that blame the request those that another time may take back: timeout, too early, too many."""


class Failure(NamedTuple):
    """A try that was not taken. `message` holds no word of the endpoint's, and nothing of its URL but the host."""

    code: str
    message: str
    retryable: bool
    retry_after_seconds: float | None = None


def failure_of(status: int, headers: Mapping[str, str], at: datetime) -> Failure | None:
    """What an answer means: 2xx has taken it.

    3xx and 4xx are final, since the operator's URL or secret is wrong, or the endpoint gone; all else may pass.
    """
    if 200 <= status < 300:  # noqa: PLR2004 - the class of status codes
        return None
    if 300 <= status < 500 and status not in _PASSING:  # noqa: PLR2004 - the same
        return Failure("webhook-refused", f"HTTP {status}", retryable=False)
    wait = parse_retry_after(headers.get("retry-after"), at)
    return Failure("webhook-failed", f"HTTP {status}", retryable=True, retry_after_seconds=wait)


class Endpoint:
    """Where a webhook's notifications go. Close it at the end."""

    def __init__(self, configuration: WebhookConfiguration, keys: tuple[bytes, ...]) -> None:
        self._configuration = configuration
        self._keys = keys
        self._target = pinned_http.parse_target(configuration.url)
        self._client = pinned_http.open_client(configuration.timeout_seconds)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def post(self, message_id: str, body: bytes) -> Failure | None:
        """Send a notification; None if it was taken."""
        try:
            async with asyncio.timeout(self._configuration.timeout_seconds):
                return await self._post(message_id, body)
        except (TimeoutError, httpx.TimeoutException):
            seconds = self._configuration.timeout_seconds
            return Failure("webhook-timeout", f"no answer within {seconds:g} s", retryable=True)
        except AddressForbidden as error:
            # What a name means may change back, and nothing was sent.
            return Failure("webhook-forbidden", str(error), retryable=True)
        except (httpx.HTTPError, HostUnresolved) as error:
            return Failure("webhook-unreachable", str(error) or type(error).__name__, retryable=True)

    async def _post(self, message_id: str, body: bytes) -> Failure | None:
        signed = signed_headers(self._keys, message_id, int(now().timestamp()), body)
        response = await pinned_http.send(
            self._client,
            "POST",
            self._target,
            allow_private=self._configuration.allow_private,
            headers={"Content-Type": "application/json", **signed},
            content=body,
        )
        # The status says all: of the body, which has no bound, nothing is read.
        try:
            return failure_of(response.status_code, response.headers, now())
        finally:
            await response.aclose()
