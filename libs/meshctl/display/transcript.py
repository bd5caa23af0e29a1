"""What a client makes of a stream: the text so far, and whether the events came without a hole. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from contracts.codec import decode
from contracts.journal.edge_events import Snapshot
from contracts.journal.events import OutputDelta, TaskCompleted, TurnRestarted, UnknownEvent, decode_event


class _Part(NamedTuple):
    n: int
    turn: int
    text: str


class Transcript:
    """Folds received events. `text` is the last turn's, as a task's output is."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.sequences: list[int] = []
        self.output: str | None = None
        """What the final event says that the output is."""
        self._parts: list[_Part] = []

    def add(self, sequence: int, payload: bytes) -> str:
        """Take the next stored event; returns the text that it adds. Raises `InvalidPayload`."""
        event = decode_event(payload)
        self.sequences.append(sequence)
        if isinstance(event, UnknownEvent):
            self.numbers.append(event.head.n)
            return ""
        self.numbers.append(event.n)
        match event:
            case OutputDelta():
                self._parts.append(_Part(event.n, event.turn, event.text))
                return event.text
            case TurnRestarted():
                self._parts = [part for part in self._parts if part.turn != event.turn or part.n < event.discard_from]
            case TaskCompleted():
                self.output = event.output
            case _:
                pass
        return ""

    @property
    def text(self) -> str:
        """The last turn's text."""
        last = max((part.turn for part in self._parts), default=0)
        return "".join(part.text for part in self._parts if part.turn == last)

    @property
    def is_dense(self) -> bool:
        """Whether every event from n = 0 on came, once and in order."""
        return self.numbers == list(range(len(self.numbers)))

    @property
    def rises(self) -> bool:
        """Whether each sequence is higher than the one before."""
        return all(first < second for first, second in pairwise(self.sequences))


def decode_snapshot(payload: bytes) -> Snapshot:
    """A snapshot, as the edge sends it after a gap. Raises `InvalidPayload`."""
    return decode(payload, Snapshot)
