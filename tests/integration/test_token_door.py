"""Tokens of an issuer: which are taken, as whom, and what becomes of the keys that they are checked with."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import MAXYEAR
from pathlib import Path
from typing import Any

import jwt as pyjwt
import pytest
from cryptography.hazmat.primitives import serialization

from mesh.access.callers import Identity
from mesh.access.jwks import DOCUMENT_BYTES_MAX, HELD_SECONDS_MAX, KEYS_MAX, UNKNOWN_BURST, KeySet, keys_of
from mesh.access.token_door import TokenDoor
from mesh.configuration.access_tables import JwtConfiguration
from mesh.errors import SettingsError
from mesh.serving.http import RequestRefused
from tests.support.issuer import AUDIENCE, ISSUER, SigningKey, claims, jwks, unsigned, write_jwks
from tests.support.web_server import WebServer, web_server

EC = SigningKey("ec-1")
RSA = SigningKey("rsa-1", "RS256")
OKP = SigningKey("okp-1", "EdDSA")
STRANGER = SigningKey("ec-1")


def door_of(folder: Path, where: str = "jwks.json", **changed: Any) -> TokenDoor:
    return TokenDoor(JwtConfiguration(issuer=ISSUER, audience=AUDIENCE, jwks=where, **changed), folder)


@pytest.fixture
def door(tmp_path: Path) -> TokenDoor:
    """A door that takes tokens of these keys."""
    write_jwks(tmp_path / "jwks.json", EC, RSA, OKP)
    return door_of(tmp_path)


async def who(door: TokenDoor, token: str) -> Identity:
    """Who a token stands for, whenever it ends."""
    identity = await door.identity(token)
    assert identity.until is not None
    return replace(identity, until=None)


async def refusal(door: TokenDoor, token: str) -> str:
    """Code and detail of the refusal, which shows nothing of the token."""
    with pytest.raises(RequestRefused) as refused:
        await door.identity(token)
    for part in token.split("."):
        assert len(part) < 4 or part not in str(refused.value)
    return f"{refused.value.code}: {refused.value}"


async def test_a_token_of_the_issuer_says_who_asks_for_which_tenant_and_with_which_scopes(door: TokenDoor) -> None:
    for key in (EC, RSA, OKP):
        assert await who(door, key.token(claims(scope="submit read profile"))) == Identity(
            "jwt:alice", "acme", frozenset({"submit", "read"})
        )
    assert (await door.identity(EC.token(claims(aud=["other", AUDIENCE])))).tenant == "acme"
    assert (await door.identity(EC.token(claims(scope=None)))).scopes == frozenset()


async def test_claims_and_names_of_scopes_are_as_configured(tmp_path: Path) -> None:
    write_jwks(tmp_path / "jwks.json", EC)
    door = door_of(
        tmp_path,
        tenant_claim="https://example.com/org",
        scopes_claim="roles",
        scopes={"writer": ["submit", "read"], "boss": ["operate"]},
    )
    token = EC.token(claims(**{"tenant": None, "https://example.com/org": "globex", "roles": ["writer", "read", 7]}))
    assert await who(door, token) == Identity("jwt:alice", "globex", frozenset({"submit", "read"}))


async def test_who_shows_a_token_is_let_in_until_it_ends(tmp_path: Path) -> None:
    write_jwks(tmp_path / "jwks.json", EC)
    door = door_of(tmp_path, leeway_seconds=10)
    for expires, until in ((4_000_000_000, 4_000_000_010), (2**52, MAXYEAR)):
        found = (await door.identity(EC.token(claims(exp=expires)))).until
        assert found is not None
        assert until in (found.timestamp(), found.year)


def confused() -> str:
    """A token whose signature was made with the public key as a shared secret."""
    pem = RSA.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    token = unsigned(claims(), alg="HS256", kid="rsa-1")
    signature = hmac.digest(pem, token.rpartition(".")[0].encode(), hashlib.sha256)
    return unsigned(claims(), signature, alg="HS256", kid="rsa-1")


def signed_list() -> str:
    return pyjwt.PyJWS().encode(b"[]", EC.private, "ES256", headers={"kid": "ec-1"})


def nested() -> str:
    deep = json.dumps("x").encode()
    head = b'{"alg":' + b"[" * 3_000 + deep + b"]" * 3_000 + b"}"
    return base64.urlsafe_b64encode(head).rstrip(b"=").decode() + ".e30.AAAA"


WRONG: dict[str, tuple[Callable[[], str], str]] = {
    "another audience": (lambda: EC.token(claims(aud="other")), "unauthorized: the token is for another audience"),
    "no audience": (lambda: EC.token(claims(aud=None)), "unauthorized: the token has no claim 'aud'"),
    "an audience that is a number": (lambda: EC.token(claims(aud=7)), "unauthorized: the token is for another"),
    "another issuer": (lambda: EC.token(claims(iss="https://evil.example/")), "unauthorized: the token is of another"),
    "no issuer": (lambda: EC.token(claims(iss=None)), "unauthorized: the token has no claim 'iss'"),
    "no subject": (lambda: EC.token(claims(sub=None)), "unauthorized: the token has no claim 'sub'"),
    "an empty subject": (lambda: EC.token(claims(sub="")), "unauthorized: the token's sub"),
    "a long subject": (lambda: EC.token(claims(sub="a" * 300)), "unauthorized: the token's sub"),
    "a subject with a line break": (lambda: EC.token(claims(sub="a\nb")), "unauthorized: the token's sub"),
    "no end": (lambda: EC.token(claims(exp=None)), "unauthorized: the token has no claim 'exp'"),
    "expired": (lambda: EC.token(claims(exp=1)), "unauthorized: the token has expired"),
    "an end that is a text": (lambda: EC.token(claims(exp="soon")), "unauthorized: the token's 'exp' is no time"),
    "an end that is true": (lambda: EC.token(claims(exp=True)), "unauthorized: the token's 'exp' is no time"),
    "an end beyond all times": (lambda: EC.token(claims(exp=10**300)), "unauthorized: the token's 'exp' is no time"),
    "from the future": (lambda: EC.token(claims(iat=4_000_000_000, exp=4_000_003_600)), "unauthorized: the token is n"),
    "not valid yet": (lambda: EC.token(claims(nbf=4_000_000_000, exp=4_000_003_600)), "unauthorized: the token is not"),
    "no tenant": (lambda: EC.token(claims(tenant=None)), "forbidden: the token's 'tenant' names no tenant"),
    "a tenant that is none": (lambda: EC.token(claims(tenant="../acme")), "forbidden: the token's 'tenant' names no"),
    "a tenant that is a list": (lambda: EC.token(claims(tenant=["acme"])), "forbidden: the token's 'tenant' names no"),
    "nobody's signature": (lambda: unsigned(claims()), "unauthorized: the token is not signed by an algorithm"),
    "nOnE": (lambda: unsigned(claims(), alg="nOnE"), "unauthorized: the token is not signed by an algorithm"),
    "none, with a key": (lambda: unsigned(claims(), kid="ec-1"), "unauthorized: the token is not signed by an"),
    "an algorithm without a signature": (lambda: unsigned(claims(), alg="ES256", kid="ec-1"), "unauthorized: these c"),
    "a signature of another key": (lambda: STRANGER.token(claims()), "unauthorized: these credentials are not known"),
    "a public key as a secret": (confused, "unauthorized: the token is not signed by an algorithm"),
    "another kind of key than the algorithm's": (lambda: EC.token(claims(), kid="rsa-1"), "unauthorized: these cred"),
    "an unknown key": (lambda: EC.token(claims(), kid="nobody"), "unauthorized: these credentials are not known"),
    "a key that is a path": (lambda: EC.token(claims(), kid="../../etc/passwd"), "unauthorized: these credentials"),
    "a key that is a URL": (lambda: EC.token(claims(), kid="http://127.0.0.1:1/"), "unauthorized: these credentials"),
    "a key that is a query": (lambda: EC.token(claims(), kid="' OR 1=1 --"), "unauthorized: these credentials"),
    "a key with a long name": (lambda: EC.token(claims(), kid="k" * 300), "unauthorized: these credentials"),
    "a key that is a number": (lambda: unsigned(claims(), alg="ES256", kid=7), "unauthorized: these credentials"),
    "what has to be understood": (lambda: EC.token(claims(), crit=["x"], x=1), "unauthorized: these credentials"),
    "its own key": (lambda: STRANGER.token(claims(), jwk=STRANGER.public()), "unauthorized: these credentials"),
    "where its keys are": (lambda: STRANGER.token(claims(), jku="http://127.0.0.1:1/"), "unauthorized: these cred"),
    "two parts": (lambda: EC.token(claims()).rpartition(".")[0], "unauthorized: these credentials"),
    "four parts": (lambda: EC.token(claims()) + ".e30", "unauthorized: these credentials"),
    "five parts, as of one that is encrypted": (lambda: "e30." * 4 + "e30", "unauthorized: these credentials"),
    "one part": (lambda: "token", "unauthorized: these credentials"),
    "dots": (lambda: "..", "unauthorized: these credentials"),
    "a head that is no JSON": (lambda: "AAAA.e30.AAAA", "unauthorized: these credentials"),
    "a head that is a list": (lambda: "W10.e30.AAAA", "unauthorized: these credentials"),
    "claims that are a list": (signed_list, "unauthorized: these credentials"),
    "a head nested deeply": (nested, "unauthorized: these credentials"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_token_that_is_wrong_is_refused_with_its_reason(name: str, door: TokenDoor) -> None:
    make, expected = WRONG[name]
    said = await refusal(door, make())
    assert said.startswith(expected), said


async def test_each_byte_of_a_token_counts(door: TokenDoor) -> None:
    token = EC.token(claims())
    await door.identity(token)
    for at in range(len(token)):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        try:
            identity = await door.identity(changed)
        except RequestRefused:
            continue
        # The last character of base64 has bits that stand for nothing.
        assert at == len(token) - 1
        assert identity.tenant == "acme"


async def test_a_leeway_is_for_a_clock_that_is_off(door: TokenDoor) -> None:
    at = claims()["iat"]
    await door.identity(EC.token(claims(exp=at - 20)))
    await door.identity(EC.token(claims(nbf=at + 20)))
    assert "expired" in await refusal(door, EC.token(claims(exp=at - 40)))
    assert "yet" in await refusal(door, EC.token(claims(iat=at + 40)))


async def test_a_token_that_was_good_is_refused_once_its_key_is_gone(door: TokenDoor, tmp_path: Path) -> None:
    token = EC.token(claims())
    await door.identity(token)
    write_jwks(tmp_path / "jwks.json", RSA)
    assert await door.keys.read()
    assert "not known" in await refusal(door, token)


async def test_a_key_that_is_new_is_found_by_the_first_token_that_names_it(door: TokenDoor, tmp_path: Path) -> None:
    await door.identity(EC.token(claims()))
    new = SigningKey("ec-2")
    write_jwks(tmp_path / "jwks.json", EC, new)
    assert (await door.identity(new.token(claims()))).name == "jwt:alice"


async def test_a_token_without_a_name_of_its_key_is_one_of_the_only_key_that_fits(tmp_path: Path) -> None:
    nameless = SigningKey(None)
    write_jwks(tmp_path / "jwks.json", nameless, RSA)
    door = door_of(tmp_path)
    await door.identity(nameless.token(claims()))
    write_jwks(tmp_path / "jwks.json", nameless, EC)
    assert await door.keys.read()
    assert "not known" in await refusal(door, nameless.token(claims()))


@pytest.mark.parametrize(
    ("entry", "counts"),
    [
        ({}, True),
        ({"use": "enc"}, False),
        ({"key_ops": ["encrypt"]}, False),
        ({"key_ops": ["verify"]}, True),
        ({"kty": "oct", "k": "AAAA"}, False),
        ({"kid": 7}, False),
        ({"kid": "k" * 300}, False),
        ({"crv": "P-999"}, False),
        ({"x": "!"}, False),
    ],
)
def test_keys_of_another_kind_or_use_are_passed_over(entry: dict[str, Any], counts: bool) -> None:
    document = json.dumps({"keys": [EC.public(**entry), RSA.public()]}).encode()
    assert sum(map(len, keys_of(document).values())) == 1 + counts


def test_a_short_key_and_half_of_a_private_one_are_what_they_are() -> None:
    short = SigningKey("short", "RS256", bits=1024)
    assert keys_of(jwks(short)) == {}
    private = {**EC.public(), "d": "AAAA"}
    [[key]] = keys_of(json.dumps({"keys": [private]}).encode()).values()
    assert not hasattr(key.key, "sign")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"keys":{}}', b"\xff", json.dumps({"keys": [{}] * (KEYS_MAX + 1)}).encode()]
)
def test_what_is_no_set_of_keys_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no|has more"):
        keys_of(content)
    (tmp_path / "jwks.json").write_bytes(content)
    with pytest.raises(SettingsError, match=r"auth.jwt.jwks: .*jwks.json: "):
        KeySet("jwks.json", tmp_path).check()


def test_a_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        KeySet("jwks.json", tmp_path).check()


@pytest.fixture
async def fetched(tmp_path: Path) -> Any:
    """A web server with keys, and a door that fetches them."""
    async with web_server() as web:
        web.answer("/jwks", jwks(EC))
        yield web, door_of(tmp_path, f"http://127.0.0.1:{web.port}/jwks")


Fetched = tuple[WebServer, TokenDoor]


async def test_keys_are_fetched_once_for_many_tokens_at_a_time(fetched: Fetched) -> None:
    web, door = fetched
    tokens = [EC.token(claims(sub=f"user-{number}")) for number in range(50)]
    names = [identity.name for identity in await asyncio.gather(*map(door.identity, tokens))]
    assert names == [f"jwt:user-{number}" for number in range(50)]
    assert len(web.requests) <= 2, "one read, and one for those who came while it was under way"


async def test_tokens_that_make_up_names_of_keys_cost_the_issuer_few_requests(fetched: Fetched) -> None:
    web, door = fetched
    await door.identity(EC.token(claims()))
    for number in range(200):
        await refusal(door, STRANGER.token(claims(), kid=f"made-up-{number}"))
    assert len(web.requests) <= UNKNOWN_BURST + 2
    # Those of another issuer cost none.
    before = len(web.requests)
    await refusal(door, STRANGER.token(claims(iss="https://evil.example/"), kid="made-up"))
    assert len(web.requests) == before
    await door.identity(EC.token(claims(sub="bob")))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": "503 Service Unavailable"}, "answered 503"),
        ({"status": "302 Found", "location": "http://127.0.0.1:1/"}, "answered 302"),
        ({"body": b"<html>"}, "is not JSON"),
        ({"body": b" " * (DOCUMENT_BYTES_MAX + 1)}, "more than"),
    ],
)
async def test_while_keys_cannot_be_had_the_old_ones_hold_and_new_ones_are_no_strangers(
    fetched: Fetched, answer: dict[str, Any], reason: str
) -> None:
    web, door = fetched
    await door.identity(EC.token(claims()))
    web.answer("/jwks", **answer)
    new = SigningKey("ec-2")
    assert (await refusal(door, new.token(claims()))).startswith("credentials-unavailable")
    assert reason in str(door.keys.failure)
    assert door.keys.check_readiness().ok
    await door.identity(EC.token(claims(sub="bob")))
    web.answer("/jwks", jwks(EC, new))
    await door.identity(new.token(claims()))


async def test_keys_that_could_not_be_read_for_long_hold_no_more(fetched: Fetched) -> None:
    web, door = fetched
    await door.identity(EC.token(claims()))
    web.answer("/jwks", status="503 Service Unavailable")
    assert door.keys._read_at is not None
    door.keys._read_at -= HELD_SECONDS_MAX + 1
    assert (await refusal(door, EC.token(claims(sub="bob")))).startswith("credentials-unavailable")
    assert not door.keys.check_readiness().ok


async def test_an_issuer_that_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    door = door_of(tmp_path, "http://127.0.0.1:1/jwks?code=canary")
    assert (await refusal(door, EC.token(claims()))).startswith("credentials-unavailable")
    check = door.keys.check_readiness()
    assert not check.ok
    assert "http://127.0.0.1:1/jwks" in str(check.detail)
    # Anybody reads what is ready.
    assert "canary" not in str(check.detail)
