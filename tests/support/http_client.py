"""The HTTP client of the tests: httpx's, with timeouts in seconds of a quiet machine."""

from __future__ import annotations

import math
from typing import Any

import httpx

from tests.support.patience import within

FOREVER = math.inf
"""The bound where a request is given none."""


class PatientClient(httpx.AsyncClient):
    """Waits for each response within a bound: 5 s, or `timeout=`. A body that is streamed has none."""

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        seconds = request.extensions["timeout"]["read"] or FOREVER
        request.extensions = {**request.extensions, "timeout": dict.fromkeys(("connect", "read", "write", "pool"))}
        try:
            async with within(seconds):
                return await super().send(request, **options)
        except TimeoutError as error:
            raise httpx.ReadTimeout(str(error), request=request) from error
