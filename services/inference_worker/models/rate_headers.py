"""What a provider says of its limits in the headers of an answer. Pure.

OpenAI, and those that have its wire: `x-ratelimit-limit-requests`, `x-ratelimit-remaining-tokens` and so on. Anthropic:
`anthropic-ratelimit-requests-limit`, and the same of `tokens`, `input-tokens` and `output-tokens`. Some count requests
by the day (Groq): that is more than what is set by the minute, and so says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from contracts.records.pace import Limit

_NUMBER: Final = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,6})?")
_OPENAI: Final[Mapping[Limit, str]] = {"requests": "requests", "tokens": "tokens"}
_ANTHROPIC: Final[Mapping[Limit, str]] = {
    "requests": "requests",
    "tokens": "tokens",
    "input_tokens": "input-tokens",
    "output_tokens": "output-tokens",
}


def told_by(headers: Mapping[str, str]) -> tuple[dict[Limit, float], dict[Limit, float]]:
    """How much is allowed a minute, and how much of it is left, by limit. What is no number is passed over.

    `headers` has lower-case names, or does not mind.
    """
    allowed: dict[Limit, float] = {}
    remaining: dict[Limit, float] = {}
    for limit, name in _OPENAI.items():
        _take(allowed, limit, headers.get(f"x-ratelimit-limit-{name}"))
        _take(remaining, limit, headers.get(f"x-ratelimit-remaining-{name}"))
    for limit, name in _ANTHROPIC.items():
        _take(allowed, limit, headers.get(f"anthropic-ratelimit-{name}-limit"))
        _take(remaining, limit, headers.get(f"anthropic-ratelimit-{name}-remaining"))
    return {limit: each for limit, each in allowed.items() if each > 0}, remaining


def _take(found: dict[Limit, float], limit: Limit, text: str | None) -> None:
    text = (text or "").strip()  # Before `float`, which passes over less white space: not over U+001F.
    if _NUMBER.fullmatch(text):
        found[limit] = float(text)
