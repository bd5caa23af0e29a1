"""Certificates of a test's own: self-signed, so that each is its own authority, or signed by one."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.operator_mode import private


def make_certificate(folder: Path, name: str) -> Path:
    """A file with a certificate for a DNS name, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    at = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - timedelta(days=1))
        .not_valid_after(at + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{name}.pem"
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


def server_context(file: Path) -> ssl.SSLContext:
    """What a server needs to show a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


class Authority:
    """An authority of a test's own, and what it signs. Its certificate is `file`."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            self._begun(self._name, self._key, 365)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
        )
        self.file = private(folder / f"{name}.pem", self._signed(certificate))

    def issue(self, name: str = "server", days: float = 30, age_days: float = 1, passphrase: str | None = None) -> Pair:
        """A pair for this machine that ends in so many days, in files that are replaced at once if they are there."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        addresses = [x509.IPAddress(ipaddress.ip_address(each)) for each in ("127.0.0.1", "::1")]
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), *addresses])
        certificate = self._begun(subject, key, days, age_days).add_extension(names, critical=False)
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase is not None:
            encryption = serialization.BestAvailableEncryption(passphrase.encode())
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        return Pair(
            private(self._folder / f"{name}.crt", self._signed(certificate)),
            private(self._folder / f"{name}.key", pem.decode()),
        )

    def broker_tls(self, shown: Pair) -> str:
        """What a nats-server has in `tls`: the pair that it shows, and that clients show one of this authority."""
        return f'cert_file: "{shown.certificate}", key_file: "{shown.key}", ca_file: "{self.file}", verify: true'

    def client_context(self) -> ssl.SSLContext:
        """How a client knows what this authority has signed."""
        return ssl.create_default_context(cafile=self.file)

    def _begun(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: float, age_days: float = 1
    ) -> x509.CertificateBuilder:
        at = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(at - timedelta(days=age_days))
            .not_valid_after(at + timedelta(days=days))
        )

    def _signed(self, begun: x509.CertificateBuilder) -> str:
        return begun.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


class Pair(NamedTuple):
    """The files of a certificate and its key."""

    certificate: Path
    key: Path

    def variables(self) -> dict[str, str]:
        """How a service is told of them."""
        return {"MESH_TLS_CERT": str(self.certificate), "MESH_TLS_KEY": str(self.key)}

    def becomes(self, other: Pair) -> None:
        """Take the other's place, as a program that renews certificates does: one file after the other."""
        other.certificate.replace(self.certificate)
        other.key.replace(self.key)
