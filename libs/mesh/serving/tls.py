"""The certificate that a process shows to HTTP clients: read from files, and read again when they change.

A connection keeps what its handshake began with; who
connects after a change gets the new certificate. A pair that can't be used changes nothing.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import re
import ssl
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

from contracts.records.status import HealthCheck
from mesh.clock import now
from mesh.configuration.addresses import is_loopback
from mesh.configuration.settings import Address
from mesh.errors import SettingsError
from mesh.serving.tls_protocol import Tls
from mesh.telemetry import metrics

log = structlog.get_logger("mesh.serving.tls")

LOOK_SECONDS: Final = 2.0
"""How often it is looked whether the files have changed."""
FILE_BYTES_MAX: Final = 1024 * 1024
SOON: Final = timedelta(days=14)
SOON_SHARE: Final = 5
"""A certificate ends soon in its last fourteen days, or in the last fifth of its time, whichever is shorter: some are
valid for six days."""
ALPN: Final = ("http/1.1",)
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Those of TLS 1.2 with forward secrecy and authenticated encryption (RFC 9325, 4.2). TLS 1.3 has no others."""
_TELLING: Final = {
    "KEY_VALUES_MISMATCH": "is not the key of the certificate in MESH_TLS_CERT",
    "EE_KEY_TOO_SMALL": "the certificate's key is too small",
    "CA_MD_TOO_WEAK": "the certificate is signed in a way that is too weak",
}

