"""Calls that come in fragments, put together: which fragment belongs to which call, and what was said of each. Pure.

On the wire of chat completions a call begins with an index, an id and a name, and its arguments follow under its index.
Servers repeat an id, leave it empty, give each fragment a new one, or give every call index 0. So, in this order:

1. An id that is known belongs to its call, whatever the index is, unless it comes with another name.
2. Under an index that is known, or without one, a fragment goes on with the last call there, as long as the arguments
   of that are not whole and the name is the same: then a new id tells nothing.
3. Everything else begins a new call. If in the end it has arguments and no name, nobody knows whose they are: then the
   answer can't be used.

A call that is told once more, under its id, is one call. A call never runs with arguments that were not said.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import msgspec

from inference_worker.dialects.call_names import ARGUMENTS_BYTES_MAX, CALLS_MAX, requested_call
from inference_worker.dialects.errors import ProviderFailed
from inference_worker.dialects.reading import index_of, mended, object_of, text_of
from inference_worker.models.chunks import RequestedCall

INDEXES_MAX = 1024
"""Most indexes of one answer: some servers count fragments, and not calls."""

_OUTSIDE_TEXT = re.compile(r'["{}\[\]]')
_IN_TEXT = re.compile(r'["\\]')


class JsonScanner:
    """Says when a JSON object or list is whole, as its text comes in parts. Each character is looked at once."""

    def __init__(self) -> None:
        self.whole = False
        self._depth = 0
        self._in_text = False
        self._escaped = False

    def feed(self, part: str) -> None:
        """Take more of the text."""
        at = 1 if self._escaped and part else 0
        self._escaped = self._escaped and not part
        while (found := (_IN_TEXT if self._in_text else _OUTSIDE_TEXT).search(part, at)) is not None:
            at = found.end()
            match found[0]:
                case '"':
                    self._in_text = not self._in_text
                case "\\":
                    self._escaped = at == len(part)
                    at += 1
                case "{" | "[":
                    self._depth += 1
                case _:
                    self._depth -= 1
                    self.whole = self.whole or self._depth <= 0


@dataclass(frozen=True, slots=True)
class Fragment:
    """A part of a call, as far as it was told."""

    index: int | None
    id: str
    name: str
    arguments: str

    @classmethod
    def of(cls, value: Any) -> Fragment:
        """Read a `tool_calls` entry of a delta: what is of another type than it should be is not there."""
        told = object_of(value)
        function = object_of(told.get("function"))
        index = index_of(told.get("index"))
        return cls(
            index, text_of(told.get("id")), mended(text_of(function.get("name"))), _text(function.get("arguments"))
        )


class GatheredCall:
    """A call that is being gathered. `again`: it may be but one more telling, or the end, of another one."""

    def __init__(self, index: int | None, identifier: str, name: str, *, again: bool = False) -> None:
        self.index = index
        self.id = identifier
        self.name = name
        self.again = again
        self.arguments = JsonScanner()
        self.is_begun = False
        """Something of its arguments has come."""
        self._parts: list[str] = []

    def add(self, arguments: str) -> None:
        """More of its arguments."""
        self.is_begun = self.is_begun or bool(arguments.strip())
        self._parts.append(arguments)
        self.arguments.feed(arguments)

    @property
    def text(self) -> str:
        """Its arguments so far."""
        return "".join(self._parts).strip()


class GatheredCalls:
    """The calls of one answer."""

    def __init__(self) -> None:
        self._calls: list[GatheredCall] = []
        self._under: dict[int, GatheredCall] = {}
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._calls)

    def take(self, fragment: Fragment) -> None:
        """Take a fragment. Raises `ProviderFailed` beyond a bound."""
        call = self._call_of(fragment)
        if fragment.index is not None:
            self._under[fragment.index] = call
        self._bytes += len(fragment.arguments.encode("utf-8", "surrogatepass"))
        if not call.name and fragment.name:
            call.name = fragment.name
            self._bytes += len(fragment.name)
        if self._bytes > ARGUMENTS_BYTES_MAX:
            raise ProviderFailed("provider-error", "the arguments of the calls are too long", retryable=True)
        if len(self._under) > INDEXES_MAX:
            raise ProviderFailed("provider-error", f"more than {INDEXES_MAX} indexes of calls", retryable=True)
        if fragment.arguments:
            call.add(fragment.arguments)

    def requested(self, *, cut_off: bool) -> tuple[RequestedCall, ...]:
        """The calls, in order. `cut_off`: the model was stopped, maybe in the last one.

        Raises `ProviderFailed` for arguments that belong to no call.
        """
        told: list[RequestedCall] = []
        keys: set[tuple[str, str, bytes]] = set()
        names = {call.id: call.name for call in reversed(self._calls) if call.name}
        for call in self._calls:
            if not call.is_begun and self._is_no_call(call):
                continue
            asked = requested_call(call.name, call.text, cut_off=cut_off and call is self._calls[-1])
            said = call.text.encode("utf-8", "surrogatepass") if asked.arguments is None else _canonical(asked)
            key = (call.id, call.name or names.get(call.id, ""), said)
            if call.id and key in keys:
                continue
            if not call.name:
                raise ProviderFailed("provider-error", "arguments that belong to no call", retryable=True)
            keys.add(key)
            told.append(asked)
        return tuple(told)

    def _is_no_call(self, call: GatheredCall) -> bool:
        """Whether a call without arguments is none. Where calls have ids, one without an id is an end of another."""
        return call.again or not call.name or (not call.id and any(each.id for each in self._calls))

    def _call_of(self, fragment: Fragment) -> GatheredCall:
        """The call that it belongs to; a new one if there is none."""
        known = next((call for call in reversed(self._calls) if fragment.id and call.id == fragment.id), None)
        call = known or self._last_under(fragment.index)
        if call is None or (fragment.name and call.name and fragment.name != call.name):
            return self._begin(fragment)
        is_behind_whole = call.again and not call.is_begun and fragment.id not in ("", call.id)
        if call.arguments.whole or is_behind_whole:
            return self._behind_whole(call, fragment, is_known=known is not None)
        call.id = call.id or fragment.id
        return call

    def _behind_whole(self, call: GatheredCall, fragment: Fragment, *, is_known: bool) -> GatheredCall:
        """What comes for a call whose arguments are whole: an empty end, rubbish of its own, or a new call."""
        is_its_own = not fragment.name and (is_known or not fragment.id)
        if is_its_own and not fragment.arguments.lstrip().startswith("{"):
            return call  # With more than white space behind its end it is no object: the model is told so.
        # A name, without arguments in the end, was but an end of its own, or the beginning of the same call again.
        return self._begin(fragment, again=True)

    def _begin(self, fragment: Fragment, *, again: bool = False) -> GatheredCall:
        if len(self._calls) >= CALLS_MAX:
            raise ProviderFailed("provider-error", f"more than {CALLS_MAX} calls in one answer", retryable=True)
        call = GatheredCall(fragment.index, fragment.id, fragment.name, again=again)
        self._bytes += len(fragment.id) + len(fragment.name)
        self._calls.append(call)
        return call

    def _last_under(self, index: int | None) -> GatheredCall | None:
        if index is None:
            return self._calls[-1] if self._calls else None
        return self._under.get(index)


def as_json(value: Any) -> str:
    """A JSON value as text. What is too deep is no JSON any more: whoever reads it says so."""
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except RecursionError:
        return "too deep"


def _text(arguments: Any) -> str:
    """Arguments as JSON text. An empty object at a call's beginning may stand for what is still to come."""
    return "" if arguments is None or arguments == {} else as_json(arguments)


def _canonical(call: RequestedCall) -> bytes:
    return msgspec.json.encode(call.arguments, order="sorted")
