"""What MESH_NATS_URL may say, and that a password in it is shown nowhere."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.configuration.broker_urls import BrokerLogin, parse_broker_url, without_login, without_password
from mesh.configuration.settings import load_settings
from mesh.errors import SettingsError
from meshctl.__main__ import main

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "servers", "login"),
    [
        ("nats://127.0.0.1:4222", ("nats://127.0.0.1:4222",), BrokerLogin()),
        ("broker", ("nats://broker:4222",), BrokerLogin()),
        ("tls://[::1]:5222/", ("tls://[::1]:5222",), BrokerLogin()),
        ("nats://me:p%40ss%2Fw%3Ard%25@host", ("nats://host:4222",), BrokerLogin("me", "p@ss/w:rd%")),
        ("nats://me:p@ss/w:rd@host:1", ("nats://host:1",), BrokerLogin("me", "p@ss/w:rd")),
        ("nats://t%40ken@host", ("nats://host:4222",), BrokerLogin(token="t@ken")),
        ("nats://me:@host", ("nats://host:4222",), BrokerLogin("me", "")),
        ("nats://a:1, nats://b:2,c", ("nats://a:1", "nats://b:2", "nats://c:4222"), BrokerLogin()),
        ("me:x@a:1,nats://b,nats://me:x@c:3", ("nats://a:1", "nats://b:4222", "nats://c:3"), BrokerLogin("me", "x")),
    ],
)  # fmt: skip
def test_a_url_is_servers_and_one_login(url: str, servers: tuple[str, ...], login: BrokerLogin) -> None:
    assert parse_broker_url(url) == (servers, login)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("nats://me:s3cr3t@host:4222", "nats://***@host:4222"),
        ("nats://s3cr3t@a:1,nats://b:2,tls://u:s3cr3t@c:3", "nats://***@a:1,nats://b:2,tls://***@c:3"),
        ("me:s3cr3t@host", "***@host"),
        ("nats://me:s3cr3t@s3cr3t@host", "nats://***@host"),
        ("nats://me:s3cr3t/s3cr3t@host:1", "nats://***@host:1"),
        ("nats://me:s3cr3t", "***"),
        ("nats://me:s3cr3t@", "***"),
        ("nats://me:s3cr3t@host:port", "***"),
        ("nats://host:4222?password=s3cr3t", "***"),
        ("http://me:s3cr3t@host", "***"),
        ("nats://me:s3cr3t,s3cr3t@host", "***,***@host"),
        ("nats://me:s3cr3t\n@host", "nats://***@host"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "nats://me:s3cr3t@",
        "nats://me:s3cr3t",
        "nats://me:s3cr3t@host:port",
        "nats://me:s3cr3t@host:0",
        "nats://me:s3cr3t@host:65536",
        "http://me:s3cr3t@host",
        "nats://me:s3cr3t@ho st",
        "nats://me:s3cr3t@host/path",
        "nats://me:s3cr3t@a,nats://you:s3cr3t@b",
        "nats://s3cr3t@a,nats://b:s3cr3t",
        ",",
    ],
)
def test_a_url_that_is_none_is_one_line_without_its_password(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match=r"^MESH_NATS_URL='.*': (must be nats://|its servers have)") as caught:
        load_settings({"MESH_NATS_URL": url})
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    if "@" not in url:
        assert main(["workers", "--nats-url", url]) == 2
        assert SECRET not in "".join(capfd.readouterr())


def test_a_password_in_an_argument_is_refused_since_all_users_see_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--nats-url", f"nats://me:{SECRET}@host"]) == 2
    out, said = capfd.readouterr()
    assert out == ""
    assert said.startswith("meshctl: --nats-url nats://***@host: ")
    assert "MESH_NATS_URL" in said


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_login_that_is_percent_encoded_arrives(user: str, password: str) -> None:
    url = f"nats://{quote(user, safe='', errors='replace')}:{quote(password, safe='', errors='replace')}@host"
    as_sent = [text.encode("utf-8", "replace").decode() for text in (user, password)]
    assert parse_broker_url(url).login == BrokerLogin(*as_sent)
    assert without_password(url) == "nats://***@host"


@given(st.text(alphabet=":/@?#[]%. \n\\0aé", max_size=12), st.text(alphabet=":/@?#[]%. \n\\0aé", max_size=12))
def test_no_form_of_a_url_shows_what_stands_before_the_host(before: str, after: str) -> None:
    shown = without_password(f"nats://{before}{SECRET}{after}@host:1")
    assert SECRET not in shown
    assert re.fullmatch(r"nats://\*\*\*@host:1|\*\*\*", shown)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("https://me:s3cr3t@host/v1", "https://***@host/v1"),
        ("https://me:s3cr3t@s3cr3t/s3cr3t@host", "https://***@host"),
        ("me:s3cr3t@host", "***@host"),
        ("https://host/a?b=c", "https://host/a?b=c"),
    ],
)
def test_a_login_of_any_url_is_not_shown(url: str, shown: str) -> None:
    assert without_login(url) == shown


@pytest.mark.parametrize("url", ["http://me:s3cr3t@127.0.0.1:1", "http://me:s3cr3t@[", "http://me:s3cr3t@host:port"])
def test_an_ingress_that_is_away_is_told_of_without_its_password(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", url, "list"]) != 0
    assert SECRET not in "".join(capfd.readouterr())
