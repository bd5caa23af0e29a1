"""JSON in and out. One encoder and one way to decode, so that every payload has the same limits and errors.

Payloads are UTF-8 JSON without line breaks between tokens, so that the `nats` CLI shows them as they
are. Readers ignore fields they don't know.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import Meta

from contracts.errors import InvalidPayload
from contracts.leniency import mend

T = TypeVar("T")

_encoder = msgspec.json.Encoder()


def encode(value: Any) -> bytes:
    """Encode a wire type as compact JSON."""
    return _encoder.encode(value)


def exactly(pattern: str, max_length: int | None = None) -> Meta:
    r"""A constraint on a string: all of it must match. The pattern has no alternatives outside of a group.

    In Python "$" lets a trailing newline pass, hence "\Z"; `generation.schemas` writes the "$" of JSON Schema.
    """
    return Meta(pattern=rf"^{pattern}\Z", max_length=max_length)


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def decode(payload: bytes, kind: type[T], *, whole_numbers: bool = False) -> T:
    """Decode JSON into a wire type.

    An optional field that is null is absent (PROTOCOL.md, section 5). `whole_numbers`: 27.0 is an integer.

    Raises `InvalidPayload` for whatever is wrong with the bytes: not JSON, bad UTF-8, nesting deeper
    than the interpreter takes, a missing field or a wrong type. The message names the path.
    """
    try:
        if not payload.isascii():
            payload.decode("utf-8")  # msgspec passes over fields that it does not know without looking at their bytes
        decoder: msgspec.json.Decoder[T] = _decoder(kind)  # type: ignore[arg-type]  # a type is hashable, whatever mypy says
        try:
            return decoder.decode(payload)
        except msgspec.ValidationError:
            # Most fields that may be absent have no null in their type, but a default. Rare, so it costs only these.
            value = msgspec.json.decode(payload)
            if not mend(value, kind, whole_numbers=whole_numbers):
                raise
            return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidPayload(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidPayload(f"not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidPayload("not valid JSON: nested too deeply") from None
