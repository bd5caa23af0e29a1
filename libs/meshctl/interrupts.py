"""Ctrl-C while the command is still being imported: an end without a traceback.

Imported before everything else by `meshctl.__main__`, and only in a program: whoever imports meshctl for its parts
keeps the signals as they are.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Final

STATUS_INTERRUPTED: Final = 130


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(STATUS_INTERRUPTED)  # Nothing has begun: there is nothing to flush or to end.


def begun() -> None:
    """From here on a Ctrl-C is a `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_PROGRAM: Final = Path(sys.argv[0])
_IS_MESHCTL: Final = _PROGRAM.name == "meshctl" or _PROGRAM.parts[-2:] == ("meshctl", "__main__.py")
# An ignored SIGINT (nohup, a background job) stays ignored.
if _IS_MESHCTL and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
