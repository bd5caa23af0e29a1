"""An issuer of tokens of a test's own: its keys, its JWKS in a file or behind a URL, and tokens of any kind."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from mesh.clock import now

ISSUER = "https://login.example.com/"
AUDIENCE = "taskmesh"
UNLIMITED = "requests_per_second = 0\nfailures_per_minute = 0\n"
"""Lines of `[auth]`: all callers of a test come from one address, and ask as fast as they can."""


class SigningKey:
    """A private key, its name, and the algorithm that it signs with."""

    def __init__(self, kid: str | None, algorithm: str = "ES256", bits: int = 2048) -> None:
        self.kid = kid
        self.algorithm = algorithm
        self.private: Any
        if algorithm.startswith("ES"):
            self.private = ec.generate_private_key(ec.SECP256R1())
        elif algorithm == "EdDSA":
            self.private = ed25519.Ed25519PrivateKey.generate()
        else:
            self.private = rsa.generate_private_key(65537, bits)

    def public(self, **more: Any) -> dict[str, Any]:
        """Its entry in a JWKS."""
        makers: dict[str, Any] = {"ES": ECAlgorithm, "Ed": OKPAlgorithm, "RS": RSAAlgorithm, "PS": RSAAlgorithm}
        entry = json.loads(makers[self.algorithm[:2]].to_jwk(self.private.public_key()))
        return {**entry, "use": "sig", **({"kid": self.kid} if self.kid is not None else {}), **more}

    def token(self, claims: dict[str, Any], **head: Any) -> str:
        """A token with these claims; `head` is laid over what its head says."""
        named = {"kid": self.kid} if self.kid is not None else {}
        return jwt.encode(claims, self.private, self.algorithm, headers={**named, **head})


def claims(**changed: Any) -> dict[str, Any]:
    """What a good token says; a claim that is None is left out."""
    at = int(now().timestamp())
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "alice",
        "iat": at,
        "exp": at + 3600,
        "tenant": "acme",
        "scope": "submit read answer operate",
    }
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


def jwks(*keys: SigningKey) -> bytes:
    """The document."""
    return json.dumps({"keys": [key.public() for key in keys]}).encode()


def write_jwks(path: Path, *keys: SigningKey) -> None:
    """Put the document in place of what a file has, at once."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(jwks(*keys))
    new.replace(path)


def unsigned(claimed: dict[str, Any], signature: bytes = b"", **head: Any) -> str:
    """A token that nobody has signed, whatever its head says."""
    parts = (json.dumps({"alg": "none", "typ": "JWT", **head}).encode(), json.dumps(claimed).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def jwt_table(where: str, **more: str) -> str:
    """The tables of mesh.toml; `more` are lines of `[auth.jwt]`, as TOML."""
    lines = [f'issuer = "{ISSUER}"', f'audience = "{AUDIENCE}"', f'jwks = "{where}"']
    lines += [f"{name} = {value}" for name, value in more.items()]
    return "\n".join([f'[auth]\nmode = "jwt"\n{UNLIMITED}[auth.jwt]', *lines, ""])
