"""A source at its pace: each request is booked, what it has used is told, and a refusal shuts the provider for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from contracts.codec import encode
from inference_worker.models.chunks import Chunk, Finished, TurnInput
from inference_worker.models.rate_headers import told_by
from inference_worker.models.watched_source import WatchedCall
from mesh.broker.gates import permit_in_hand
from mesh.clock import now
from mesh.pacing.pacer import Pacer, Place, Turn
from mesh.pacing.pacing import Pacing
from mesh.task.conversation import AssistantTurn, ConversationItem
from mesh.task.failures import StepFailed
from mesh.valves.gates import behind

RATE_LIMITED = "rate-limited"


class PlacedPermit:
    """A permit that comes with a place at a provider, or with none."""

    def __init__(self, place: Place | None) -> None:
        self.place = place


def place_in_hand(pacer: Pacer) -> Place | None:
    """The place at this provider that the step in hand has, and has not begun with."""
    permit: object = behind(permit_in_hand.get())
    place = permit.place if isinstance(permit, PlacedPermit) else None
    return place if place is not None and place.pacer is pacer and not place.begun else None


def may_begin(pacer: Pacer) -> bool:
    """Whether a request to a provider may begin now: the step in hand has a place there, or there is room."""
    at = now().timestamp()
    return not pacer.is_shut(at) and (place_in_hand(pacer) is not None or pacer.room(at) > 0)


class Paced:
    """Watches a source for its pace. Nobody waits here: whoever asks has a place, or books what it takes afterwards."""

    def __init__(self, provider: str, pacing: Pacing) -> None:
        self._provider = provider
        self._pacing = pacing

    def begin(self, turn: TurnInput) -> tuple[TurnInput, WatchedCall]:
        """A call, which is booked."""
        pacer = self._pacing.pacer(self._provider)

        def heard(headers: Mapping[str, str]) -> None:
            if pacer.is_paced:
                allowed, remaining = told_by(headers)
                pacer.hear(allowed, remaining, now().timestamp())

        read_bytes = _bytes_of(turn.messages) + len(turn.prefix) if pacer.is_paced else 0
        booked = pacer.begin(place_in_hand(pacer), read_bytes, turn.max_output_tokens)
        return msgspec.structs.replace(turn, on_headers=heard), _Call(self._pacing, pacer, booked)


class _Call(WatchedCall):
    def __init__(self, pacing: Pacing, pacer: Pacer, booked: Turn) -> None:
        self._pacing = pacing
        self._pacer = pacer
        self._booked = booked

    def heard(self, chunk: Chunk) -> None:
        """At its end it is known what it was."""
        if isinstance(chunk, Finished):
            self._pacer.answered()
            self._booked.used(chunk.usage)

    def failed(self, error: StepFailed) -> None:
        """A refusal of a provider with limits counts as no try of the step."""
        if error.code == RATE_LIMITED:
            self._booked.refused(error.retry_after_seconds, now().timestamp())
            self._pacing.changed()
            # It says nothing of the turn: the fleet has gone too fast, and the gate says when it goes on.
            error.counts = error.counts and not self._pacer.is_paced

    def over(self, characters: int) -> None:
        """Gates may have another room."""
        self._pacing.came_or_went(self._pacer)


def _bytes_of(messages: Sequence[ConversationItem]) -> int:
    """About how much a model is shown, in bytes."""
    total = 0
    for entry in messages:
        if isinstance(entry, AssistantTurn):
            total += len(entry.text.encode("utf-8", "surrogatepass")) + len(encode(entry.calls))
        else:
            total += len(entry.content.encode("utf-8", "surrogatepass"))
    return total
