"""One task through HTTP while somebody watches: the first thing that a new user sees."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TextIO

from contracts.errors import TaskmeshError
from meshctl.client import Client
from meshctl.commands.tasks import APPEARS_SECONDS
from meshctl.display.output import printable
from meshctl.display.transcript import Transcript
from meshctl.errors import StreamBroken

TEXT = "Say what this mesh is for, in one sentence."
SECONDS_MAX = 30.0


async def run_first_task(client: Client, out: TextIO) -> bool:
    """Submit a task, show its words as they come, and say how it went. False if it did not complete."""
    try:
        async with asyncio.timeout(SECONDS_MAX):
            return await _run(client, out)
    except TimeoutError:
        print(f"\nThe first task has not ended within {SECONDS_MAX:.0f} s.", file=out, flush=True)
    except TaskmeshError as error:
        print(f"\nThe first task went wrong: {error.code}: {error}", file=out, flush=True)
    return False


async def _run(client: Client, out: TextIO) -> bool:
    started_at = time.monotonic()
    task = (await client.submit({"input": TEXT})).value.id
    print(f"First task {task}: {TEXT}", file=out, flush=True)
    transcript = Transcript()
    first_token_seconds: float | None = None
    async with aclosing(client.follow(task, appears_within_seconds=APPEARS_SECONDS)) as stream:
        async for received in stream:
            if not received.is_stored:
                continue
            text = transcript.add(received.cursor, received.payload)
            if text and first_token_seconds is None:
                first_token_seconds = time.monotonic() - started_at
            print(printable(text), end="", file=out, flush=True)
    sequences = transcript.sequences
    if not sequences:
        raise StreamBroken("the stream ended before it had begun")
    record = (await client.get(task)).value
    first = f"{first_token_seconds * 1000:.0f} ms" if first_token_seconds is not None else "never"
    print(
        f"\n{record.status}; first token after {first}; {len(sequences)} events,"
        f" sequences {sequences[0]} to {sequences[-1]}",
        file=out,
        flush=True,
    )
    if record.error is not None:
        print(f"{record.error.code}: {printable(record.error.message)}", file=out, flush=True)
    return record.status == "completed"
