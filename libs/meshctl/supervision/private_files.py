"""Files and folders of one's own: readable for their owner alone, and never written through somebody else's link."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from meshctl.errors import MeshctlError


def create_folder(path: Path) -> None:
    """Make a folder, and those above it. One that is there stays as it is.

    It may be a link to another disk, if it is the user's own. Raises `MeshctlError` for a link of another user, and
    `OSError`.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) and found.st_uid not in (0, os.geteuid()):
        raise MeshctlError(f"{path} is a link that another user has made: remove it")


def write(path: Path, content: bytes) -> None:
    """Replace a file at once: a reader sees the old or the new one. A link in its place goes, and is not followed."""
    new = path.with_name(path.name + ".new")
    with os.fdopen(_created(new), "wb") as file:
        file.write(content)
    new.replace(path)


def open_to_append(path: Path) -> int:
    """A descriptor that appends to a file, which is made if it is not there. Raises `OSError` for a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o600)


def move_content(path: Path, to: Path) -> None:
    """Empty a file that others append to, and leave what it held in `to`.

    Who appends goes on at the beginning. What is appended between the last read and the truncation, some
    microseconds, is lost: nothing else can take a file from processes that hold it open.
    """
    new = to.with_name(to.name + ".new")
    source = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(source, "rb+", buffering=0) as old, os.fdopen(_created(new), "wb", buffering=0) as copy:
        shutil.copyfileobj(old, copy)
        shutil.copyfileobj(old, copy)  # What came while the most of it was copied.
        old.truncate(0)
    new.replace(to)


def _created(path: Path) -> int:
    """A new file. What was there before, a link too, goes: with O_EXCL nothing is followed."""
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
