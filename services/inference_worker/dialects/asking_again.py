"""Asking again without what a server has refused, as long as it has said nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from inference_worker.dialects.errors import ProviderFailed
from inference_worker.models.chunks import Chunk


async def or_plain(
    wanted: AsyncGenerator[Chunk, None],
    plain: Callable[[], AsyncGenerator[Chunk, None]],
    is_refused: Callable[[ProviderFailed], bool],
) -> AsyncGenerator[Chunk, None]:
    """What is said to a request; where that is refused before anything was said, what is said to a plainer one.

    Raises `ProviderFailed`: another failure, one behind the first chunk, and that of the plainer one.
    """
    spoke = False
    try:
        async with aclosing(wanted) as chunks:
            async for chunk in chunks:
                spoke = True
                yield chunk
        return
    except ProviderFailed as error:
        if spoke or not is_refused(error):
            raise
    async with aclosing(plain()) as chunks:
        async for chunk in chunks:
            yield chunk
