"""The scripted model: a deterministic stand-in, for the first run, for load and for failure tests."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import lru_cache

import msgspec

from contracts.journal.parts import Usage
from inference_worker.dialects.scripted.script import (
    Failure,
    FailureKind,
    Halfway,
    Hang,
    Rate,
    Script,
    invalid_script,
    script_of_turn,
)
from inference_worker.models.chunks import Chunk, Finished, TextDelta, TurnInput
from mesh.task.conversation import AssistantTurn, ConversationItem
from mesh.task.failures import StepFailed

YIELD_TOKENS = 256
"""After so many tokens without a wait the event loop gets its turn."""

_CODES: dict[FailureKind, str] = {
    "rate_limit": "rate-limited",
    "overloaded": "provider-overloaded",
    "server_error": "provider-error",
    "bad_request": "provider-bad-request",
    "disconnect": "provider-disconnected",
}

LONG_CHARACTERS, LONG_KEPT = 1024, 16
"""The words of a long text need not be counted again at each turn."""


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class ScriptedProvider:
    """Carries out the script in the newest message of the user that has one, a part of it in each turn.

    The same conversation gives the same text, whatever part of it is in the prefix. `exit_allowed`: whether `!exit`
    is obeyed, which kills this process.
    """

    default_model = "scripted"

    def __init__(
        self, name: str = "scripted", *, exit_allowed: bool, exit_process: Callable[[], None] = _kill_this_process
    ) -> None:
        self.name = name
        self._exit_allowed = exit_allowed
        self._exit_process = exit_process

    def continues(self, text: str) -> bool:
        """Any text: it is of its script."""
        return True

    async def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        """Generate a turn. Raises `StepFailed`: invalid-script, or what the script asks for."""
        script = script_of_turn(turn.messages)
        if script.exits and not self._exit_allowed:
            raise invalid_script("!exit is only obeyed with MESH_SCRIPTED_ALLOW_EXIT=1")
        failure = script.failure(turn.tries)
        if failure is not None and failure.kind != "disconnect":
            raise _failed(failure)
        turn.meter.ask()
        whole = script.token_count
        token_count = whole if turn.max_output_tokens is None else min(whole, turn.max_output_tokens)
        loop = asyncio.get_running_loop()
        pace = Pace(0)
        without_wait = 0
        for moment in script.moments(token_count, len(turn.prefix)):
            match moment:
                case str():
                    delay_seconds = pace.delay_seconds(loop.time())
                    without_wait += 1
                    if delay_seconds > 0 or without_wait >= YIELD_TOKENS:
                        without_wait = 0
                        await asyncio.sleep(delay_seconds)
                    yield TextDelta(moment)
                case Rate():
                    pace = Pace(moment.tokens_per_second)
                case Hang():
                    await asyncio.sleep(moment.seconds)
                    pace.begin_again()
                case Halfway():
                    if turn.deliveries <= script.exits:
                        self._exit_process()
                    if failure is not None:
                        raise _failed(failure)
        # A model that is cut off has not come to its calls.
        calls = script.calls if token_count == whole else ()
        usage = _usage(_words(turn.messages), token_count, script)
        turn.meter.tell(usage)
        turn.meter.over()
        yield Finished(
            finish_reason="length" if token_count < whole else "tool_calls" if calls else "stop",
            usage=usage,
            calls=calls,
        )


class Pace:
    """Holds a rate on average, by the clock and not by the sum of its waits: who is late catches up."""

    def __init__(self, tokens_per_second: float) -> None:
        self._rate = tokens_per_second
        self._began_at: float | None = None
        self._tokens = 0

    def begin_again(self) -> None:
        """Count from the next token on: a silence is not made up for."""
        self._began_at = None
        self._tokens = 0

    def delay_seconds(self, now: float) -> float:
        """How long to wait from `now` before the next token, on any clock in seconds."""
        if not self._rate:
            return 0.0
        if self._began_at is None:
            self._began_at = now
        due_at = self._began_at + self._tokens / self._rate
        self._tokens += 1
        return max(0.0, due_at - now)


def _usage(read: int, put_out: int, script: Script) -> Usage:
    """What a model would tell: tokens that a script says were in the cache are among those that it reads."""
    return Usage(
        input_tokens=read,
        output_tokens=put_out + script.reasoning,
        cached_tokens=min(script.cached, read) or msgspec.UNSET,
        reasoning_tokens=script.reasoning or msgspec.UNSET,
    )


def _words(entries: Sequence[ConversationItem]) -> int:
    texts = (entry.text if isinstance(entry, AssistantTurn) else entry.content for entry in entries)
    return sum(len(text.split()) if len(text) < LONG_CHARACTERS else _words_of_long(text) for text in texts)


@lru_cache(LONG_KEPT)
def _words_of_long(text: str) -> int:
    return len(text.split())


def _failed(failure: Failure) -> StepFailed:
    terminal = failure.kind == "bad_request"
    return StepFailed(
        _CODES[failure.kind],
        f"the script asked for {failure.kind}",
        retryable=not terminal,
        terminal=terminal,
        retry_after_seconds=failure.retry_after_seconds,
    )
