"""What the files of a broker's login hold: JWT and seed of a user, a password, a token. Wrong ones end in one line.

The formats are NATS's own: a creds file has a JWT and a seed between lines of dashes (as `nsc` writes it), an nkey is a
seed that begins with `SU`. No error shows anything of what a file holds.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import nats.errors

from mesh.configuration.secret_files import content_of
from mesh.errors import SettingsError

FILE_BYTES_MAX: Final = 64 * 1024
"""A creds file has some 1 or 2 KiB, a chain of certificates some more: whatever is larger is no secret."""
OTHERS_MODE: Final = 0o007
"""What people who are neither the file's owner nor of its group may do with it."""

_BLOCK = re.compile(r"-{3,}[^\n]*BEGIN ([A-Z ]+?)-{3,}\r?\n\s*([\w.=\-]+)\s*\r?\n-{3,}")
_SEED = re.compile(r"^\s*(S[A-Z2-7]{57})\s*$", re.MULTILINE)
_PUBLIC = re.compile(r"^\s*[UAOXNC][A-Z2-7]{55}\s*$", re.MULTILINE)
_KINDS: Final = {
    "U": "a user",
    "A": "an account",
    "O": "an operator",
    "N": "a server",
    "C": "a cluster",
    "X": "a curve",
}
_USER: Final = "user"

Stamp = tuple[int, int, int, int] | None


class LoginUnusable(SettingsError, nats.errors.Error):
    """A file of the login can't be used. nats-py tries again after its own errors alone, so it is one of them, too."""


class NamedFile(NamedTuple):
    """A file, and the variable that names it."""

    variable: str
    path: Path

    def __str__(self) -> str:
        return f"{self.variable}={self.path}"

    def stamp(self) -> Stamp:
        """What changes when the file is written, or another one takes its place; None where there is none."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    def is_open_to_others(self) -> bool:
        """Whether users can read or write it who are neither its owner nor of its group."""
        try:
            return bool(self.path.stat().st_mode & OTHERS_MODE)
        except OSError:
            return False

    def read(self) -> str:
        """What it holds. Raises `LoginUnusable`."""
        try:
            content = content_of(self.path, FILE_BYTES_MAX)
        except OSError as error:
            raise self.unusable(error.strerror or str(error)) from None
        if content is None:
            raise self.unusable("is no regular file, which could be read at each connect")
        if len(content) > FILE_BYTES_MAX:
            raise self.unusable(f"has more than {FILE_BYTES_MAX:,} bytes: it is another file")
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise self.unusable("is no text") from None

    def unusable(self, reason: str) -> LoginUnusable:
        """The error that says so."""
        return LoginUnusable(f"{self}: {reason}")


class UserJwt(NamedTuple):
    """A user's JWT, and what is to be known of it."""

    text: str
    subject: str
    expires_at: datetime | None


class Creds(NamedTuple):
    """What a creds file holds."""

    jwt: UserJwt
    seed: str


def read_word(file: NamedFile) -> str:
    """A password or a token: the file's content without the end of its line. Raises `LoginUnusable`."""
    word = file.read().rstrip("\r\n")
    if not word:
        raise file.unusable("is empty")
    if "\n" in word or "\r" in word:
        raise file.unusable("has more than one line")
    return word


def read_seed(file: NamedFile) -> str:
    """The seed of a user. Raises `LoginUnusable`."""
    return _seed_in(file.read(), file)


def read_creds(file: NamedFile) -> Creds:
    """JWT and seed of a user. Raises `LoginUnusable`; an expired one is the broker's to refuse, by its own clock."""
    content = file.read()
    blocks = dict(_BLOCK.findall(content))
    text = blocks.get("NATS USER JWT")
    if text is None:
        if blocks:
            raise file.unusable(f"holds no JWT of a user, only: {', '.join(sorted(blocks))}")
        raise file.unusable("is no creds file: a JWT and a seed, each between lines of dashes, as `nsc` writes it")
    jwt = _jwt(text, file)
    seed = blocks.get("USER NKEY SEED")
    if seed is None:
        raise file.unusable("holds a JWT and no seed of a user")
    seed = _seed_in(seed, file)
    if public_key_of(seed, file) != jwt.subject:
        raise file.unusable("its seed is another user's than its JWT")
    return Creds(jwt, seed)


def public_key_of(seed: str, file: NamedFile) -> str:
    """The public key (`U…`) of a seed. Raises `LoginUnusable`."""
    pair = _pair(seed, file)
    public: str = pair.public_key.decode()
    pair.wipe()
    return public


def sign(seed: str, nonce: bytes, file: NamedFile) -> bytes:
    """The signature of a server's nonce, in base64 without padding. Raises `LoginUnusable`."""
    pair = _pair(seed, file)
    signed: bytes = pair.sign(nonce)
    pair.wipe()
    return base64.urlsafe_b64encode(signed).rstrip(b"=")


def _pair(seed: str, file: NamedFile) -> Any:
    # Takes a process 1.4 MiB: only where it is needed.
    import nkeys  # type: ignore[import-untyped]  # noqa: PLC0415 - see above; it has no types

    # The library does not look at it (nkeys 0.2): CRC-16 (XMODEM), the lower byte first.
    raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
    if binascii.crc_hqx(raw[:-2], 0) != int.from_bytes(raw[-2:], "little"):
        raise file.unusable("holds a seed that is damaged: its checksum is another")
    try:
        return nkeys.from_seed(bytearray(seed.encode()))
    except nkeys.NkeysError as error:
        raise file.unusable(f"holds a seed that can't be used: {str(error).removeprefix('nkeys: ')}") from None


def _seed_in(content: str, file: NamedFile) -> str:
    found = _SEED.search(content)
    if found is None:
        if _PUBLIC.search(content):
            raise file.unusable("holds a public key: the seed of a user begins with SU")
        raise file.unusable("holds no seed of a user: one is SU and 56 more letters and digits")
    seed = found[1]
    if seed[1] != "U":
        kind = _KINDS.get(seed[1], "something else")
        raise file.unusable(f"holds the seed of {kind} (S{seed[1]}…): a user's begins with SU")
    return seed


def _jwt(text: str, file: NamedFile) -> UserJwt:
    try:
        _, claims, _ = text.split(".")
        told = msgspec.json.decode(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)), type=dict[str, Any])
        subject, kind = str(told["sub"]), dict(told["nats"]).get("type")
        expires = told.get("exp")
        expires_at = datetime.fromtimestamp(int(expires), UTC) if expires else None
    except (ValueError, TypeError, KeyError, OverflowError, OSError, binascii.Error, msgspec.MsgspecError):
        raise file.unusable("holds a JWT that can't be read") from None
    if kind != _USER:
        raise file.unusable(f"holds the JWT of {_KINDS.get(subject[:1], 'something else')}, and not of a user")
    return UserJwt(text, subject, expires_at)
