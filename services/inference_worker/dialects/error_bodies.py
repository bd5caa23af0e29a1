"""What the body of an error says, in any of the forms that are about. Pure.

| form | who |
|---|---|
| `{"error": {"message", "type", "code"}}`; `code` is a word, a status, or null | OpenAI, and most |
| `{"error": "text"}`, `{"error": {"error": …}}` | Ollama, proxies |
| `{"object": "error", "message", …}` | older vLLM, Mistral |
| `{"type": "error", "error": {…}}` | Anthropic |
| `[{"error": {"message", "code": 400, "status": "INVALID_ARGUMENT", "details": [{"reason"}]}}]` | Gemini |
| `{"detail": "text"}`, `{"detail": [{"loc", "msg"}]}`, `{"message": {"detail": […]}}` | FastAPI; Mistral |
| `{"errors": [{"message"}]}`, `{"title", "detail"}` | Cloudflare, RFC 9457 |

Whatever else it is, it is kept as it stands, and is no reason to fail.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

MESSAGE_CHARACTERS_MAX = 8_000
"""Most of an error's text that is looked at: it may quote a whole prompt."""
TEXTS_MAX = 16
"""Most texts of one error that are put together."""
DEPTH_MAX = 8
_TEXT_KEYS = ("message", "msg", "error_description", "description", "title", "raw")
_INNER_KEYS = ("error", "errors", "detail", "details", "message", "metadata", "cause")
_WORD_KEYS = ("type", "code", "status", "reason", "error_code")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_STATUS = re.compile(r"[45]\d\d")


class ServerError(NamedTuple):
    """What a server says of an error. `words` are its type and code, lower case."""

    message: str = ""
    words: tuple[str, ...] = ()
    status: int | None = None
    """An HTTP status, for errors that name one in their body."""
    retry_delay: str | None = None
    """How long to wait, as a duration: Gemini says it here, and in no header."""


def parse_error(value: Any) -> ServerError:
    """Read an error's JSON."""
    texts = list(dict.fromkeys(_texts(value, DEPTH_MAX)))[:TEXTS_MAX]
    facts = list(_facts(value, DEPTH_MAX))
    words = tuple(dict.fromkeys(fact for fact in facts if isinstance(fact, str)))[:TEXTS_MAX]
    status = next((fact for fact in facts if isinstance(fact, int)), None)
    message = "; ".join(texts)
    if not message and not words and status is None and value:
        message = msgspec.json.encode(value).decode()
    return ServerError(message[:MESSAGE_CHARACTERS_MAX], words, status, next(_delays(value, DEPTH_MAX), None))


def parse_error_body(body: bytes) -> ServerError:
    """Read the body of an answer that is an error; what is no JSON is taken as text."""
    try:
        return parse_error(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ServerError(message=body.decode("utf-8", "replace")[:MESSAGE_CHARACTERS_MAX])


def _texts(value: Any, depth: int) -> Iterator[str]:
    """All that is said to people, from the outside in."""
    match value:
        case str():
            if value.strip():
                yield value
        case list() if depth > 0:
            for each in value[:TEXTS_MAX]:
                yield from _texts(each, depth - 1)
        case {"msg": str(said), "loc": list(place)}:
            yield f"{'.'.join(str(part) for part in place)}: {said}"
        case dict() if depth > 0:
            for key in _TEXT_KEYS:
                if isinstance(value.get(key), str):
                    yield from _texts(value[key], depth - 1)
            for key in _INNER_KEYS:
                if key not in _TEXT_KEYS or not isinstance(value.get(key), str):
                    yield from _texts(value.get(key), depth - 1)
        case _:
            pass


def _delays(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, list) and depth > 0:
        for each in value[:TEXTS_MAX]:
            yield from _delays(each, depth - 1)
    elif isinstance(value, dict) and depth > 0:
        if isinstance(value.get("retryDelay"), str):
            yield value["retryDelay"]
        for key in ("error", "details"):
            yield from _delays(value.get(key), depth - 1)


def _facts(value: Any, depth: int) -> Iterator[str | int]:
    """Its words, and the statuses that it names; those of what it holds first: there the error is told."""
    if isinstance(value, list) and depth > 0:
        for each in value[:TEXTS_MAX]:
            yield from _facts(each, depth - 1)
    if not isinstance(value, dict) or depth <= 0:
        return
    for key in _INNER_KEYS:
        yield from _facts(value.get(key), depth - 1)
    if isinstance(value.get("error"), dict):
        return  # What stands around an error says only that it is one.
    for key in _WORD_KEYS:
        fact = value.get(key)
        if isinstance(fact, str) and _STATUS.fullmatch(fact):
            yield int(fact)
        elif isinstance(fact, str) and _WORD.fullmatch(fact) and not fact.isdigit():
            yield fact.lower()
        elif isinstance(fact, int) and not isinstance(fact, bool) and _STATUS.fullmatch(str(fact)):
            yield fact
