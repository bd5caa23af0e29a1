"""Whom meshctl takes for the mesh, where that speaks TLS."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

import httpx

from mesh.configuration.addresses import is_ip_address, is_loopback
from meshctl.errors import MeshctlError

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"


def trust_for(url: str, certificate: Path | None) -> ssl.SSLContext | bool:
    """How the server at a URL is known; for httpx, which takes True where there is nothing to know.

    By the public authorities and those of this machine, or of `SSL_CERT_FILE` and `SSL_CERT_DIR`. At an address
    without a name, where no authority helps, by `certificate` alone, if that is known: it is that of a mesh of this
    machine. Raises `MeshctlError` if it can't be read.
    """
    target = httpx.URL(url)
    if target.scheme != "https":
        return True
    if certificate is None or not (is_ip_address(target.host) or is_loopback(target.host)):
        context = httpx.create_ssl_context(trust_env=False)
        context.load_default_certs()
        return context
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # It stands for itself. What it is signed by may have signed anything.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=_first(certificate.read_text(encoding="utf-8", errors="replace")))
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MeshctlError(f"{certificate}: can't read the certificate of the mesh: {reason}") from None
    return context


def _first(text: str) -> str:
    """The first certificate of a file, which is the server's own."""
    begin, end = text.find(_BEGIN), text.find(_END)
    if begin < 0 or end < begin:
        raise ValueError("it holds none")
    return text[begin : end + len(_END)]
