"""Continuing a text in mid-sentence: what a server says first is held against the text that it was to continue.

Not every server that takes the beginning of an answer goes on behind it. There are three that do not: one that repeats
the text and then goes on (llama.cpp's Messages API), one that begins anew with the same words, and one that begins anew
with others. The first is read; the second is found out, and the turn begins again; the third can't be told from one
that continues, and so whoever continues has to be known, or opted for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing

from inference_worker.dialects.errors import ProviderFailed
from inference_worker.models.chunks import Begun, Chunk, Finished, TextDelta, TurnInput
from mesh.configuration.provider_tables import ServerConfiguration

CHARACTERS_MIN = 16
"""The shortest text that is continued, and the shortest repetition of its beginning that is no chance: of a shorter one
nobody could tell, and little is lost with it."""


class BeganAnew(ProviderFailed):
    """The server did not continue the text, but began it again in other words."""

    def __init__(self) -> None:
        super().__init__(
            "provider-error", "the server began anew instead of continuing: so does the next try", retryable=True
        )


class ContinuingProvider(ABC):
    """What both kinds of provider do with a prefix. `continues`: whether the server is known to go on behind one."""

    def __init__(self, configuration: ServerConfiguration, *, continues: bool) -> None:
        self._server_configuration = configuration
        self._continues = continues
        """Until the server has begun anew, or a model has refused to."""

    def continues(self, text: str) -> bool:
        """Whether the server can go on behind this text."""
        return self._continues and is_continuable(text)

    async def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        """Generate a turn. Raises `ProviderFailed`. Closing the generator closes the connection at once."""
        try:
            async with aclosing(self._ask(turn)) as said, aclosing(only_new(turn.prefix, said)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except ProviderFailed as error:
            if isinstance(error, BeganAnew):
                self._continues = False
            raise error.at(self._server_configuration) from None

    @abstractmethod
    def _ask(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        """What the server says, as it comes. Raises `ProviderFailed`."""


def is_continuable(text: str) -> bool:
    """Whether it could be told of a text that it comes twice: it is no mere word, and no repetition in itself."""
    core = text.strip()
    half = core[: (len(core) + 1) // 2]
    period = core.find(half, 1)
    return len(core) >= CHARACTERS_MIN and not (period > 0 and core.startswith(core[period:]))


async def only_new(prefix: str, chunks: AsyncGenerator[Chunk, None]) -> AsyncGenerator[Chunk, None]:
    """What a server says behind a prefix; all that it says without one. Raises `BeganAnew`."""
    opening = Opening(prefix) if prefix else None
    async for chunk in chunks:
        if opening is None or not isinstance(chunk, TextDelta | Finished):
            yield chunk
        elif isinstance(chunk, Finished):
            if rest := opening.end():
                yield TextDelta(rest)
            yield chunk
        else:
            new = opening.take(chunk.text)
            yield TextDelta(new) if new else Begun()
            if opening.is_told:
                opening = None


class Opening:
    """The first that a server says behind a prefix: nothing of it is handed on before it is known what it is.

    White space at either end of the prefix may be missing where it is repeated: some wires refuse it.
    """

    def __init__(self, prefix: str) -> None:
        self.is_told = False
        """What follows is new."""
        self._core = prefix.strip()
        self._tail = prefix[len(prefix.rstrip()) :]
        self._said = ""

    def take(self, text: str) -> str:
        """Take more of the text; what of it is known to be new. Raises `BeganAnew`."""
        self._said += text
        said = self._said.lstrip()
        if self._core.startswith(said) and len(said) < len(self._core):
            return ""  # It may become either.
        if said.startswith(self._core):
            rest = said[len(self._core) :]
            same = _same(rest, self._tail)
            self.is_told = same < len(rest) or same == len(self._tail)
            return rest[same:] if self.is_told else ""
        self._check(_same(said, self._core))
        self.is_told = True
        return self._said

    def end(self) -> str:
        """What is left at the end. Raises `BeganAnew`."""
        said = self._said.lstrip()
        if self.is_told or said.startswith(self._core):
            return ""
        self._check(len(said))
        return self._said

    def _check(self, same: int) -> None:
        if same >= CHARACTERS_MIN:
            raise BeganAnew


def _same(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    ends = (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(ends, min(len(one), len(other)))
