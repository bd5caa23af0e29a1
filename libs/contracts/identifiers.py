"""Identifiers: task and event ids (ULID), ids derived from keys, and message ids.

A task id is a 26-character lower-case ULID (Crockford base 32, the alphabet without i, l, o and u), or,
with an Idempotency-Key, 26 characters of the same alphabet derived from tenant and key.
"""

from __future__ import annotations

import hashlib
import os
import time
from functools import lru_cache

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
_OF_BYTES = (_ALPHABET * 8).encode()
"""A character for each byte, so that random bytes make random characters."""
_TO_DIGITS = str.maketrans(_ALPHABET, "0123456789abcdefghijklmnopqrstuv")
"""To the digits that Python reads."""


def _base32(value: int) -> str:
    """130 bits as 26 characters, most significant first (the top two bits are 0 for 128-bit values)."""
    return "".join([_PAIRS[(value >> shift) & 1023] for shift in range(120, -1, -10)])


def id_number(identifier: str) -> int:
    """The 130 bits that a valid id is, in the order of ids."""
    return int(identifier.translate(_TO_DIGITS), 32)


def id_of_number(number: int) -> str:
    """The id of 130 bits."""
    return _base32(number)


def new_id() -> str:
    """A new ULID: 48 bits of milliseconds since 1970, 80 random bits. Sorts by time of creation."""
    return _of_milliseconds(time.time_ns() // 1_000_000) + os.urandom(16).translate(_OF_BYTES).decode()


@lru_cache(maxsize=1)
def _of_milliseconds(milliseconds: int) -> str:
    """The first 10 characters. Who is busy makes several ids in a millisecond."""
    return "".join([_PAIRS[(milliseconds >> shift) & 1023] for shift in range(40, -1, -10)])


def derived_id(*parts: str) -> str:
    """An id that is a function of its parts, injective in practice (128 bits of SHA-256).

    Parts are joined by length, not by a separator, so that ("a", "bc") and ("ab", "c") differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return _base32(int.from_bytes(digest.digest()[:16], "big"))


def task_id_for_key(tenant: str, idempotency_key: str) -> str:
    """The id of the task that a tenant's idempotency key stands for."""
    return derived_id("task", tenant, idempotency_key)


def turn_step(turn: int) -> str:
    """The step name of a turn, e.g. `"3"`. Turns count from 1."""
    return str(turn)


def call_id(turn: int, index: int) -> str:
    """The id, and step name, of a tool call: `<turn>-<index>`, index from 0. Never the model's own id."""
    return f"{turn}-{index}"


def turn_of(step: str) -> int:
    """The turn that a step is, or whose call it is: 3 of `"3"` and of `"3-0"`."""
    return int(step.partition("-")[0])


def turn_message_id(task: str, turn: int, gen: int) -> str:
    """`Nats-Msg-Id` of a turn's work message: `<task>.<turn>.g<gen>`."""
    return f"{task}.{turn}.g{gen}"


def call_message_id(task: str, turn: int, call: str, gen: int) -> str:
    """`Nats-Msg-Id` of a call's work message: `<task>.<turn>.<call>.g<gen>`."""
    return f"{task}.{turn}.{call}.g{gen}"
