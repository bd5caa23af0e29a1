"""A pair of files becomes a certificate, or one line that says which is wrong; a change is taken if it is good."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from cryptography.hazmat.primitives import serialization

from mesh.errors import SettingsError
from mesh.serving.connections import Connections
from mesh.serving.tls import Certificate, load
from mesh.serving.tls_protocol import TlsProtocol
from tests.support.certificates import Authority, Pair, make_certificate


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def encrypted(pair: Pair) -> None:
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    pair.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


def remarked(pair: Pair) -> None:
    """What OpenSSL passes over."""
    first, rest = pair.certificate.read_bytes().split(b"\n", 1)
    pair.certificate.write_bytes(first + b"\n\xe9\n" + rest)


@pytest.mark.parametrize(
    "before",
    [b"\xef\xbb\xbf", "issuer: Société\n".encode(), b"# -----BEGIN CERTIFICATE----- \xe9 -----END CERTIFICATE-----\n"],
)
def test_what_stands_before_a_certificate_is_none(authority: Authority, before: bytes) -> None:
    pair = authority.issue(days=30)
    pair.certificate.write_bytes(before + pair.certificate.read_bytes())
    assert load(*pair).not_after > datetime.now(UTC)


def test_a_pair_is_read_with_its_times(authority: Authority) -> None:
    pair = authority.issue(days=30)
    loaded = load(*pair)
    ends = datetime.now(UTC) + timedelta(days=30)
    assert abs(loaded.not_after - ends) < timedelta(minutes=5)
    assert loaded.context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_one_file_may_hold_both(tmp_path: Path) -> None:
    assert load(make_certificate(tmp_path, "localhost"), None).not_after > datetime.now(UTC)


def test_a_certificate_that_has_ended_is_read_all_the_same(authority: Authority) -> None:
    """A process starts with it: the line in the log and the check say what is wrong."""
    certificate = Certificate(*authority.issue(days=-1, age_days=30))
    (check,) = certificate.checks()
    assert (check.ok, "has ended" in (check.detail or "")) == (False, True)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda pair: pair.certificate.unlink(), r"MESH_TLS_CERT='.*': can't be read: No such file or directory"),
        (lambda pair: pair.key.unlink(), r"MESH_TLS_KEY='.*': can't be read: No such file or directory"),
        (lambda pair: pair.certificate.write_text(""), r"MESH_TLS_CERT='.*': holds no certificate in PEM form"),
        (lambda pair: pair.key.write_text(""), r"MESH_TLS_KEY='.*': holds no private key in PEM form"),
        (lambda pair: pair.certificate.write_bytes(pair.key.read_bytes()), r"MESH_TLS_CERT='.*': holds no certificate"),
        (lambda pair: pair.key.write_bytes(pair.certificate.read_bytes()), r"MESH_TLS_KEY='.*': holds no private key"),
        (lambda pair: pair.key.write_bytes(pair.key.read_bytes()[:60]), r"MESH_TLS_KEY='.*': no key: "),
        (lambda pair: pair.certificate.write_bytes(os.urandom(64)), r"MESH_TLS_CERT='.*': holds no certificate"),
        (lambda pair: pair.certificate.write_bytes(bytes(2**21)), r"MESH_TLS_CERT='.*': has more than 1048576 bytes"),
        (lambda pair: (pair.key.unlink(), pair.key.mkdir()), r"MESH_TLS_KEY='.*': can't be read: Is a directory"),
        (encrypted, r"MESH_TLS_KEY='.*': is encrypted: give one without a password"),
        (remarked, r"MESH_TLS_CERT='.*': its first certificate holds what is not ASCII"),
    ],
    ids=[
        *("no certificate", "no key", "an empty certificate", "an empty key", "a key for a certificate"),
        *("a certificate for a key", "half a key", "noise", "a huge one", "a folder", "a password"),
        "a remark within it",
    ],
)
def test_a_pair_that_is_none_is_one_line(authority: Authority, spoil: Callable[[Pair], object], told: str) -> None:
    pair = authority.issue()
    secret = pair.key.read_text().splitlines()[1]
    spoil(pair)
    with pytest.raises(SettingsError, match=told) as refused:
        load(*pair)
    assert "\n" not in str(refused.value)
    assert secret not in str(refused.value)


def test_a_key_of_another_certificate_is_named(authority: Authority) -> None:
    pair, other = authority.issue("one"), authority.issue("two")
    with pytest.raises(
        SettingsError, match=r"MESH_TLS_KEY='.*two.key': is not the key of the certificate in MESH_TLS_C"
    ):
        load(pair.certificate, other.key)


def test_a_file_without_a_key_says_where_one_may_be_named(authority: Authority) -> None:
    with pytest.raises(SettingsError, match=r"MESH_TLS_CERT='.*': holds no private key: name one: MESH_TLS_KEY"):
        load(authority.issue().certificate, None)


def test_a_change_is_taken_and_a_broken_one_is_not(authority: Authority) -> None:
    pair = authority.issue(days=30)
    certificate = Certificate(*pair)
    first = certificate.context
    certificate.look()
    assert certificate.context is first
    pair.key.write_text("nothing")
    for _ in range(2):
        with pytest.raises(SettingsError, match="holds no private key"):
            certificate.look()
    assert certificate.context is first
    (check,) = certificate.checks()
    assert (check.name, check.ok) == ("certificate", False)
    assert "certificate is the one of before" in (check.detail or "")
    # Anybody reads what is ready, and no path is in it.
    assert certificate.remark().ok
    assert str(pair.key) not in (check.detail or "")
    pair.becomes(authority.issue("next", days=90))
    certificate.look()
    assert certificate.context is not first
    assert certificate.not_after > datetime.now(UTC) + timedelta(days=80)
    assert [(check.ok, check.detail) for check in certificate.checks()] == [(True, None)]


@pytest.mark.parametrize(
    ("days", "age_days", "is_soon"),
    [(30, 60, False), (15, 75, False), (13, 77, True), (2, 4, False), (1, 5, True), (364, 1, False)],
)
def test_operators_are_told_before_it_ends(
    authority: Authority, days: float, age_days: float, *, is_soon: bool
) -> None:
    """In its last fourteen days, or the last fifth of a short one."""
    (check,) = Certificate(*authority.issue(days=days, age_days=age_days)).checks()
    assert check.ok != is_soon


def test_a_link_that_leads_elsewhere_is_a_change(authority: Authority, tmp_path: Path) -> None:
    """As Kubernetes replaces the files of a Secret."""
    one, two = authority.issue("one"), authority.issue("two", days=90)
    link = Pair(tmp_path / "tls.crt", tmp_path / "tls.key")
    for name, target in zip(link, one, strict=True):
        name.symlink_to(target)
    certificate = Certificate(*link)
    for name, target in zip(link, two, strict=True):
        name.unlink()
        name.symlink_to(target)
    certificate.look()
    assert certificate.not_after > datetime.now(UTC) + timedelta(days=80)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
async def test_an_answer_that_was_large_takes_no_memory_behind_itself(authority: Authority) -> None:
    """OpenSSL's buffer keeps the size that it once had, for as long as the connection is open."""
    answer, count = bytes(4 * 2**20), 20
    context = load(*authority.issue()).context

    class Answering(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            cast("asyncio.Transport", transport).write(answer)

    def take(address: tuple[str, int]) -> ssl.SSLSocket:
        trusting = authority.client_context()
        trusting.check_hostname = False
        client = trusting.wrap_socket(socket.create_connection(address))
        left = len(answer)
        while left:
            left -= len(client.recv(left))
        return client

    connections = Connections(1024)
    server = await asyncio.get_running_loop().create_server(
        lambda: TlsProtocol(lambda **_: Answering(), connections, lambda: context), "127.0.0.1"
    )
    address = server.sockets[0].getsockname()
    clients = [await asyncio.to_thread(take, address)]
    before = resident_bytes()
    clients += [await asyncio.to_thread(take, address) for _ in range(count)]
    grown = resident_bytes() - before
    for client in clients:
        client.close()
    server.close()
    assert grown < count * len(answer) / 4


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
