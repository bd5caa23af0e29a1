"""A NATS in operator mode of a test's own: an operator, accounts and users, whose JWTs are made here as `nsc` does."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]  # it has no types

from contracts.permission_lists import Permissions

_NO_LIMITS = {"subs": -1, "data": -1, "payload": -1}
_ACCOUNT_LIMITS = {
    **_NO_LIMITS,
    **dict.fromkeys(("imports", "exports", "conn", "leaf"), -1),
    "wildcards": True,
    **dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1),
}


class Key:
    """An nkey: its seed, and its public name."""

    def __init__(self, prefix: int) -> None:
        self.seed = nkeys.encode_seed(os.urandom(32), prefix).decode()
        self._pair = nkeys.from_seed(bytearray(self.seed.encode()))
        self.public: str = self._pair.public_key.decode()

    def signed(self, subject: str, name: str, claims: dict[str, Any], expires_at: float | None = None) -> str:
        """A JWT (NATS ADR-14)."""
        body: dict[str, Any] = {"iat": int(time.time()), "iss": self.public, "name": name, "sub": subject}
        if expires_at is not None:
            body["exp"] = int(expires_at)
        body["nats"] = {**claims, "version": 2}
        body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
        signing = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(body)}"
        return f"{signing}.{_encoded(self._pair.sign(signing.encode()))}"


def user_key() -> Key:
    """An nkey of a user."""
    return Key(nkeys.PREFIX_BYTE_USER)


def account_key() -> Key:
    """An nkey of an account."""
    return Key(nkeys.PREFIX_BYTE_ACCOUNT)


class OperatorMode:
    """An operator with the account `mesh`, and that of the system."""

    def __init__(self) -> None:
        self.operator = Key(nkeys.PREFIX_BYTE_OPERATOR)
        self.account, self.system = account_key(), account_key()

    def configuration(self) -> str:
        """What a server's configuration says of them."""
        operator = self.operator.signed(self.operator.public, "operator", {"type": "operator"})
        accounts = "\n".join(
            f"  {key.public}: {self._account(key, name)}"
            for key, name in ((self.account, "mesh"), (self.system, "SYS"))
        )
        return (
            f"operator: {operator}\nresolver: MEMORY\nsystem_account: {self.system.public}\n"
            f"resolver_preload: {{\n{accounts}\n}}\n"
        )

    def creds(self, name: str, allowed: Permissions | None = None, expires_at: float | None = None) -> str:
        """The creds file of a new user, who may do everything if nothing else is said."""
        user = user_key()
        claims: dict[str, Any] = {"type": "user", **_NO_LIMITS, "pub": {}, "sub": {}}
        if allowed is not None:
            claims |= {"pub": {"allow": allowed.publish}, "sub": {"allow": allowed.subscribe}}
            if allowed.allow_responses is not None:
                ttl = allowed.allow_responses.seconds * 1_000_000_000
                claims["resp"] = {"max": allowed.allow_responses.max, "ttl": ttl}
        return creds_text(self.account.signed(user.public, name, claims, expires_at), user.seed)

    def _account(self, key: Key, name: str) -> str:
        limits = _ACCOUNT_LIMITS if name != "SYS" else {**_ACCOUNT_LIMITS, "mem_storage": 0, "disk_storage": 0}
        claims = {"type": "account", "limits": limits, "default_permissions": {"pub": {}, "sub": {}}}
        return self.operator.signed(key.public, name, claims)


def creds_text(jwt: str, seed: str) -> str:
    """A creds file, as `nsc` writes it."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n"
        "NKEY Seed printed below can be used to sign and prove identity.\n"
        "NKEYs are sensitive and should be treated as secrets.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n"
        "*************************************************************\n"
    )


def private(path: Path, content: str) -> Path:
    """A file that its owner alone reads; one that is there is replaced at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.touch(mode=0o600)
    new.write_text(content)
    new.replace(path)
    return path


def _part(value: dict[str, Any]) -> str:
    return _encoded(json.dumps(value, separators=(",", ":")).encode())


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
