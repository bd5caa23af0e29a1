"""How fast a disk makes writes durable: what an embedded broker that syncs always has to wait for."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from pathlib import Path
from typing import Final

MEASURE_SECONDS_MAX: Final = 1.0
WRITES_MAX: Final = 2_000
"""A fast disk needs no whole second to show what it can."""
WRITE_BYTES: Final = 512
"""About an event as it is stored."""
_FULL_SYNC: Final[int | None] = getattr(fcntl, "F_FULLFSYNC", None)
"""macOS: its fsync stops short of the disk; nats-server asks for this too."""


def fsyncs_per_second(folder: Path, seconds_max: float = MEASURE_SECONDS_MAX) -> float:
    """Append and sync on a temporary file in `folder`, for a second at most. Blocks. Raises `OSError`.

    The bound is looked at between writes, so a disk that hangs takes as long as one sync does.
    """
    with tempfile.TemporaryFile(dir=folder, prefix="doctor-") as file:
        descriptor = file.fileno()
        block = os.urandom(WRITE_BYTES)
        began_at = time.perf_counter()
        writes, took_seconds = 0, 0.0
        while writes < WRITES_MAX and took_seconds < seconds_max:
            os.write(descriptor, block)
            _sync(descriptor)
            writes += 1
            took_seconds = time.perf_counter() - began_at
        return writes / took_seconds


def _sync(descriptor: int) -> None:
    if _FULL_SYNC is not None:
        fcntl.fcntl(descriptor, _FULL_SYNC)
    else:
        os.fsync(descriptor)
