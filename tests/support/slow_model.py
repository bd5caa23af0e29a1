"""A model that takes its time, and can't go on with a text: what a hand-over costs shows in what it has said."""

from __future__ import annotations

import asyncio

from tests.support.model_server import DONE, Exchange, chunk, usage


class SlowModel:
    """Says so many tokens, one after the other. `said` counts them, of all its answers."""

    def __init__(self, tokens: int, token_seconds: float) -> None:
        self.said = 0
        self._tokens = tokens
        self._token_seconds = token_seconds

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.say(chunk({"role": "assistant", "content": ""}, usage=None))
        for number in range(self._tokens):
            try:
                async with asyncio.timeout(self._token_seconds):
                    await exchange.gone.wait()
                return
            except TimeoutError:
                self.said += 1
            await exchange.say(chunk({"content": f"t{number} "}, usage=None))
        await exchange.say(chunk(finish_reason="stop", usage=None), usage(9, self._tokens))
        await exchange.send(DONE)
        await exchange.end()
