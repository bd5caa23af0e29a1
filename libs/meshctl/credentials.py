"""What meshctl shows to ingress and edge: a key, or a token, from a variable or a file; never from an argument."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mesh.errors import SettingsError
from meshctl.variables import API_KEY_FILE_VARIABLE, API_KEY_VARIABLE

FILE_BYTES_MAX: Final = 64 * 1024

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")


def given_key(environment: Mapping[str, str]) -> str | None:
    """The key that the environment gives; None without one. Raises `SettingsError`, which shows nothing of it."""
    given, file = environment.get(API_KEY_VARIABLE), environment.get(API_KEY_FILE_VARIABLE)
    if given and file:
        raise SettingsError(f"{API_KEY_VARIABLE} and {API_KEY_FILE_VARIABLE} are both set: unset one")
    where = API_KEY_VARIABLE
    if file:
        where = f"{API_KEY_FILE_VARIABLE}={file!r}"
        given = _read(Path(file), where)
    if not given:
        return None
    key = given.strip()
    if _TOKEN.fullmatch(key) is None:
        raise SettingsError(f"{where}: holds what can't be an API key or a token")
    return key


def _read(path: Path, where: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise SettingsError(f"{where}: can't be read: {error.strerror}") from None
    if not content.strip() or len(content) > FILE_BYTES_MAX or not content.isascii():
        raise SettingsError(f"{where}: holds what can't be an API key or a token")
    return content.decode("ascii")