_CERTIFICATE: Final = re.compile(r"^-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.MULTILINE | re.DOTALL)
"""What OpenSSL takes for one begins a line: elsewhere it is a comment."""
_NO_CHECK_TIME: Final = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the standard library has no name for."""
_FLIGHTS_MAX: Final = 4
"""A handshake takes two flights of each side at most."""

_Look = tuple[tuple[int, int, int], ...]
"""Of each file: what tells whether it is still the same."""


class Loaded(NamedTuple):
    """A certificate, ready to be shown."""

    context: ssl.SSLContext
    not_before: datetime
    not_after: datetime
    """Of the server's own; those that lead to its authority end later, as a rule."""


def load(certificate: Path, key: Path | None) -> Loaded:
    """Read a chain of certificates, the server's first, and its key, which may lie in the same file.

    Raises `SettingsError`: one line that says which of the two is wrong.
    """
    own = _first_certificate(certificate)
    key_name, key_path = ("MESH_TLS_KEY", key) if key is not None else ("MESH_TLS_CERT", certificate)
    if b"PRIVATE KEY-----" not in _content(key_name, key_path):
        told = "holds no private key in PEM form" if key is not None else "holds no private key: name one: MESH_TLS_KEY"
        raise SettingsError(f"{key_name}={str(key_path)!r}: {told}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(list(ALPN))
    context.options |= ssl.OP_NO_RENEGOTIATION
    asked: list[bool] = []

    def password() -> str:
        # Else OpenSSL asks on the terminal.
        asked.append(True)
        return ""

    try:
        context.load_cert_chain(certificate, key, password)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        told = "is encrypted: give one without a password" if asked else _TELLING.get(str(reason), f"no key: {reason}")
        raise SettingsError(f"{key_name}={str(key_path)!r}: {told}") from None
    try:
        return Loaded(context, *_tried(context, own))
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", None) or error.reason
        raise SettingsError(f"MESH_TLS_CERT={str(certificate)!r}: no client would take it: {reason}") from None


class Certificate:
    """The certificate of a process, as it is now."""

    def __init__(self, certificate: Path, key: Path | None) -> None:
        """Raises `SettingsError`."""
        self._certificate = certificate
        self._key = key
        self._files = [certificate] if key is None else [certificate, key]
        self._seen = _look(self._files)
        self._loaded = load(certificate, key)
        self._refused: str | None = None
        _warn_of_readers(key or certificate)

    @property
    def context(self) -> ssl.SSLContext:
        """What the next handshake takes."""
        return self._loaded.context

    @property
    def not_after(self) -> datetime:
        """Until when it is valid."""
        return self._loaded.not_after

    def ends_at(self) -> float:
        """The same, in Unix time."""
        return self.not_after.timestamp()

    def look(self) -> None:
        """Take what the files hold, if they have changed. Raises `SettingsError` where that can't be used."""
        self._take(_look(self._files))

    def _take(self, seen: _Look) -> None:
        if seen == self._seen:
            if self._refused is not None:
                raise SettingsError(self._refused)
            return
        self._seen = seen
        try:
            self._loaded = load(self._certificate, self._key)
        except SettingsError as error:
            self._refused = str(error)
            log.error("tls.kept", error=self._refused, not_after=self.not_after.isoformat())
            raise
        self._refused = None
        log.info("tls.taken", not_after=self.not_after.isoformat())

    def at(self, address: Address, hsts_days: float) -> Tls:
        """How a server at an address shows it. Browsers take HSTS for a host with all its ports: not for loopback's."""
        return Tls(lambda: self.context, 0 if is_loopback(address.host) else hsts_days)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Look at the files during the body."""
        metrics.watch_certificate(self.ends_at)
        # No task group: what ends a start with one line would leave it as a group of errors.
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self) -> None:
        before = self._seen
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            seen = await asyncio.to_thread(_look, self._files)
            # Whoever writes two files writes one after the other: what is still changing is looked at again.
            if seen == before:
                with suppress(SettingsError):  # It is logged, and shown to operators.
                    self._take(seen)
            before = seen

    def checks(self) -> list[HealthCheck]:
        """What operators should know of it: that it ends soon, or that another one could not be taken."""
        remark = self.remark()
        return [HealthCheck(name=remark.name, ok=remark.detail is None, detail=remark.detail)]

    def remark(self) -> HealthCheck:
        """The same among what is ready. It always is: there is no other, and some clients trust it after its end."""
        left = self.not_after - now()
        soon = min(SOON, (self.not_after - self._loaded.not_before) / SOON_SHARE)
        if left <= timedelta():
            detail = f"its certificate has ended, at {self.not_after.isoformat()}: clients refuse it"
        elif self._refused is not None:
            # Which file, and why, is the log's: anybody reads what is ready.
            detail = "its certificate is the one of before: what the files hold can't be used (tls.kept in its log)"
        elif left < soon:
            detail = f"its certificate ends at {self.not_after.isoformat()}"
        else:
            detail = None
        return HealthCheck(name="certificate", ok=True, detail=detail)


def _look(files: list[Path]) -> _Look:
    return tuple(_stat(path) for path in files)


def _stat(path: Path) -> tuple[int, int, int]:
    try:
        # Of the file that a link leads to: a Secret of Kubernetes is replaced by another link.
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_size)


def _content(name: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SettingsError(f"{name}={str(path)!r}: can't be read: {reason}") from None
    if len(content) > FILE_BYTES_MAX:
        raise SettingsError(f"{name}={str(path)!r}: has more than {FILE_BYTES_MAX} bytes: is it a certificate?")
    return content


def _first_certificate(path: Path) -> str:
    content = _content("MESH_TLS_CERT", path).removeprefix(codecs.BOM_UTF8).decode("ascii", errors="replace")
    found = _CERTIFICATE.search(content)
    if found is None:
        raise SettingsError(f"MESH_TLS_CERT={str(path)!r}: holds no certificate in PEM form")
    if not found[0].isascii():
        raise SettingsError(f"MESH_TLS_CERT={str(path)!r}: its first certificate holds what is not ASCII")
    return found[0]


def _tried(context: ssl.SSLContext, certificate: str) -> tuple[datetime, datetime]:
    """From when and until when a certificate is valid, as a client sees it who trusts it. Raises `ssl.SSLError`.

    A handshake with itself, in memory: the standard library takes no certificate apart but a peer's, and a library that
    does would be twelve megabytes of each process.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    trusting.load_verify_locations(cadata=certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = trusting.wrap_bio(to_client, to_server)
    for _ in range(_FLIGHTS_MAX):
        for side in (client, server):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    peer = client.getpeercert() or {}
    return _time(peer, "notBefore"), _time(peer, "notAfter")


def _time(peer: Mapping[str, Any], name: str) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(peer[name]), UTC)


def _warn_of_readers(key: Path) -> None:
    if key.stat().st_mode & stat.S_IROTH:
        log.warning("tls.key_readable", path=str(key), advice="chmod o-r: everybody on this machine can read it")
