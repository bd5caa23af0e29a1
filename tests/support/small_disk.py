"""A file system of a few MiB, so that a test can fill it. Where none can be mounted the test is skipped."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import children


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A disk of that size at `folder`, which is made."""
    folder.mkdir(parents=True)
    if sys.platform != "linux":
        pytest.skip("no small disk: tmpfs is Linux's")
    mounted = children.run_blocking(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", folder])
    if mounted.returncode != 0:
        pytest.skip(f"no small disk: {mounted.stderr.strip() or 'mount failed'} (user {os.getuid()})")
    try:
        yield folder
    finally:
        # Lazily: whatever is still there must not keep the disk mounted.
        children.run_blocking(["umount", "--lazy", folder]).check_returncode()


def fill(folder: Path) -> Path:
    """Write a file until the disk has no byte left; deleting it gives the room back."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (64 * 1024, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler
