"""The bound of last resort: a test that hangs prints every thread's stack and ends its process, instead of hanging CI.

It is `faulthandler`'s timer, in C, so that it also ends what holds the interpreter's lock. As long as time is left by
the machine's clock (`patience`), the timer is set anew.
"""

from __future__ import annotations

import faulthandler
import threading

from tests.support.patience import MACHINE, Bound

TEST_SECONDS = 300.0
GRACE_SECONDS = 10.0
"""How far ahead of the end the timer is set at least, to be reached each time before it goes off."""


class Watchdog:
    """Watches over one test after the other. `descriptor`: where the stacks are printed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._bound: Bound | None = None
        MACHINE.watchers.append(self._look)

    def begin(self) -> None:
        """A test begins."""
        with self._lock:
            self._bound = Bound(TEST_SECONDS)
            self._set(self._bound)

    def end(self) -> None:
        """It is over, or somebody looks at it in a debugger."""
        with self._lock:
            self._bound = None
            faulthandler.cancel_dump_traceback_later()

    def _look(self) -> None:
        with self._lock:
            if self._bound is not None and self._bound.left:
                self._set(self._bound)

    def _set(self, bound: Bound) -> None:
        faulthandler.dump_traceback_later(bound.left + GRACE_SECONDS, file=self._descriptor, exit=True)
