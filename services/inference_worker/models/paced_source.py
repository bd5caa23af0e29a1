"""A source at its pace: each request is booked, what it has used is told, and a refusal shuts the provider for all."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

from contracts.codec import encode
from inference_worker.models.candidates import Source
from inference_worker.models.chunks import Chunk, Finished, TurnInput
from inference_worker.models.rate_headers import told_by
from mesh.broker.gates import permit_in_hand
from mesh.clock import now
from mesh.pacing.pacer import Pacer, Place
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


class PacedSource:
    """A source at its pace. It does not wait: whoever asks has a place, or books what it takes afterwards."""

    def __init__(self, source: Source, pacing: Pacing) -> None:
        self.name = source.name
        self._source = source
        self._pacing = pacing

    def continues(self, text: str) -> bool:
        """Whether its source does."""
        return self._source.continues(text)

    async def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        """Generate a turn. Raises `StepFailed`; a refusal of a provider with limits counts as no try of the step."""
        pacer = self._pacing.pacer(self.name)

        def heard(headers: Mapping[str, str]) -> None:
            if pacer.is_paced:
                allowed, remaining = told_by(headers)
                pacer.hear(allowed, remaining, now().timestamp())

        read_bytes = _bytes_of(turn.messages) + len(turn.prefix) if pacer.is_paced else 0
        request = pacer.begin(place_in_hand(pacer), read_bytes, turn.max_output_tokens)
        try:
            async with aclosing(self._source.stream(replace(turn, on_headers=heard))) as chunks:
                async for chunk in chunks:
                    if isinstance(chunk, Finished):
                        pacer.answered()
                        request.used(chunk.usage)
                    yield chunk
        except StepFailed as error:
            if error.code == RATE_LIMITED:
                request.refused(error.retry_after_seconds, now().timestamp())
                # It says nothing of the turn: the fleet has gone too fast, and the gate says when it goes on.
                error.counts = error.counts and not pacer.is_paced
            raise
        finally:
            self._pacing.changed(pacer)


def _bytes_of(messages: Sequence[ConversationItem]) -> int:
    """About how much a model is shown, in bytes."""
    total = 0
    for entry in messages:
        if isinstance(entry, AssistantTurn):
            total += len(entry.text.encode("utf-8", "surrogatepass")) + len(encode(entry.calls))
        else:
            total += len(entry.content.encode("utf-8", "surrogatepass"))
    return total
