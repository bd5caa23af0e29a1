"""Files that hold one secret each: an API key, a webhook's secret, a URL with a password (ADR-29).

Orchestrators hand secrets out as files: Docker's and Kubernetes' secrets, systemd's credentials. Unlike a variable, a
file can be replaced while a process runs. No message here says what a file holds.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta

from mesh.errors import SettingsError

SECRET_BYTES_MAX: Final = 64 * 1024
"""The longest chain of certificates is shorter. A larger file is another one than was meant."""
CREDENTIALS_VARIABLE: Final = "CREDENTIALS_DIRECTORY"
_CREDENTIALS: Final = f"${CREDENTIALS_VARIABLE}/"

SecretPath = Annotated[str, Meta(min_length=1, max_length=4096)]
"""A path: absolute, or relative to the folder of the configuration file.

It may begin with `$CREDENTIALS_DIRECTORY/`, where systemd puts a unit's credentials (systemd.exec(5)).
"""


def secret_path(file: str, source: str, environment: Mapping[str, str], key: str) -> Path:
    """The path that a configuration file, `source`, means. Raises `SettingsError`, which begins with `key`."""
    if "\0" in file:
        raise SettingsError(f"{key}: holds a NUL character")
    if file.startswith(_CREDENTIALS):
        folder = environment.get(CREDENTIALS_VARIABLE)
        if not folder:
            raise SettingsError(
                f"{key}: the variable {CREDENTIALS_VARIABLE} is not set: systemd sets it for a unit with LoadCredential"
            )
        return Path(folder) / file.removeprefix(_CREDENTIALS)
    return Path(source).parent / file


def read_secret(path: Path, key: str) -> str:
    """What a file holds, without the space and the line breaks around it.

    Raises `SettingsError`: one line that begins with `key` and names the file, and never what is in it.
    """
    where = f"{key}: the file {path}"
    try:
        content = content_of(path, SECRET_BYTES_MAX)
    except FileNotFoundError:
        raise SettingsError(f"{where} is not there") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{where} can't be read: {_reason(error)}") from None
    if content is None:
        raise SettingsError(f"{where} is no regular file")
    if len(content) > SECRET_BYTES_MAX:
        raise SettingsError(f"{where} has more than {SECRET_BYTES_MAX} bytes: it can't be the one that was meant")
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        raise SettingsError(f"{where} holds what is no text") from None
    if not text:
        raise SettingsError(f"{where} is empty")
    return text


def content_of(path: Path, bytes_max: int) -> bytes | None:
    """What a regular file holds, one byte more than so many at most; None of anything else. Raises `OSError`."""
    # A pipe that nobody writes to would keep the start waiting: it is opened all the same, and refused.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with os.fdopen(descriptor, "rb", closefd=False) as opened:
            return opened.read(bytes_max + 1)
    finally:
        os.close(descriptor)


def is_open_to_all(path: Path) -> bool:
    """Whether every user of the machine may read the file, as far as its own mode and that of its folder say."""
    try:
        file, folder = path.stat(), path.resolve().parent.stat()
    except OSError:
        return False
    return bool(file.st_mode & stat.S_IROTH and folder.st_mode & stat.S_IXOTH)


def check_one(named: tuple[str, object], other: tuple[str, object], key: str) -> None:
    """Raise `SettingsError` if a secret is said to be in two places, a variable and a file. `key` is their table's."""
    if named[1] is not None and other[1] is not None:
        raise SettingsError(f"{key}.{other[0]}: is there beside {named[0]}: only one of the two can be")


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
