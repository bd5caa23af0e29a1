"""What a login's file holds: the formats that are taken, and the one line for each that is not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from contracts.errors import TaskmeshError
from mesh.broker.credential_files import (
    FILE_BYTES_MAX,
    LoginUnusable,
    NamedFile,
    public_key_of,
    read_creds,
    read_seed,
    read_word,
    sign,
)
from mesh.broker.credentials import Credentials
from mesh.configuration.checking import unknown_variables
from mesh.configuration.secrets import environment_for
from mesh.configuration.settings import BROKER_ROLES, Settings, load_settings, load_variables
from mesh.configuration.showing import shown_variables
from mesh.errors import SettingsError
from tests.support.certificates import Authority
from tests.support.operator_mode import Key, OperatorMode, account_key, creds_text, private, user_key

URL = "nats://127.0.0.1:4222"


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], NamedFile]:
    """A file with some content, as a variable names it."""
    return lambda content: NamedFile("MESH_NATS_CREDS", private(tmp_path / "secret", content))


def test_a_creds_file_has_a_jwt_and_the_seed_of_its_user(file: Callable[[str], NamedFile]) -> None:
    text = OperatorMode().creds("me", expires_at=4_000_000_000)
    for each in (text, text.replace("\n", "\r\n"), "# a comment\n" + text):
        found = read_creds(file(each))
        assert found.jwt.text in text
        assert found.seed in text
        assert found.jwt.expires_at == datetime.fromtimestamp(4_000_000_000, UTC)


@pytest.mark.parametrize("around", ["{}", "{}\n", "\n  {}  \r\n", "{}\nUABC\n"])
def test_an_nkey_is_a_line_with_the_seed(file: Callable[[str], NamedFile], around: str) -> None:
    key = user_key()
    named = file(around.format(key.seed))
    assert read_seed(named) == key.seed
    assert public_key_of(read_seed(named), named) == key.public
    assert sign(key.seed, b"nonce", named)


@pytest.mark.parametrize("content", ["pass word\n", "pass word\r\n", "pass word"])
def test_a_password_is_the_line_without_its_end(file: Callable[[str], NamedFile], content: str) -> None:
    assert read_word(file(content)) == "pass word"


def _jwt_of(claims: dict[str, object], signer: Key) -> str:
    return signer.signed(signer.public, "x", claims)


def wrong_creds() -> dict[str, tuple[str, str]]:
    """What a creds file may hold by mistake, and what is said of it."""
    operator, key = OperatorMode(), user_key()
    good = operator.creds("me")
    jwt = good.splitlines()[1]
    account = account_key()
    return {
        "nothing": ("", "is no creds file: a JWT and a seed"),
        "something else": ("hello\n" * 100, "is no creds file"),
        "the beginning alone": ("-----BEGIN NATS USER JWT-----\n", "is no creds file"),
        "no seed": (good.partition("*****")[0], "holds a JWT and no seed of a user"),
        "a seed alone": (good.partition("*****")[2], "holds no JWT of a user, only: USER NKEY SEED"),
        "another's seed": (creds_text(jwt, key.seed), "its seed is another user's than its JWT"),
        "a JWT cut off": (creds_text(jwt[:40], key.seed), "holds a JWT that can't be read"),
        "no JWT": (creds_text("a.b.c", key.seed), "holds a JWT that can't be read"),
        "an account's JWT": (
            creds_text(_jwt_of({"type": "account"}, account), key.seed),
            "holds the JWT of an account, and not of a user",
        ),
        "an account's seed": (creds_text(jwt, account.seed), r"holds the seed of an account \(SA…\): a user's"),
    }


@pytest.mark.parametrize("what", wrong_creds())
def test_a_wrong_creds_file_is_one_line_that_says_what_is_wrong(file: Callable[[str], NamedFile], what: str) -> None:
    content, says = wrong_creds()[what]
    named = file(content)
    with pytest.raises(LoginUnusable, match=f"^MESH_NATS_CREDS={named.path}: {says}") as raised:
        read_creds(named)
    assert "\n" not in str(raised.value)
    secrets = [line for line in content.splitlines() if len(line) > 30 and "-" not in line]
    assert not [secret for secret in secrets if secret in str(raised.value)]


def test_a_wrong_seed_is_one_line_that_says_what_is_wrong(file: Callable[[str], NamedFile]) -> None:
    seed = user_key().seed
    damaged = seed[:20] + ("A" if seed[20] != "A" else "B") + seed[21:]
    for content, says in (
        ("", "holds no seed of a user"),
        (seed[:-1], "holds no seed of a user"),
        (user_key().public, "holds a public key: the seed of a user begins with SU"),
        (account_key().seed, "holds the seed of an account"),
        (OperatorMode().operator.seed, "holds the seed of an operator"),
    ):
        with pytest.raises(LoginUnusable, match=says):
            read_seed(file(content))
    named = file(damaged)
    with pytest.raises(LoginUnusable, match="holds a seed that is damaged") as raised:
        public_key_of(read_seed(named), named)
    of_no_kind = file(f"SUZ{'A' * 51}GBZI")  # Its checksum is right.
    with pytest.raises(LoginUnusable, match="holds a seed that can't be used: invalid prefix byte"):
        public_key_of(read_seed(of_no_kind), of_no_kind)
    assert damaged not in str(raised.value)


def test_what_is_no_file_to_read_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * (FILE_BYTES_MAX + 1))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "two").write_bytes(b"one\ntwo\n")
    for name, says in (
        ("missing", "No such file or directory"),
        (".", "is no regular file|Is a directory"),
        ("pipe", "is no regular file"),
        ("large", "has more than 65,536 bytes"),
        ("binary", "is no text"),
        ("empty", "is empty"),
        ("two", "has more than one line"),
    ):
        named = NamedFile("MESH_NATS_TOKEN_FILE", tmp_path / name)
        with pytest.raises(LoginUnusable, match=f"^MESH_NATS_TOKEN_FILE={named.path}: ({says})"):
            read_word(named)


def test_a_folder_that_is_no_file_to_read_leaves_nothing_open(tmp_path: Path) -> None:
    before = list(Path("/proc/self/fd").iterdir())
    for _ in range(3):
        with pytest.raises(LoginUnusable, match="is no regular file"):
            NamedFile("MESH_NATS_TOKEN_FILE", tmp_path).read()
    assert len(list(Path("/proc/self/fd").iterdir())) == len(before)


def credentials(role: str = "steward", **variables: str) -> Credentials:
    """Of a role, by variables."""
    return Credentials(load_variables({"MESH_NATS_URL": URL, **variables}), role)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        (
            {"MESH_NATS_CREDS": "/a", "MESH_NATS_NKEY": "/b"},
            "^two logins at one broker: MESH_NATS_CREDS=/a and MESH_NATS_NKEY=/b: unset one of them$",
        ),
        (
            {"MESH_NATS_TOKEN_FILE": "/a", "MESH_NATS_URL": "nats://me:s3cr3t@host"},
            r"^two logins at one broker: MESH_NATS_TOKEN_FILE=/a and MESH_NATS_URL=nats://\*\*\*@host: unset one",
        ),
        ({"MESH_NATS_USER": "me"}, "^MESH_NATS_USER=me: a user without a password: set MESH_NATS_PASSWORD_FILE, too$"),
        ({"MESH_NATS_PASSWORD_FILE": "/a"}, "^MESH_NATS_PASSWORD_FILE=/a: a password without a user"),
        (
            {"MESH_NATS_TLS_CERT": "/a"},
            "^MESH_NATS_TLS_CERT=/a: a certificate without its key: set MESH_NATS_TLS_KEY, too$",
        ),
        ({"MESH_NATS_TLS_KEY": "/a"}, "^MESH_NATS_TLS_KEY=/a: a key without its certificate"),
        (
            {"MESH_NATS_CREDS_STEWARD": "/a", "MESH_NATS_USER_STEWARD": "me"},
            "^two logins at one broker: MESH_NATS_CREDS_STEWARD=/a and MESH_NATS_USER_STEWARD=me",
        ),
    ],
)
def test_half_a_login_and_two_are_one_line(variables: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says) as raised:
        credentials(**variables)
    assert "s3cr3t" not in str(raised.value)


def test_a_service_may_have_a_login_of_its_own_in_the_place_of_the_common_one(tmp_path: Path) -> None:
    common, own = private(tmp_path / "common", "common"), private(tmp_path / "own", "own")
    variables = {
        "MESH_NATS_TOKEN_FILE": str(common),
        "MESH_NATS_USER_STEWARD": "me",
        "MESH_NATS_PASSWORD_FILE_STEWARD": str(own),
    }
    shown = {role: credentials(role, **variables).read() for role in (*BROKER_ROLES, "test")}
    assert {role for role, each in shown.items() if each.token == "common"} == {*BROKER_ROLES, "test"} - {"steward"}
    assert (shown["steward"].user, shown["steward"].password, shown["steward"].token) == ("me", "own", None)
    assert "MESH_NATS_PASSWORD_FILE_STEWARD" in credentials("steward", **variables).refusal()


def test_files_are_read_anew_and_a_change_is_seen(tmp_path: Path) -> None:
    file = private(tmp_path / "token", "one")
    login = credentials(MESH_NATS_TOKEN_FILE=str(file))
    assert not login.has_changed(), "it was not read yet"
    assert login.read().token == "one"
    assert not login.has_changed()
    private(file, "two")
    assert login.has_changed()
    assert login.copy().read().token == "two"
    assert login.has_changed(), "another connection has read it"
    assert login.read().token == "two"
    assert not login.has_changed()
    # As Kubernetes changes a Secret: a link to another folder.
    for version in ("a", "b"):
        private(tmp_path / version / "token", version)
    link = tmp_path / "data"
    link.symlink_to("a")
    mounted = credentials(MESH_NATS_TOKEN_FILE=str(link / "token"))
    assert mounted.read().token == "a"
    link.unlink()
    link.symlink_to("b")
    assert mounted.has_changed()
    assert mounted.read().token == "b"


def test_a_file_that_others_can_read_is_told_and_works(tmp_path: Path) -> None:
    file = private(tmp_path / "token", "x")
    login = credentials(MESH_NATS_TOKEN_FILE=str(file))
    for mode, told in ((0o600, 0), (0o640, 0), (0o644, 1), (0o602, 1)):
        file.chmod(mode)
        assert len(login.open_to_others()) == told, oct(mode)
        assert login.read().token == "x"


def test_certificates_that_can_not_be_used_are_one_line(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "one"), Authority(tmp_path / "two")
    good, locked = authority.issue("good"), authority.issue("locked", passphrase="passphrase")
    text = private(tmp_path / "text", "hello")
    table = (
        (good.certificate, good.key, authority.file, None),
        (
            good.certificate,
            other.issue("good").key,
            authority.file,
            "MESH_NATS_TLS_KEY=.* is not the key of MESH_NATS_TLS_CERT=",
        ),
        (locked.certificate, locked.key, authority.file, "MESH_NATS_TLS_KEY=.*: has a passphrase"),
        (good.key, good.certificate, authority.file, "MESH_NATS_TLS_CERT=.*: holds no certificate"),
        (good.certificate, text, authority.file, "MESH_NATS_TLS_KEY=.*: holds no key"),
        (good.certificate, good.key, text, "MESH_NATS_TLS_CA=.*: holds no certificate of an authority"),
        (good.certificate, good.key, tmp_path / "none", "MESH_NATS_TLS_CA=.*: No such file"),
        (good.certificate, tmp_path / "none", authority.file, "MESH_NATS_TLS_KEY=.*: No such file"),
    )
    for cert, key, ca, says in table:
        login = credentials(
            MESH_NATS_TLS_CERT=str(cert), MESH_NATS_TLS_KEY=str(key), MESH_NATS_TLS_CA=str(ca)
        )  # fmt: skip
        if says is None:
            login.check()
            continue
        with pytest.raises(LoginUnusable, match=f"^{says}"):
            login.check()


@pytest.mark.parametrize(
    ("variables", "wants"),
    [
        ({}, False),
        ({"MESH_NATS_URL": "tls://host"}, True),
        ({"MESH_NATS_URL": "nats://host,tls://host"}, True),
        ({"MESH_NATS_TLS_CA": "/a"}, True),
        ({"MESH_NATS_TLS_FIRST": "1"}, True),
        ({"MESH_NATS_TLS_FIRST_STEWARD": "1"}, True),
        ({"MESH_NATS_TLS_FIRST_INGRESS": "1"}, False),
    ],
)
def test_tls_that_somebody_asks_for_is_wanted(variables: dict[str, str], wants: bool) -> None:
    assert credentials(**variables).wants_tls is wants


def test_an_expired_jwt_is_read_and_why_it_is_refused_is_told(tmp_path: Path) -> None:
    file = private(tmp_path / "me.creds", OperatorMode().creds("me", expires_at=time.time() - 60))
    login = credentials(MESH_NATS_CREDS=str(file))
    login.check()
    assert ": its JWT expired on " in login.refusal()


def test_a_login_for_one_service_is_no_unknown_variable() -> None:
    settings = load_settings({"MESH_CONFIG": os.devnull, "MESH_NATS_CREDS_TOOL_RUNNER": "/a"})
    assert settings.of_role == {"tool_runner": {"nats_creds": Path("/a")}}
    assert settings.for_role("tool_runner").nats_creds == Path("/a")
    assert settings.for_role("steward") == settings
    assert ("MESH_NATS_CREDS_TOOL_RUNNER", "/a", "MESH_NATS_CREDS_TOOL_RUNNER") in shown_variables(settings)
    assert unknown_variables({"MESH_NATS_CREDS_TOOL_RUNNER": "/a", "MESH_NATS_CREDS_RUNNER": "/a"}) == [
        "MESH_NATS_CREDS_RUNNER: there is no such setting; MESH_NATS_CREDS_TOOL_RUNNER may be meant"
    ]
    assert issubclass(LoginUnusable, TaskmeshError)
    assert Settings().of_role == {}


def test_a_service_is_given_the_variables_of_its_own_login_alone() -> None:
    variables = {f"MESH_NATS_CREDS_{role.upper()}": "/a" for role in BROKER_ROLES} | {"MESH_NATS_TLS_CA": "/b"}
    for service in BROKER_ROLES:
        given = environment_for(service, variables, Settings().configuration)
        assert given == {f"MESH_NATS_CREDS_{service.upper()}": "/a", "MESH_NATS_TLS_CA": "/b"}
    assert environment_for("nats_server", variables, Settings().configuration) == {"MESH_NATS_TLS_CA": "/b"}
