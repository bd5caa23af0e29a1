"""Signed links: what a token lets its holder read, and everything that is no token."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from contracts.errors import TaskmeshError
from contracts.identifiers import new_id
from contracts.links import (
    LINK_SECONDS_MAX,
    SIGNING_KEYS_MAX,
    TOKEN_CHARACTERS_MAX,
    Link,
    LinkExpired,
    LinkInvalid,
    LinkKey,
    expiry_of,
    key_of,
    new_link_key,
    rotated,
    sign,
    verify,
)
from ingress.parsing import parse_link_seconds

NOW = datetime(2026, 1, 31, 9, 30, 0, 250_000, tzinfo=UTC)
HOUR = timedelta(hours=1)
KEY = LinkKey(id="abcdefgh", secret="A" * 43, created_at=NOW)
TASK = "01jh2v0000000000000000000a"
LINK = Link("acme", TASK, expiry_of(NOW, 3600))


def test_a_token_is_what_the_protocol_says() -> None:
    """Held against a signature that was made by hand: `openssl dgst -sha256 -mac HMAC`."""
    token = sign(KEY, LINK)
    assert token == f"abcdefgh.{int(LINK.expires_at.timestamp())}.acme.{token[-43:]}"
    assert verify([KEY], token, TASK, NOW) == LINK
    assert key_of(token) == "abcdefgh"
    assert len(sign(KEY, LINK._replace(tenant="t" * 32))) <= TOKEN_CHARACTERS_MAX


def test_a_token_that_differs_in_one_character_is_none() -> None:
    """Each place, each bit, and each other letter of the alphabet in the last one, whose low bits mean nothing."""
    token = sign(KEY, LINK)
    altered = {
        token[:at] + chr(ord(token[at]) ^ 1 << bit) + token[at + 1 :] for at in range(len(token)) for bit in range(7)
    }
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    altered |= {token[:-1] + last for last in alphabet}
    altered |= {token.swapcase(), token.upper(), token[::-1]}
    for each in altered - {token}:
        with pytest.raises(LinkInvalid):
            verify([KEY], each, TASK, NOW)
    assert len(altered) > 7 * 60


@pytest.mark.parametrize(
    "token",
    [
        *("", ".", "...", "link", "x" * 1_000_000, "\0", "é" * 60),
        "abcdefgh.0000000001.acme." + "A" * 43,
        "abcdefgh.9999999999.acme." + "A" * 43,
        "../../etc.1769855400.acme." + "A" * 43,
    ],
)
def test_what_is_no_token_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(LinkInvalid) as refused:
        verify([KEY], token, TASK, NOW)
    assert str(refused.value) == "the link is not valid"


def test_a_token_that_is_cut_or_longer_is_none() -> None:
    token = sign(KEY, LINK)
    for each in [token[:length] for length in range(len(token))] + [token + end for end in ("A", "=", "\n", " ", ".")]:
        with pytest.raises(LinkInvalid):
            verify([KEY], each, TASK, NOW)


def test_a_token_is_for_one_task_of_one_mesh() -> None:
    token = sign(KEY, LINK)
    for keys, task in (([KEY], new_id()), ([new_link_key(NOW)], TASK), ([], TASK)):
        with pytest.raises(LinkInvalid):
            verify(keys, token, task, NOW)
    twin = LinkKey(id=KEY.id, secret="B" * 42 + "A", created_at=NOW)
    with pytest.raises(LinkInvalid):
        verify([twin], token, TASK, NOW)


def test_a_token_ends_with_its_last_second() -> None:
    token = sign(KEY, LINK)
    assert verify([KEY], token, TASK, LINK.expires_at - timedelta(microseconds=1))
    for late in (LINK.expires_at, LINK.expires_at + timedelta(days=400)):
        with pytest.raises(LinkExpired) as refused:
            verify([KEY], token, TASK, late)
        assert refused.value.code == "link-expired"


def test_one_that_is_altered_is_never_said_to_have_expired() -> None:
    """Else whoever makes tokens up would learn which keys there are."""
    token = sign(KEY, LINK)
    with pytest.raises(LinkInvalid):
        verify([KEY], token[:-1] + ("A" if token[-1] != "A" else "B"), TASK, LINK.expires_at + HOUR)


def test_links_of_a_key_that_was_rotated_hold_for_the_grace_at_most() -> None:
    token = sign(KEY, LINK)
    keys = rotated([KEY], NOW, 600)
    assert [each.id for each in keys[1:]] == [KEY.id]
    assert keys[0].until is None
    held = verify(keys, token, TASK, NOW + timedelta(seconds=599))
    assert held.expires_at == NOW + timedelta(seconds=600)
    with pytest.raises(LinkExpired):
        verify(keys, token, TASK, NOW + timedelta(seconds=600))
    assert verify(rotated([KEY], NOW, LINK_SECONDS_MAX), token, TASK, NOW).expires_at == LINK.expires_at


def test_without_a_grace_nothing_of_the_old_keys_is_kept() -> None:
    keys = rotated([KEY], NOW, 0)
    assert len(keys) == 1
    with pytest.raises(LinkInvalid):
        verify(keys, sign(KEY, LINK), TASK, NOW)


def test_a_second_rotation_makes_no_grace_longer_and_keys_are_bounded() -> None:
    keys = rotated([KEY], NOW, 600)
    again = rotated(keys, NOW + timedelta(seconds=10), 3600)
    assert again[2].until == NOW + timedelta(seconds=600)
    assert [each.id for each in rotated(keys, NOW + timedelta(seconds=600), 3600)[1:]] == [keys[0].id]
    for _ in range(3 * SIGNING_KEYS_MAX):
        keys = rotated(keys, NOW, 3600)
    assert len(keys) == SIGNING_KEYS_MAX


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None),
        ("wait=30", None),
        ("link", 3600),
        ("LINK = 60", 60),
        ("wait=3, link=5; x=y", 5),
        ("link=999999", LINK_SECONDS_MAX),
        # What is not understood is ignored (RFC 7240).
        ("link=0", None),
        ("link=-1", None),
        ("link=1.5", None),
        ("links", None),
        ("link=" + "9" * 5_000, None),
    ],
)
def test_a_preference_for_a_link(prefer: str | None, seconds: int | None) -> None:
    assert parse_link_seconds(prefer) == seconds


def test_a_key_does_not_show_its_secret() -> None:
    key = new_link_key(NOW)
    assert key.secret not in repr(key)
    assert key.secret not in f"{[key]}"
    assert isinstance(LinkInvalid("x"), TaskmeshError)
