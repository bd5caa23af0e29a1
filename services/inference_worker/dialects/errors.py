"""Failures of a model's server, and what follows from each.

Ten questions are asked, in this order, whether the error came as an HTTP status or in mid-stream at HTTP 200:

    Is it the key?                provider-unauthorized   the operator's fault: a dead letter, no other try
    Is the quota used up?         quota-exhausted         the same
    Is the conversation too long? context-too-long        the request's fault: the task fails
    Are there too many requests?  rate-limited            retryable, after what the server says
    Is the model being loaded?    provider-loading        retryable, and costs no try
    Is nobody behind a proxy?     provider-unreachable    the same
    Is the server too busy?       provider-overloaded     retryable, after what the server says
    Does it pass?                 provider-error          the same: 5xx, timeouts, conflicts
    Is there no such model?       model-not-found         the operator's fault
    Is the address wrong?         provider-error          the same: neither retryable nor the request's

What is left is the request's own fault, provider-bad-request: the task fails. What the server said is kept for people,
but apart from the message, which is logged: it may quote the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from contracts.errors import ErrorInfo
from inference_worker.dialects.error_bodies import ServerError, parse_error, parse_error_body
from mesh.configuration.provider_tables import ServerConfiguration
from mesh.masking import Mask
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
    # Google's
    "invalid_argument": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
    "resource_exhausted": 429,
    "unavailable": 503,
    "deadline_exceeded": 504,
}
"""Types and codes of errors → the HTTP status that means the same. For errors that come without one."""
_KEY_WORDS = frozenset(
    {
        "invalid_api_key",
        "api_key_invalid",
        "incorrect_api_key",
        "invalid_authentication",
        "invalid_authentication_error",
        "authentication_error",
        "authenticationerror",
        "unauthenticated",
        "unauthorized",
        "permission_denied",
        "permission_error",
    }
)
_KEY_TEXT = re.compile(
    r"(?:invalid|incorrect|wrong|missing|expired|unknown|unauthorized|no) (?:x-)?api[ _-]?key"
    r"|api[ _-]?key\b.{0,80}?(?:not valid|invalid|incorrect|expired|not found|missing|revoked|disabled|is required)"
    r"|(?:invalid|incorrect|expired|missing) (?:authentication|authorization|bearer|access)[ _-](?:token|key|header)"
    r"|invalid x-api-key|authentication (?:failed|fails)|could not resolve authentication"
)
"""How Gemini, xAI, DeepSeek, LiteLLM and others say it, some of them as a 400 or a 422."""
_QUOTA_WORDS = frozenset(
    {"insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached", "billing_error"}
    | {"exceeded_current_quota_error"}
)
_QUOTA_TEXT = re.compile(r"credit balance is too low|reached your specified api usage limit|insufficient balance")
"""How Anthropic says it, as a 400, `invalid_request_error`, as if the request were at fault; and last DeepSeek."""
_CONTEXT_WORDS = frozenset(
    {
        "context_length_exceeded",
        "exceed_context_size_error",
        "model_max_prompt_tokens_exceeded",
        "model_context_window_exceeded",
    }
)
_CONTEXT_TEXTS = (
    # OpenAI, OpenRouter, vLLM, Mistral; xAI
    r"maximum (?:context|model|prompt) length",
    # vLLM (newer), LM Studio
    r"context length (?:is|of) only",
    # SGLang, Ollama, LM Studio, llama.cpp, llama-cpp-python
    r"(?:exceeds?|exceeded|longer than|greater than|larger than|overflows?) (?:the |this |max |available |maximum )*"
    r"(?:model(?:'s)? )?(?:maximum |allowed )*context",
    # LM Studio, llama.cpp
    r"when context the overflows|truncate prompt with n_keep|reached context length",
    # MiniMax, Together, SGLang
    r"context (?:size|length|window) exceed|maximum allowed (?:input|context) length",
    # Anthropic, also on Bedrock
    r"prompt (?:is )?too long|exceed context limit|input is too long",
    # Gemini
    r"exceeds the maximum number of (?:input )?tokens|input token count.{0,40}exceeds",
    # Moonshot, GitHub, OpenAI
    r"exceeded model token limit|prompt token count.{0,40}exceeds|input tokens exceed",
    # Groq, Cerebras
    r"reduce the length of the messages",
    # TGI, Together
    r"`?inputs`? must have less than|`?inputs`? tokens \+ `?max_new_tokens`? must be",
    # Cohere, DashScope, Zhipu, TensorRT-LLM
    r"number of tokens in the prompt cannot exceed|range of input length should be|prompt exceeds max length"
    r"|prompt length.{0,40}exceeds? (?:the )?max",
    # Groq, OpenAI: more than a whole minute may have, so that waiting changes nothing
    r"request too large for",
)
_CONTEXT_TEXT = re.compile("|".join(_CONTEXT_TEXTS))
"""How they say it who have no word for it. No text of a rate, or of a limit of output, may be among them."""
_MODEL_WORDS = frozenset(
    {"model_not_found", "model_not_available", "invalid_model", "not_found_error", "notfounderror"}
)
_MODEL_TEXT = re.compile(
    r"\bmodels?\b.{0,100}?(?:not found|does(?: not|n't) exist|not exist|is not available|not supported for generate)"
    r"|(?:unknown|no such|invalid|could not find(?: the)?) model\b|try pulling it|no models? (?:is )?loaded"
    r"|failed to load model|please load a model"
)
"""How Ollama, vLLM, Gemini, Mistral, DeepSeek and LM Studio say it."""
_LOADING_TEXT = re.compile(
    r"\bloading (?:the )?model|\bmodel\b.{0,160}?\bis (?:currently |still )?(?:loading|being loaded)"
    r"|\bmodel is not (?:yet )?(?:loaded|ready)|still loading|warming up|server is starting"
)
"""How llama.cpp, Hugging Face and others say it. With a status that passes alone: nothing is loaded for ever."""
_REFUSED_TEXT = re.compile(
    r"connection refused|econnrefused|actively refused|no available server|no healthy upstream|host is unreachable"
)
"""How a proxy says that there is nobody behind it."""
_PASSING = frozenset({408, 409, 421, 423, 424, 425, 429, 444, 460, 498, 499})
"""Statuses below 500 that say nothing of the request: the server, or somebody on the way, could not just now."""
_OPERATORS = frozenset({404, 405, 406, 407, 410, 411, 415, 426})
"""Statuses that say that this is not the server, the path or the protocol that was meant."""
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_SECONDS_OF_UNITS = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)
_NUMBER = re.compile(r"\d{1,12}(?:\.\d{1,9})?")


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

    def at(self, server: ServerConfiguration) -> ProviderFailed:
        """The same, with how long a turn waits for this server."""
        self.away_seconds = server.away_seconds
        return self

    def without(self, mask: Mask) -> None:
        """Take secrets out of what it says: a server may repeat the key, be it as the name of an error."""
        self.args = (mask(str(self)),)
        if self.detail:
            self.detail = mask(self.detail)

    def info(self) -> ErrorInfo:
        """The error as it is stored. Its detail is cut here, and not before: half a key could not be found in it."""
        return ErrorInfo(self.code, str(self), self.detail[:DETAIL_CHARACTERS_MAX] if self.detail else None)


def failure_of_status(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> ProviderFailed:
    """The failure that an HTTP answer stands for. `headers` has lower-case names, or does not mind."""
    error = parse_error_body(body)
    retry_after = retry_after_seconds(status, headers, now)
    if retry_after is None and error.retry_delay:
        retry_after = min(parse_duration(error.retry_delay) or 0.0, RETRY_AFTER_SECONDS_MAX) or None
    return _failure(status, error, f"HTTP {status}", retry_after)


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
    said = error.message.lower()
    passes = status in _PASSING or (status >= 500 and status not in (501, 505))  # noqa: PLR2004 - HTTP's
    code = _code_of_operator(status, error, said, passes=passes)
    if code is not None:
        return ProviderFailed(code, message, detail=detail)
    # 413: whatever bounds the body, Groq's rate or a proxy's buffer, less of the conversation may pass.
    if status == 413 or _CONTEXT_WORDS.intersection(error.words) or _CONTEXT_TEXT.search(said):  # noqa: PLR2004 - Payload Too Large
        return ProviderFailed(CONTEXT_TOO_LONG, message, terminal=True, detail=detail)
    if passes:
        code = _code_of_passing(status, said)
        return ProviderFailed(code, message, retryable=True, retry_after_seconds=retry_after, detail=detail)
    if _MODEL_WORDS.intersection(error.words) or _MODEL_TEXT.search(said):
        return ProviderFailed("model-not-found", f"{message}: has the server this model?", detail=detail)
    if status < 400 or status in _OPERATORS:  # noqa: PLR2004 - a redirect
        return ProviderFailed("provider-error", f"{message}: is base_url right?", detail=detail)
    return ProviderFailed("provider-bad-request", message, terminal=True, detail=detail)


def _code_of_operator(status: int, error: ServerError, said: str, *, passes: bool) -> str | None:
    """What nobody but the operator can mend, whatever the status says. Before all that is retried, or fails a task."""
    # Whoever is only busy may name a key as well: "rate limit reached for this api key".
    if status in (401, 403) or _KEY_WORDS.intersection(error.words) or (status != 429 and _KEY_TEXT.search(said)):  # noqa: PLR2004 - Too Many Requests
        return "provider-unauthorized"
    # Nothing comes of it until somebody has paid.
    if status == 402 or _QUOTA_WORDS.intersection(error.words) or _QUOTA_TEXT.search(said):  # noqa: PLR2004 - Payment Required
        return "quota-exhausted"
    return None


def _code_of_passing(status: int, said: str) -> str:
    if status == 429:  # noqa: PLR2004 - Too Many Requests
        return "rate-limited"
    if _LOADING_TEXT.search(said):
        return "provider-loading"
    if _REFUSED_TEXT.search(said):
        return "provider-unreachable"
    # 498: Groq's, for a tier that is full.
    return "provider-overloaded" if status in (498, 503, STATUS_OVERLOADED) else "provider-error"


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
    text = (text or "").strip()
    return float(text) / 1000 if _NUMBER.fullmatch(text) else None


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
