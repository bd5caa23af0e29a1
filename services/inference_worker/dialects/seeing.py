"""Models that are given the images that tools returned, where their provider takes any.

A conversation names where images lie. They are read from the object store for each request, the newest first, as many
as fit; what does not fit, is gone or can't be read stays the text that it is. So whoever takes a turn over gives the
same. A server that refuses a request with images is asked again without them: a model may take none, or not this one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import msgspec
import structlog

from contracts.errors import TaskmeshError
from contracts.journal.parts import ObjectReference
from inference_worker.dialects.asking_again import or_plain
from inference_worker.dialects.errors import CONTEXT_TOO_LONG, ProviderFailed
from inference_worker.models.candidates import Source
from inference_worker.models.chunks import Chunk, TurnInput
from mesh.broker import object_store
from mesh.broker.requests import Requests
from mesh.configuration.mesh_toml import ProviderConfiguration, ScriptedProviderConfiguration
from mesh.task.conversation import ConversationItem, ToolAnswer
from mesh.task.images import Image, images_in

log = structlog.get_logger("inference_worker.dialects.seeing")

IMAGES_MAX = 8
"""Images that a model is given in one request. Each is read anew with every turn, at its price."""
IMAGES_BYTES_MAX = 15 * 256 * 1024
"""All of them together, 3.75 MiB: as base64 that is 5 MiB, what Anthropic's API takes of a single one."""
OBJECTS_BYTES_MAX = 8 * 1024 * 1024
"""Of results that are read for one request: the images that it may have, as base64, and what lies beside them."""
_HOSTS = frozenset({"api.openai.com", "api.anthropic.com"})
_REFUSED = frozenset({CONTEXT_TOO_LONG, "provider-bad-request"})
_REFUSED_IF_NAMED = frozenset({"provider-error", "model-not-found"})
"""As llama.cpp (500) and OpenRouter (404) refuse images: these codes have other causes as well."""


def takes_images(configuration: ProviderConfiguration) -> bool:
    """Whether a provider's models are given images: as the operator says, or the host."""
    if isinstance(configuration, ScriptedProviderConfiguration):
        return False
    if configuration.images is not None:
        return configuration.images
    return configuration.host in _HOSTS


class SeeingSource:
    """A source whose models are given images."""

    def __init__(self, source: Source, requests: Requests) -> None:
        self.name = source.name
        self._source = source
        self._requests = requests

    def continues(self, text: str) -> bool:
        """Whether its source does."""
        return self._source.continues(text)

    async def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        """Generate a turn. Raises what the source does; a turn does not fail for the sake of its images."""
        messages = await self._with_images(turn)
        wanted = self._source.stream(turn if messages is None else replace(turn, messages=messages))
        sees = messages is not None
        del messages  # So many bytes are not kept for as long as a model speaks without them.

        def refuses_images(error: ProviderFailed) -> bool:
            if not sees or not _may_be_refused(error):
                return False
            log.warning("model.images_refused", provider=self.name, model=turn.model, code=error.code)
            return True

        async with aclosing(or_plain(wanted, lambda: self._source.stream(turn), refuses_images)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _with_images(self, turn: TurnInput) -> list[ConversationItem] | None:
        """The conversation with its newest images; None if it has none."""
        messages = list(turn.messages)
        images_left, bytes_left, read_left = IMAGES_MAX, IMAGES_BYTES_MAX, OBJECTS_BYTES_MAX
        kept = [(at, answer) for at, answer in enumerate(messages) if isinstance(answer, ToolAnswer) and answer.kept]
        given = False
        # One that turns out to have no images counts as well: so many are read at most.
        for at, answer in reversed(kept[-IMAGES_MAX:]):
            if answer.kept is None or answer.kept.size > read_left or not images_left:
                continue
            read_left -= answer.kept.size
            fitting: list[Image] = []
            for image in await self._images_of(answer.kept):
                if images_left and image.size_bytes <= bytes_left:
                    fitting.append(image)
                    images_left, bytes_left = images_left - 1, bytes_left - image.size_bytes
            if fitting:
                messages[at], given = replace(answer, images=tuple(fitting)), True
        return messages if given else None

    async def _images_of(self, kept: ObjectReference) -> list[Image]:
        try:
            payload = await object_store.get(self._requests, kept)
            content = msgspec.json.decode(payload) if payload is not None else None
        except (TaskmeshError, msgspec.MsgspecError, RecursionError) as error:
            log.warning("images.unreadable", object=kept.name, error=type(error).__name__)
            return []
        return list(images_in(content))


def _may_be_refused(error: ProviderFailed) -> bool:
    """Whether it may be for the sake of its images that a request has failed."""
    if error.code in _REFUSED:
        return True
    return error.code in _REFUSED_IF_NAMED and "image" in (error.detail or "").lower()
