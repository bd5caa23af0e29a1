"""Failures of a model's server, and what follows from each.

Six questions are asked, in this order, whether the error came as an HTTP status or in mid-stream at HTTP 200:

    Is it the key?               provider-unauthorized   the operator's fault: a dead letter, no other try
    Is the quota used up?        quota-exhausted         the same
    Is the conversation too long? context-too-long       the request's fault: the task fails
    Are there too many requests? rate-limited            retryable, after what the server says
    Is the server too busy?      provider-overloaded     the same
    Is the request wrong?        provider-bad-request    the request's fault: the task fails

Anything else is provider-error, and retryable. What the server said is kept for people, but apart from the message,
which is logged: it may quote the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from contracts.errors import ErrorInfo
from mesh.retry_after import parse_retry_after
from mesh.task.failures import StepFailed

CONTEXT_TOO_LONG = "context-too-long"
RETRY_AFTER_SECONDS_MAX = 3600.0
"""The longest delay that a server is believed: it is a guess on their side as well."""
DETAIL_CHARACTERS_MAX = 1000
"""Most of a server's own words that a journal keeps."""
STATUS_OVERLOADED = 529
"""Not registered, but what some servers say."""

_STATUS_BY_WORD = {
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "overloaded_error": STATUS_OVERLOADED,
    "service_unavailable_error": 503,
    "unavailable_error": 503,
    "invalid_request_error": 400,
    "badrequesterror": 400,
    "notfounderror": 404,
    "not_found_error": 404,
    "not_supported_error": 501,
    "billing_error": 402,
    "request_too_large": 413,
    "timeout_error": 504,
}
"""Types and codes of errors → the HTTP status that means the same. For errors that come without one."""
_QUOTA_WORDS = frozenset({"insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached"})
_QUOTA_TEXT = re.compile(r"credit balance is too low|reached your specified api usage limit")
"""How Anthropic says it: as a 400, `invalid_request_error`, as if the request were at fault."""
_CONTEXT_WORDS = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_CONTEXT_TEXT = re.compile(
    r"maximum (?:context|model) length|(?:exceeds?|exceeded|longer than) (?:the |max |available |maximum )*context"
    r"|prompt is too long|exceed context limit"
)
"""How vLLM, Ollama and, last, Anthropic say it, which have no word for it."""
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_SECONDS_OF_UNITS = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)
_NUMBER = re.compile(r"\d{1,12}(?:\.\d{1,9})?")


class ServerError(NamedTuple):
    """What a server says of an error. `words` are its type and code, lower case."""

    message: str = ""
    words: tuple[str, ...] = ()
    status: int | None = None
    """An HTTP status, for errors that name one in their body."""


