"""Models that are given the images that tools returned, where their provider takes any.

A conversation names where images lie. They are read from the object store for each request, the newest first, as many
as fit; what does not fit, is gone or can't be read stays the text that it is. So whoever takes a turn over gives the
same. They are held until the request is sent, and those of all turns of a process have a bound together.

A server that refuses a request with images is asked again without them: a model may take none, or not this one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

import msgspec
import structlog

from contracts.errors import TaskmeshError
from contracts.journal.parts import ObjectReference
from inference_worker.dialects.asking_again import or_plain
from inference_worker.dialects.errors import CONTEXT_TOO_LONG, ProviderFailed
from inference_worker.dialects.room import Room
from inference_worker.models.candidates import Source
from inference_worker.models.chunks import Chunk, Shown, TurnInput
from mesh.broker import object_store
from mesh.broker.requests import Requests
from mesh.configuration.provider_tables import ProviderConfiguration, ScriptedProviderConfiguration
from mesh.task.conversation import ConversationItem, ToolAnswer
from mesh.task.images import Image, images_in

log = structlog.get_logger("inference_worker.dialects.seeing")

IMAGES_MAX = 8
"""Images that a model is given in one request. Each is read anew with every turn, at its price."""
IMAGES_BYTES_MAX = 15 * 256 * 1024
"""All of them together, 3.75 MiB: as base64 that is 5 MiB, what Anthropic's API takes of a single one."""
OBJECTS_BYTES_MAX = 8 * 1024 * 1024
"""Of results that are read for one request: the images that it may have, as base64, and what lies beside them."""
HELD_BYTES_MAX = 4 * OBJECTS_BYTES_MAX
"""Of results whose images are being read, or sent, in one process: some more are taken while a request is written."""
ROOM_SECONDS_MAX = 60.0
"""How long a turn waits for room before it goes without its images. Others need theirs for seconds; but a server that
takes nothing of what it is sent must not stop turns that go elsewhere."""
_HOSTS = frozenset({"api.openai.com", "api.anthropic.com"})
_REFUSED = frozenset({CONTEXT_TOO_LONG, "provider-bad-request"})
_REFUSED_IF_NAMED = frozenset({"provider-error", "model-not-found"})
"""As llama.cpp (500) and OpenRouter (404) refuse images: these codes have other causes as well."""

_Wanted = list[tuple[int, ToolAnswer, ObjectReference]]
"""Answers whose results are read: where they stand, and where their images lie."""


def takes_images(configuration: ProviderConfiguration) -> bool:
    """Whether a provider's models are given images: as the operator says, or the host."""
    if isinstance(configuration, ScriptedProviderConfiguration):
        return False
    if configuration.images is not None:
        return configuration.images
    return configuration.host in _HOSTS


class SeeingSource:
    """A source whose models are given images. `room` is what those of all sources of a process may take at once."""

    def __init__(self, source: Source, requests: Requests, room: Room) -> None:
        self.name = source.name
        self._source = source
        self._requests = requests
        self._room = room

    def continues(self, text: str) -> bool:
        """Whether its source does."""
        return self._source.continues(text)

    async def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        """Generate a turn. Raises what the source does; a turn does not fail for the sake of its images."""
        sight = ImagesOfTools(self._requests, self._room)
        wanted = self._source.stream(msgspec.structs.replace(turn, sight=sight))

        def refuses_images(error: ProviderFailed) -> bool:
            if not sight.has_shown or not _may_be_refused(error):
                return False
            log.warning("model.images_refused", provider=self.name, model=turn.model, code=error.code)
            return True

        async with aclosing(or_plain(wanted, lambda: self._source.stream(turn), refuses_images)) as chunks:
            async for chunk in chunks:
                yield chunk


class ImagesOfTools:
    """The images of a conversation's tools, for the requests of one turn. `has_shown`: some of them were given."""

    def __init__(self, requests: Requests, room: Room) -> None:
        self.has_shown = False
        self._requests = requests
        self._room = room

    async def show(self, messages: Sequence[ConversationItem]) -> Shown | None:
        """The conversation with its newest images; None if it has none, or if there is no room for them in time."""
        wanted = _wanted(messages)
        taken_bytes = sum(kept.size for _, _, kept in wanted)
        if not wanted:
            return None
        if not await self._room.take(taken_bytes, ROOM_SECONDS_MAX):
            log.warning("images.no_room", waited_seconds=ROOM_SECONDS_MAX, bytes=taken_bytes)
            return None

        def give_back() -> None:
            nonlocal taken_bytes
            self._room.give_back(taken_bytes)
            taken_bytes = 0

        shown: list[ConversationItem] | None = None
        try:
            shown = await self._with_images(messages, wanted)
        finally:
            if shown is None:
                give_back()
        if shown is None:
            return None
        self.has_shown = True
        return Shown(shown, give_back)

    async def _with_images(
        self, messages: Sequence[ConversationItem], wanted: _Wanted
    ) -> list[ConversationItem] | None:
        shown = list(messages)
        images_left, bytes_left = IMAGES_MAX, IMAGES_BYTES_MAX
        given = False
        for at, answer, kept in wanted:
            if not images_left:
                break
            fitting: list[Image] = []
            for image in await self._images_of(kept):
                if images_left and image.size_bytes <= bytes_left:
                    fitting.append(image)
                    images_left, bytes_left = images_left - 1, bytes_left - image.size_bytes
            if fitting:
                shown[at], given = replace(answer, images=tuple(fitting)), True
        return shown if given else None

    async def _images_of(self, kept: ObjectReference) -> list[Image]:
        try:
            payload = await object_store.get(self._requests, kept)
            content = msgspec.json.decode(payload) if payload is not None else None
        except (TaskmeshError, msgspec.MsgspecError, RecursionError) as error:
            log.warning("images.unreadable", object=kept.name, error=type(error).__name__)
            return []
        return list(images_in(content))


def _wanted(messages: Sequence[ConversationItem]) -> _Wanted:
    """The results that are read for a request, the newest first.

    One that turns out to have no images counts as well: so many are read at most.
    """
    kept = [
        (at, answer, answer.kept)
        for at, answer in enumerate(messages)
        if isinstance(answer, ToolAnswer) and answer.kept is not None
    ]
    wanted: _Wanted = []
    read_left = OBJECTS_BYTES_MAX
    for each in reversed(kept[-IMAGES_MAX:]):
        if each[2].size <= read_left:
            wanted.append(each)
            read_left -= each[2].size
    return wanted


def _may_be_refused(error: ProviderFailed) -> bool:
    """Whether it may be for the sake of its images that a request has failed."""
    if error.code in _REFUSED:
        return True
    return error.code in _REFUSED_IF_NAMED and "image" in (error.detail or "").lower()
