"""Model providers: what each must do, and which there are.

A provider's failures are `StepFailed`, raised by its stream. There are six codes:

    rate-limited, provider-overloaded, provider-error, provider-disconnected   retryable
    provider-bad-request, invalid-script                                       terminal: the request is at fault
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from inference_worker.chunks import Chunk, TurnInput
from inference_worker.scripted import ScriptedProvider
from mesh.settings import Settings


class Provider(Protocol):
    """A source of model turns. One serves many turns at once."""

    @property
    def kind(self) -> str:
        """Its name in claims and dead letters."""
        ...

    @property
    def default_model(self) -> str:
        """The model of a request that names none."""
        ...

    @property
    def continues_prefix(self) -> bool:
        """Whether it can go on in the middle of a text that was generated before."""
        ...

    def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        """Generate a turn: any number of deltas, then `Finished`. Raises `StepFailed`.

        Closing the generator stops the generation.
        """
        ...


PROVIDERS: dict[str, Callable[[Settings], Provider]] = {
    "scripted": lambda settings: ScriptedProvider(exit_allowed=settings.scripted_allow_exit),
}
"""Provider kind → how one is made."""


def create_provider(settings: Settings) -> Provider:
    """The provider of this process."""
    return PROVIDERS["scripted"](settings)
