"""A stranger's JSON, read for what is needed: what is of another type than it should be counts as not there. Pure."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec

TOKENS_MAX = 2**53
"""The largest count of tokens that is believed: every reader of JSON can hold it."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_HIGH = re.compile("[\ud800-\udbff]\\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
_HALF = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<lone>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)
"""Escapes of JSON: a pair of surrogates, one alone, any other."""


def decoded(payload: bytes) -> Any:
    """The value of a JSON text, lone surrogates included. Raises `ValueError` for what is none, or is too deep."""
    try:
        return msgspec.json.decode(payload)
    except RecursionError:
        raise ValueError("too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        # It takes half an emoji, too, whose other half may come with the next chunk. Bytes that are no UTF-8 become
        # such halves, so that they are replaced in a text, and refused in arguments.
        return json.loads(payload.decode("utf-8", "surrogateescape"))
    except RecursionError:
        raise ValueError("too deep") from None


def object_of(value: Any) -> dict[str, Any]:
    """An object; empty if it is none."""
    return value if isinstance(value, dict) else {}


def list_of(value: Any) -> list[Any]:
    """A list; empty if it is none."""
    return value if isinstance(value, list) else []


def text_of(value: Any) -> str:
    """A text; empty if it is none."""
    return value if isinstance(value, str) else ""


def index_of(value: Any) -> int | None:
    """An index, also as a float or as digits; None if it is none."""
    count = count_of(value)
    return None if count is None or count < 0 else count


def count_of(value: Any) -> int | None:
    """A number of tokens, also as a float or as digits, at most `TOKENS_MAX`; None if it is none."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,16}(?:\.[0-9]{1,9})?", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return int(max(-1, min(value, TOKENS_MAX)))


class Halves:
    """Joins characters that a server has cut in two, as it sends UTF-16 in parts of any length.

    A first half waits for the text behind it. A half without its other one is `REPLACEMENT`: no UTF-8 can hold it.
    """

    def __init__(self) -> None:
        self._first = ""

    def join(self, text: str) -> str:
        """The text as far as it is whole."""
        if not self._first and (text.isascii() or not _SURROGATE.search(text)):
            return text
        text, self._first = self._first + text, ""
        if _HIGH.search(text):
            text, self._first = text[:-1], text[-1]
        return mended(text)

    def end(self) -> str:
        """What stands for a half whose other one has not come."""
        first, self._first = self._first, ""
        return REPLACEMENT if first else ""


def mended(text: str) -> str:
    """A text whose halves of characters are joined, and replaced where they are alone."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def joined(text: str) -> str:
    """A text whose halves of characters are joined; those that are alone stay."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def mended_json(text: str) -> str:
    """A JSON text in which no escape is half a character."""
    return _HALF.sub(lambda found: r"\ufffd" if found["lone"] else found[0], mended(text))


def mended_bytes(payload: bytes) -> bytes:
    """The same of bytes."""
    return mended_json(payload.decode("utf-8", "replace")).encode()
