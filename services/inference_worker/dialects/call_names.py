"""Calls on the wire of a model's server: what it asks for, and the ids by which it is answered. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from inference_worker.dialects.reading import joined
from inference_worker.models.chunks import RequestedCall

CALLS_MAX = 128
"""Most calls of one answer."""
ARGUMENTS_BYTES_MAX = 192 * 1024
"""Most of the arguments of all of them: beside the text and the reasoning they have to fit into one event."""
ARGUMENTS_DEPTH_MAX = 100
"""Deepest nesting of arguments: whoever reads the journal has to be able to, however deep in a stack it is."""

_TOO_DEEP = f"nested more than {ARGUMENTS_DEPTH_MAX} levels deep"


def requested_call(name: str, arguments: str, *, cut_off: bool = False) -> RequestedCall:
    """A call as it was gathered. `arguments` is JSON, if the model made no mistake; no text at all is `{}`.

    `cut_off`: the model was stopped while it wrote this call, so that no text may be a text that was to come.
    """
    text = joined(arguments.strip())
    if not text:
        return RequestedCall(name, None, "the call was cut off") if cut_off else RequestedCall(name, {})
    try:
        value = msgspec.json.decode(text, type=dict[str, Any])
    except RecursionError:
        return RequestedCall(name, None, _TOO_DEEP)
    except (msgspec.DecodeError, UnicodeError) as error:
        return RequestedCall(name, None, str(error))
    return (
        RequestedCall(name, None, _TOO_DEEP) if _is_deeper(value, ARGUMENTS_DEPTH_MAX) else RequestedCall(name, value)
    )


def _is_deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(each, levels - 1) for each in inner)


class CallIds:
    """Ids of calls as a model's server is told them: nine letters or digits, made of the mesh's own ids.

    Mistral's API, and templates and validators of its models, take no others, and nine suit everybody. An id says which
    call it is, `1-0`, and which task's: these begin anew with each task, and where a conversation goes over several,
    servers refuse to see one id twice. So whoever takes a turn over tells the same ids.
    """

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def of_call(self, call: str) -> str:
        """The id of a call that comes next in the conversation."""
        self._seen[call] += 1
        return self.of_answer(call)

    def of_answer(self, call: str) -> str:
        """The id of the last such call, for its answer."""
        turn, _, index = call.partition("-")
        return f"c{_digits(max(0, self._seen[call] - 1), 2)}{_digits(int(turn), 4)}{_digits(int(index), 2)}"


def _digits(number: int, width: int) -> str:
    """A number to the base of 36. A conversation has less than 1,296 tasks, a turn 128 calls, a task 999,999 turns."""
    digits = ""
    while len(digits) < width:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits
