"""The public keys of an issuer (RFC 7517): from a file or a URL, kept, and read again when they may have changed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final, NamedTuple

import jwt
import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from contracts.records.status import HealthCheck
from mesh.access.pace import Pace
from mesh.access.shared_read import SharedRead
from mesh.errors import SettingsError

log = structlog.get_logger("mesh.access.jwks")

DOCUMENT_BYTES_MAX: Final = 1024 * 1024
KEYS_MAX: Final = 100
KID_CHARACTERS_MAX: Final = 256
RSA_BITS_MIN: Final = 2048
"""RFC 7518, 3.3."""
FETCH_SECONDS_MAX: Final = 5.0
AGAIN_SECONDS: Final = 300.0
"""How often keys are fetched again."""
FILE_AGAIN_SECONDS: Final = 5.0
"""How often a file is read again."""
FAILED_AGAIN_SECONDS: Final = 10.0
"""How soon after a fetch that failed."""
HELD_SECONDS_MAX: Final = 3600.0
"""How long keys hold that can't be read again: as long as many tokens live."""
UNKNOWN_PER_SECOND: Final = 0.2
UNKNOWN_BURST: Final = 10
"""Tokens that name an unknown key lead to so many reads: anybody can make up names."""
_KIND_BY_ALGORITHM: Final = {"RS": "RSA", "PS": "RSA", "Ed": "OKP"}
_CURVE_BY_ALGORITHM: Final = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}


class PublicKey(NamedTuple):
    """A key, and what it may be used with. `key` is cryptography's."""

    key: Any
    kind: str
    curve: str | None
    algorithm: str | None

    def fits(self, algorithm: str) -> bool:
        """Whether a signature of this algorithm can be one of this key's."""
        if self.algorithm is not None and self.algorithm != algorithm:
            return False
        curve = _CURVE_BY_ALGORITHM.get(algorithm)
        if curve is not None:
            return self.kind == "EC" and self.curve == curve
        return self.kind == _KIND_BY_ALGORITHM[algorithm[:2]]


class KeysUnavailable(Exception):
    """The keys can't be read, and those that were are too old, or lack the one that is asked for."""


class KeySet:
    """The keys of one issuer. `generation` changes with them."""

    def __init__(self, source: str, folder: Path) -> None:
        """`source`: a URL or a file, by `folder`."""
        self._source = source
        self._file = None if "://" in source else folder / source
        self._shown = source if self._file is not None else source.partition("?")[0]
        """Without a query, which may hold what is nobody's."""
        self._keys: dict[str | None, list[PublicKey]] = {}
        self._content = b""
        self._read_at: float | None = None
        self._reading = SharedRead(self._read)
        self._unknown = Pace(UNKNOWN_PER_SECOND, UNKNOWN_BURST)
        self.generation = 0
        self.failure: str | None = "not read yet"
        """Why the last read failed; None if it did not."""

    def check(self) -> None:
        """Raise `SettingsError` if the file is not there, or no set of keys. A URL may be away for now."""
        if self._file is not None:
            try:
                keys_of(_content_of(self._file))
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                raise SettingsError(f"auth.jwt.jwks: {self._file}: {reason}") from None

    def check_readiness(self) -> HealthCheck:
        """Whether there are keys by which a token can be checked."""
        hold = self._hold(asyncio.get_running_loop().time())
        return HealthCheck(name="jwks", ok=hold, detail=None if hold else f"{self._shown}: {self.failure}")

    async def keep(self) -> None:
        """Read the keys again and again, until cancelled."""
        while True:
            read = await self.read()
            every = AGAIN_SECONDS if self._file is None else FILE_AGAIN_SECONDS
            await asyncio.sleep(every if read else min(every, FAILED_AGAIN_SECONDS))

    def has(self, kid: str | None) -> bool:
        """Whether a key of this name is known."""
        return kid in self._keys

    async def key(self, kid: str | None, algorithm: str) -> PublicKey | None:
        """The key of this name, if it fits; a token without a name is one of the only key that fits.

        Reads the keys again if there is none of the name. Raises `KeysUnavailable`.
        """
        at = asyncio.get_running_loop().time()
        is_unknown = kid is not None and kid not in self._keys
        if (is_unknown or not self._hold(at)) and await self.read(self._unknown) is False and is_unknown:
            raise KeysUnavailable  # It may be one of the issuer's newest.
        if not self._hold(at):
            raise KeysUnavailable
        every = [each for keys in self._keys.values() for each in keys]
        candidates = every if kid is None else self._keys.get(kid, [])
        fitting = [each for each in candidates if each.fits(algorithm)]
        return fitting[0] if len(fitting) == 1 else None

    def _hold(self, at: float) -> bool:
        """Whether there are keys, read not too long ago."""
        return self._read_at is not None and at - self._read_at <= HELD_SECONDS_MAX

    async def read(self, pace: Pace | None = None) -> bool | None:
        """Read the keys, by a read that begins after this is called; whether it went well.

        Those who ask while one is under way share the next one. None: `pace` has no more of them.
        """

        async def may_begin() -> bool:
            return pace is None or pace.takes(asyncio.get_running_loop().time())

        return self.failure is None if await self._reading.again(may_begin) else None

    async def _read(self) -> None:
        began_at = asyncio.get_running_loop().time()
        try:
            if self._file is not None:
                content = await asyncio.to_thread(_content_of, self._file)
            else:
                content = await self._fetched()
            if content != self._content:
                self._keys = keys_of(content)
                self._content = content
                self.generation += 1
                log.info("jwks.read", keys=sum(map(len, self._keys.values())))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if reason != self.failure:
                log.error("jwks.unreadable", source=self._shown, error=reason)
            self.failure = reason
            return
        self.failure = None
        self._read_at = began_at

    async def _fetched(self) -> bytes:
        """What the URL has. Raises `OSError` or `ValueError`, whatever is wrong."""
        import httpx  # noqa: PLC0415 - no other mode of a service needs it

        content = bytearray()
        try:
            async with (
                asyncio.timeout(FETCH_SECONDS_MAX),
                httpx.AsyncClient(follow_redirects=False) as client,
                client.stream("GET", self._source, headers={"Accept": "application/json"}) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    raise ValueError(f"answered {response.status_code}")
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > DOCUMENT_BYTES_MAX:
                        raise ValueError(f"more than {DOCUMENT_BYTES_MAX} bytes")
        except TimeoutError:
            raise OSError(f"no answer within {FETCH_SECONDS_MAX:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise OSError(str(error) or type(error).__name__) from None
        return bytes(content)


def keys_of(content: bytes) -> dict[str | None, list[PublicKey]]:
    """The keys of a JWKS by which signatures can be checked, by name. Raises `ValueError` for what is no JWKS.

    Keys of other uses, of other kinds, and such that are too short, are passed over.
    """
    try:
        document = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("is not JSON") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("is no JWKS: it has no list of keys")
    if len(listed) > KEYS_MAX:
        raise ValueError(f"has more than {KEYS_MAX} keys")
    keys: dict[str | None, list[PublicKey]] = {}
    for each in listed:
        kid = each.get("kid") if isinstance(each, dict) else None
        read = _public_key(each) if kid is None or (isinstance(kid, str) and len(kid) <= KID_CHARACTERS_MAX) else None
        if read is not None:
            keys.setdefault(kid, []).append(read)
    return keys


def _public_key(told: Any) -> PublicKey | None:
    if not isinstance(told, dict) or told.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    operations = told.get("key_ops")
    if told.get("use", "sig") != "sig" or (isinstance(operations, list) and "verify" not in operations):
        return None
    # Of a private key that somebody has published its public half is taken.
    public = {name: value for name, value in told.items() if name not in ("d", "p", "q", "dp", "dq", "qi", "oth")}
    try:
        key = jwt.PyJWK(public).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAPublicKey) and key.key_size < RSA_BITS_MIN:
        log.warning("jwks.key_too_short", bits=key.key_size)
        return None
    algorithm = told.get("alg")
    return PublicKey(key, str(told["kty"]), told.get("crv"), algorithm if isinstance(algorithm, str) else None)


def _content_of(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(DOCUMENT_BYTES_MAX + 1)
    if len(content) > DOCUMENT_BYTES_MAX:
        raise ValueError(f"more than {DOCUMENT_BYTES_MAX} bytes")
    return content