class ProviderFailed(StepFailed):
    """A provider's failure. `detail` is what the server said: stored, and never logged."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        terminal: bool = False,
        retry_after_seconds: float | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(code, message, retryable=retryable, terminal=terminal, retry_after_seconds=retry_after_seconds)
        self.detail = detail

    def info(self) -> ErrorInfo:
        """The error as it is stored. Its detail is cut here, and not before: half a key could not be found in it."""
        return ErrorInfo(self.code, str(self), self.detail[:DETAIL_CHARACTERS_MAX] if self.detail else None)


def parse_error(value: Any) -> ServerError:
    """Read an error's JSON, in any of the forms that are about. Whatever it is, it is no reason to fail.

    Those are `{"error": {"message", "type", "code"}}` (code is a word, a status, or null), `{"error": "text"}`,
    `{"object": "error", "message", …}` (older vLLM), and `{"detail": …}` (FastAPI).
    """
    if isinstance(value, dict) and value.get("error"):
        value = value["error"]
    if not isinstance(value, dict):
        return ServerError(message=value if isinstance(value, str) else "")
    message = value.get("message", value.get("detail"))
    code = value.get("code")
    named = (value.get("type"), code)
    words = tuple(word.lower() for word in named if isinstance(word, str) and _WORD.fullmatch(word))
    number = int(code) if isinstance(code, str) and re.fullmatch(r"\d{3}", code) else code
    status = number if isinstance(number, int) and 400 <= number <= 599 else None  # noqa: PLR2004 - HTTP's errors
    return ServerError(message if isinstance(message, str) else "", words, status)


def parse_error_body(body: bytes) -> ServerError:
    """Read the body of an answer that is an error; what is no JSON is taken as text."""
    try:
        return parse_error(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ServerError(message=body.decode("utf-8", "replace"))


def failure_of_status(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> ProviderFailed:
    """The failure that an HTTP answer stands for. `headers` has lower-case names, or does not mind."""
    error = parse_error_body(body)
    return _failure(status, error, f"HTTP {status}", retry_after_seconds(status, headers, now))


def failure_in_stream(value: Any) -> ProviderFailed:
    """The failure that an error in mid-stream stands for, at HTTP 200."""
    error = parse_error(value)
    status = error.status
    if status is None:
        status = next((_STATUS_BY_WORD[word] for word in error.words if word in _STATUS_BY_WORD), 500)
    return _failure(status, error, "an error in mid-stream", None)


def _failure(status: int, error: ServerError, where: str, retry_after: float | None) -> ProviderFailed:
    message = f"{where} ({', '.join(error.words)})" if error.words else where
    detail = error.message or None
    if status in (401, 403):
        return ProviderFailed("provider-unauthorized", message, detail=detail)
    said = error.message.lower()
    # Before anything that is retried: nothing comes of it until somebody has paid.
    if status == 402 or _QUOTA_WORDS.intersection(error.words) or _QUOTA_TEXT.search(said):  # noqa: PLR2004 - Payment Required
        return ProviderFailed("quota-exhausted", message, detail=detail)
    if _CONTEXT_WORDS.intersection(error.words) or _CONTEXT_TEXT.search(said):
        return ProviderFailed(CONTEXT_TOO_LONG, message, terminal=True, detail=detail)
    if status == 429:  # noqa: PLR2004 - Too Many Requests
        return ProviderFailed("rate-limited", message, retryable=True, retry_after_seconds=retry_after, detail=detail)
    code = "provider-overloaded" if status in (503, STATUS_OVERLOADED) else "provider-error"
    if status in (408, 409) or (status >= 500 and status != 501):  # noqa: PLR2004 - 501: it can't be done there at all
        return ProviderFailed(code, message, retryable=True, retry_after_seconds=retry_after, detail=detail)
    if status < 400:  # noqa: PLR2004 - a redirect: the address is wrong, and that is the operator's to mend
        return ProviderFailed("provider-error", f"{message}: is base_url right?", detail=detail)
    return ProviderFailed("provider-bad-request", message, terminal=True, detail=detail)


def retry_after_seconds(status: int, headers: Mapping[str, str], now: datetime) -> float | None:
    """How long the server asks to wait; None if it does not say, or says nothing usable.

    `retry-after-ms` outranks `retry-after` (seconds or a date), and that the resets of OpenAI's and Anthropic's rate
    limits, which count for a 429 only. Of those the longest is taken; where some are known to be used up, the longest
    of these.
    """
    found = _milliseconds(headers.get("retry-after-ms"))
    if found is None:
        found = parse_retry_after(headers.get("retry-after"), now)
    if found is None and status == 429:  # noqa: PLR2004 - Too Many Requests
        found = _reset_seconds(headers, now)
    # No time at all is no advice: the policy's own delay keeps tries apart.
    return min(found, RETRY_AFTER_SECONDS_MAX) if found else None


def parse_duration(text: str) -> float | None:
    """Seconds of a duration such as `12ms`, `6m0s` or `1h30m`; a bare number is seconds. None if it is none."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        return None
    return sum(float(part) * unit for part, unit in zip(match.groups(), _SECONDS_OF_UNITS, strict=True) if part)


def _milliseconds(text: str | None) -> float | None:
    return float(text) / 1000 if text is not None and _NUMBER.fullmatch(text.strip()) else None


def _reset_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    known: list[tuple[bool, float]] = []
    for what in ("requests", "tokens"):
        seconds = parse_duration(headers.get(f"x-ratelimit-reset-{what}", ""))
        if seconds is not None:
            known.append((headers.get(f"x-ratelimit-remaining-{what}", "").strip() == "0", seconds))
    for what in ("requests", "tokens", "input-tokens", "output-tokens"):
        seconds = _seconds_until(headers.get(f"anthropic-ratelimit-{what}-reset", ""), now)
        if seconds is not None:
            known.append((headers.get(f"anthropic-ratelimit-{what}-remaining", "").strip() == "0", seconds))
    used_up = [seconds for is_used_up, seconds in known if is_used_up]
    return max(used_up or [seconds for _, seconds in known], default=None)


def _seconds_until(text: str, now: datetime) -> float | None:
    """Seconds until an RFC 3339 time; None if it is none."""
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds())
