"""The watchdog: a process whose event loop stands still is ended, so that its supervisor starts it again.

A thread asks the loop for a sign of life and counts how long none comes. It counts time in which it ran itself: a
process that was stopped, or whose machine slept, has nothing to answer for; nor has one whose loop waits for its memory
to be read back from the disk. Before the end the log is told where every thread was.

The thread needs the interpreter's lock. What stands still and holds that (a regular expression gone astray, for one) is
ended by a timer of the process's CPU time, which takes no lock: it prints the stacks, and the process ends by SIGPROF.
"""

from __future__ import annotations

import asyncio
import contextvars
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

from mesh.serving.statuses import STATUS_STOOD_STILL

log = structlog.get_logger("mesh.serving.watchdog")

TICKS: Final = 20
"""So often in its bound the loop is asked."""
TICK_SECONDS_MIN, TICK_SECONDS_MAX = 0.05, 1.0
LATE_SHARE_MAX: Final = 2.0
"""A tick that comes late counts for no more than this many."""
LAST_WORDS_SECONDS: Final = 2.0
"""How long the log may take to be told: whoever stands still may do so because nobody reads its log."""


class StandstillCount:
    """How long the loop has given no sign, in time that the watching thread saw."""

    def __init__(self, tick_seconds: float) -> None:
        self._tick_seconds = tick_seconds
        self.seconds = 0.0

    def answered(self) -> None:
        """The loop has given a sign since the last tick."""
        self.seconds = 0.0

    def silent(self, passed_seconds: float, *, excused: bool = False) -> None:
        """It has not, in the time since the last tick. One that comes late was not seen: it counts as two."""
        if not excused:
            self.seconds += min(passed_seconds, LATE_SHARE_MAX * self._tick_seconds)


@asynccontextmanager
async def watched(bound_seconds: float, end: Callable[[int], object] = os._exit) -> AsyncIterator[None]:
    """Watch the running loop during the body; 0 is not at all. `end` is called with the status of the process."""
    if bound_seconds <= 0:
        yield
        return
    watchdog = _Watchdog(asyncio.get_running_loop(), bound_seconds, end)
    context = contextvars.copy_context()  # The name of the service is in it, for the log.
    thread = threading.Thread(target=context.run, args=(watchdog.run,), name="watchdog", daemon=True)
    with _cpu_time_alarm():
        thread.start()
        try:
            yield
        finally:
            watchdog.stop()


class _Watchdog:
    def __init__(self, loop: asyncio.AbstractEventLoop, bound_seconds: float, end: Callable[[int], object]) -> None:
        self._loop = loop
        self._bound_seconds = bound_seconds
        self._tick_seconds = min(TICK_SECONDS_MAX, max(TICK_SECONDS_MIN, bound_seconds / TICKS))
        self._end = end
        self._stopped = threading.Event()
        self._answered = threading.Event()
        self._loop_thread = threading.get_ident()
        self._loop_thread_native = threading.get_native_id()

    def stop(self) -> None:
        self._stopped.set()
        signal.setitimer(signal.ITIMER_PROF, 0)

    def run(self) -> None:
        """Watch until stopped."""
        count = StandstillCount(self._tick_seconds)
        with suppress(RuntimeError):  # The loop is closed: there is nothing to watch any more.
            while not self._stopped.is_set():
                self._answered.clear()
                self._loop.call_soon_threadsafe(self._answered.set)
                signal.setitimer(signal.ITIMER_PROF, self._bound_seconds)
                slept_at = time.monotonic()
                if self._stopped.wait(self._tick_seconds):
                    break
                if self._answered.is_set():
                    count.answered()
                    continue
                count.silent(time.monotonic() - slept_at, excused=self._waits_for_the_disk())
                if count.seconds >= self._bound_seconds:
                    self._give_up(count.seconds)
                    return
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _waits_for_the_disk(self) -> bool:
        """Whether the loop's thread waits for the disk, as one does whose memory was swapped out (Linux)."""
        with suppress(OSError, IndexError):
            stat = Path(f"/proc/self/task/{self._loop_thread_native}/stat").read_text()
            return stat.rpartition(")")[2].split()[0] == "D"
        return False

    def _give_up(self, seconds: float) -> None:
        # In a thread of its own: the log may be what stands still.
        words = threading.Thread(
            target=contextvars.copy_context().run, args=(self._tell, seconds), name="last-words", daemon=True
        )
        words.start()
        words.join(LAST_WORDS_SECONDS)
        self._end(STATUS_STOOD_STILL)

    def _tell(self, seconds: float) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        stacks = {ident: "".join(traceback.format_stack(frame)) for ident, frame in sys._current_frames().items()}
        own = stacks.pop(self._loop_thread, "")
        mine = {threading.get_ident(), *(ident for ident, name in names.items() if name == "watchdog")}
        others = [f"{names.get(ident, ident)}:\n{stack}" for ident, stack in stacks.items() if ident not in mine]
        log.critical("loop.stood_still", seconds=round(seconds, 1), stack=own, other_threads="\n".join(others))


@contextmanager
def _cpu_time_alarm() -> Iterator[None]:
    """Let SIGPROF print the stacks and end the process during the body: in C, whoever holds the interpreter's lock."""
    # What it is registered above is called next: the default, which ends the process.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with suppress(ValueError, OSError, RuntimeError, AttributeError):  # There is no descriptor to print to.
        faulthandler.register(signal.SIGPROF, all_threads=True, chain=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.unregister(signal.SIGPROF)
