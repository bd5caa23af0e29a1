"""Modes, credentials in a head, front doors, and what a key makes of a task: without a broker."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from litestar.types import HTTPScope

from contracts.access import SCOPES, parse_key
from contracts.codec import encode
from contracts.errors import InvalidName
from contracts.fields import BY_CHARACTERS_MAX
from contracts.messages.control import Edits
from contracts.tasks import TaskRequest
from ingress.rights import check_edits, within_rights
from mesh.access.bearer import TOKEN_CHARACTERS_MAX, bearer_of
from mesh.access.callers import Identity
from mesh.access.front_doors import asked_for
from mesh.access.modes import mode_of
from mesh.access.pace import Pace
from mesh.configuration.access_tables import AuthConfiguration
from mesh.configuration.mesh_toml import parse_configuration
from mesh.configuration.reloading import fixed_changes
from mesh.configuration.settings import Address
from mesh.errors import SettingsError
from mesh.serving.http import RequestRefused
from meshctl.credentials import given_key

JWT = """[auth]
mode = "jwt"
[auth.jwt]
issuer = "https://login.example.com/"
audience = "taskmesh"
"""
KEY = "tm_0123456789abcdef_" + "A" * 43


def scope_of(*authorization: bytes, client: str | None = "127.0.0.1", caller: bytes | None = None) -> HTTPScope:
    """The head of a request."""
    headers = [(b"authorization", value) for value in authorization]
    headers += [(b"mesh-caller", caller)] if caller is not None else []
    scope: dict[str, Any] = {"headers": headers, "client": (client, 1) if client is not None else None}
    return cast("HTTPScope", scope)


@pytest.mark.parametrize(
    ("said", "host", "mode"),
    [
        (None, "127.0.0.1", "open"),
        (None, "127.8.9.10", "open"),
        (None, "::1", "open"),
        (None, "localhost", "open"),
        (None, "0.0.0.0", "keys"),
        (None, "::", "keys"),
        (None, "10.0.0.7", "keys"),
        (None, "ingress.example.com", "keys"),
        (None, "localhost.example.com", "keys"),
        ("keys", "127.0.0.1", "keys"),
        ("jwt", "0.0.0.0", "jwt"),
        ("open", "::1", "open"),
        ("open", "0.0.0.0", None),
        ("open", "10.0.0.7", None),
    ],
)
def test_an_address_says_whether_callers_are_asked_unless_the_file_does(said: Any, host: str, mode: str | None) -> None:
    auth = AuthConfiguration(mode=said)
    if mode is not None:
        assert mode_of(auth, Address(host, 8080), "MESH_EDGE_ADDRESS", "mesh.toml") == mode
        return
    with pytest.raises(SettingsError) as refused:
        mode_of(auth, Address(host, 8080), "MESH_EDGE_ADDRESS", "mesh.toml")
    assert str(refused.value).startswith(
        f'mesh.toml: auth.mode: "open" lets anybody in, and MESH_EDGE_ADDRESS={host}:8080 is no loopback address: '
    )


def test_credentials_are_one_bearer_in_one_header() -> None:
    assert bearer_of(scope_of(b"Bearer abc.def")) == "abc.def"
    assert bearer_of(scope_of(b" bearer   abc==\t")) == "abc=="
    wrong = [(), (b"Bearer a", b"Bearer b"), (b"Bearer",), (b"Bearer a b",), (b"Basic abc",), (b"Bearer a=b",), (b"",)]
    for values in [*wrong, (b"Bearer " + b"a" * TOKEN_CHARACTERS_MAX,), (b"Bearer \xff",), (b"Bearer a,Bearer b",)]:
        with pytest.raises(RequestRefused) as refused:
            bearer_of(scope_of(*values))
        assert refused.value.code == "unauthorized"


def test_a_key_is_taken_apart_only_if_all_of_it_is_there() -> None:
    parsed = parse_key(KEY)
    assert parsed is not None
    assert str(parsed) == KEY
    assert "AAAA" not in repr(parsed)
    for wrong in (KEY[:-1], KEY + "A", KEY.upper(), f" {KEY}", f"{KEY}\n", KEY.replace("_A", "_Ä", 1), "tm__", ""):
        assert parse_key(wrong) is None


@pytest.mark.parametrize("client", ["10.1.2.3", "::ffff:10.1.2.3", "fd00::7%eth0"])
def test_a_front_door_is_known_by_its_address_in_any_form(client: str) -> None:
    trusted = AuthConfiguration(trusted_proxies=["10.0.0.0/8", "fd00::/64"]).networks()
    identity = Identity("key:a", "acme", frozenset({"operate"}))
    asked = asked_for(identity, scope_of(client=client, caller=b"bob@example.com"), trusted)
    assert (asked.name, asked.any_tenant, asked.tenant) == ("key:a/bob@example.com", True, "acme")
    assert asked_for(identity, scope_of(client=client), trusted).name == "key:a"


@pytest.mark.parametrize("client", ["192.0.2.1", "fd01::7", "::ffff:192.0.2.1", "", "nowhere", None])
def test_from_anywhere_else_nobody_asks_for_others(client: str | None) -> None:
    trusted = AuthConfiguration(trusted_proxies=["10.0.0.0/8", "fd00::/64"]).networks()
    identity = Identity("key:a", "acme", frozenset(SCOPES))
    assert asked_for(identity, scope_of(client=client, caller=b"bob"), trusted) is identity
    clerk = Identity("key:a", "acme", frozenset({"submit"}))
    assert asked_for(clerk, scope_of(client="10.0.0.1", caller=b"bob"), trusted) is clerk


@pytest.mark.parametrize("caller", [b"", b"a b", b"a" * 129, b"\xff", b"a\tb"])
def test_a_person_whose_name_can_be_none_is_refused(caller: bytes) -> None:
    trusted = AuthConfiguration(trusted_proxies=["10.0.0.1"]).networks()
    with pytest.raises(InvalidName, match="Mesh-Caller"):
        asked_for(Identity("key:a", "acme", frozenset(SCOPES)), scope_of(client="10.0.0.1", caller=caller), trusted)


def test_a_name_that_no_journal_takes_is_refused() -> None:
    """A front door with a long name of its own, that asks for somebody with a long one: `by` has a bound."""
    trusted = AuthConfiguration(trusted_proxies=["10.0.0.1"]).networks()
    front_door = Identity("jwt:" + "f" * 200, "acme", frozenset(SCOPES))
    longest = b"c" * (BY_CHARACTERS_MAX - len(front_door.name) - 1)
    asked = asked_for(front_door, scope_of(client="10.0.0.1", caller=longest), trusted)
    assert len(asked.name) == BY_CHARACTERS_MAX
    with pytest.raises(InvalidName, match="Mesh-Caller"):
        asked_for(front_door, scope_of(client="10.0.0.1", caller=longest + b"c"), trusted)


@pytest.mark.parametrize(
    ("pool", "edits", "is_refused"),
    [
        ("gpu", Edits(pool="other"), True),
        ("gpu", Edits(pool="gpu", input="x"), False),
        ("gpu", Edits(input="x"), False),
        ("gpu", None, False),
        (None, Edits(pool="other"), False),
    ],
)
def test_a_replay_moves_no_task_out_of_its_callers_pool(
    pool: str | None, edits: Edits | None, is_refused: bool
) -> None:
    identity = Identity("key:a", "acme", frozenset(SCOPES), pool=pool)
    if not is_refused:
        check_edits(edits, identity)
        return
    with pytest.raises(RequestRefused, match=r"^edits\.pool: ") as refused:
        check_edits(edits, identity)
    assert refused.value.code == "forbidden"


@pytest.mark.parametrize(
    ("body", "pool", "budget", "outcome"),
    [
        ({}, None, None, ("default", None)),
        ({"budget_tokens": 9}, None, None, ("default", 9)),
        ({}, "gpu", 100, ("gpu", 100)),
        ({"pool": "gpu", "budget_tokens": 100}, "gpu", 100, ("gpu", 100)),
        ({"budget_tokens": 7}, None, 100, ("default", 7)),
        ({"pool": "default"}, "gpu", None, "pool"),
        ({"pool": "other"}, "gpu", None, "pool"),
        ({"budget_tokens": 101}, None, 100, "budget_tokens"),
    ],
)
def test_a_task_stays_within_its_callers_rights(body: Any, pool: str | None, budget: int | None, outcome: Any) -> None:
    identity = Identity("key:a", "acme", frozenset(), pool=pool, budget_tokens=budget)
    request = TaskRequest(input="x", **body)
    if isinstance(outcome, tuple):
        within = within_rights(request, encode({"input": "x", **body}), identity)
        assert (within.pool, within.budget_tokens) == outcome
        return
    with pytest.raises(RequestRefused, match=f"^{outcome}: ") as refused:
        within_rights(request, encode({"input": "x", **body}), identity)
    assert refused.value.code == "forbidden"


def test_a_pace_lets_through_what_it_says() -> None:
    pace = Pace(2.0, 3)
    assert [pace.takes(100.0) for _ in range(4)] == [True, True, True, False]
    assert [pace.takes(100.5), pace.takes(100.5), pace.takes(102.0)] == [True, False, True]
    assert sum(pace.takes(1_000.0) for _ in range(10)) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[auth]\nmode = "jwt"\n', "auth.jwt: is needed"),
        (JWT.replace('"jwt"\n', '"keys"\n', 1) + 'jwks = "a.json"\n', "auth.jwt: is there, and the mode is another"),
        (JWT, "missing required field `jwks`"),
        (JWT + 'jwks = "http://login.example.com/jwks"\n', "auth.jwt.jwks: must be https://"),
        (JWT + 'jwks = "https://user:pw@login.example.com/jwks"\n', "auth.jwt.jwks: must be https://"),
        (JWT + 'jwks = "file:///etc/passwd"\n', "auth.jwt.jwks: must be https://"),
        (JWT + 'jwks = "a"\nalgorithms = ["none"]\n', "auth.jwt.algorithms[0]: "),
        (JWT + 'jwks = "a"\nalgorithms = ["HS256"]\n', "auth.jwt.algorithms[0]: "),
        (JWT + 'jwks = "a"\nalgorithms = []\n', "auth.jwt.algorithms: "),
        (JWT + 'jwks = "a"\nscopes = { all = ["everything"] }\n', "auth.jwt.scopes.all[0]: "),
        (JWT + 'jwks = "a"\nleeway_seconds = 301\n', "auth.jwt.leeway_seconds: "),
        (JWT + 'jwks = "a"\nsecret = "x"\n', "unknown field `secret`"),
    ],
)
def test_a_wrong_table_is_named_by_its_key(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as failed:
        parse_configuration(text.encode())
    assert said in str(failed.value)
    assert "\n" not in str(failed.value)
    assert "pw" not in str(failed.value)


def test_keys_of_an_issuer_may_be_fetched_from_this_machine_without_tls() -> None:
    for where in (
        "http://127.0.0.1:9/jwks",
        "http://[::1]/jwks",
        "http://localhost/jwks",
        "https://a.example/jwks",
        "a",
    ):
        auth = parse_configuration(f'{JWT}jwks = "{where}"\n'.encode()).auth
        assert auth.jwt is not None
        assert auth.jwt.jwks == where


def test_a_mode_takes_a_restart_and_the_rest_of_the_table_does_not() -> None:
    def configured(text: str) -> Any:
        return parse_configuration(text.encode())

    keys = configured('[auth]\nmode = "keys"\n')
    [line] = fixed_changes(configured(""), keys)
    assert line.startswith("mesh.toml: auth.mode: can't change while processes run")
    assert fixed_changes(keys, configured('[auth]\nmode = "keys"\ntrusted_proxies = ["10.0.0.1"]\n')) == []
    jwt = configured(JWT + 'jwks = "a"\n')
    assert fixed_changes(jwt, configured(JWT + 'jwks = "b"\ntenant_claim = "org"\n')) == []


def test_meshctl_shows_a_key_of_a_variable_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert given_key({}) is None
    assert given_key({"MESH_API_KEY": ""}) is None
    assert given_key({"MESH_API_KEY": KEY}) == KEY
    assert given_key({"MESH_API_KEY_FILE": str(file)}) == KEY


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"\xff", b"a" * 70_000, "tm_Ä".encode()])
def test_what_can_be_no_key_is_said_in_one_line_without_it(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"^MESH_API_KEY_FILE='.*key': holds what can't be") as failed:
        given_key({"MESH_API_KEY_FILE": str(file)})
    assert "two words" not in str(failed.value)
    with pytest.raises(SettingsError, match=r"^MESH_API_KEY_FILE='.*gone': can't be read: No such file"):
        given_key({"MESH_API_KEY_FILE": str(tmp_path / "gone")})
    with pytest.raises(SettingsError, match=r"^MESH_API_KEY and MESH_API_KEY_FILE are both set"):
        given_key({"MESH_API_KEY_FILE": str(file), "MESH_API_KEY": KEY})
