"""Logging in at a NATS of one's own: any password, any number of servers, and a wrong one that reads as such."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from mesh.broker.connection import connect
from mesh.broker.embedded import PORTS_FOLDER, login_path, render_login
from mesh.configuration.broker_urls import BrokerLogin
from mesh.configuration.settings import Settings
from mesh.errors import BrokerDistrusted, BrokerRefused, SettingsError
from meshctl.commands.doctor import gather
from meshctl.diagnosis.checks import diagnose
from meshctl.supervision.home import Home
from tests.support.broker import Broker, free_port
from tests.support.certificates import make_certificate
from tests.support.patience import within

pytestmark = pytest.mark.integration

PASSWORD = "p@ss/w:rd, 100%"
ENCODED = quote(PASSWORD, safe="")
TOKEN = "t@ken"


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Broker]:
    """A broker with a user."""
    broker = Broker(tmp_path / "nats", extra=f'authorization {{ user: me, password: "{PASSWORD}" }}')
    await broker.start()
    yield broker
    await broker.stop()


@pytest.fixture
async def tokened(tmp_path: Path) -> AsyncIterator[Broker]:
    """A broker with a token."""
    broker = Broker(tmp_path / "nats", extra=f'authorization {{ token: "{TOKEN}" }}')
    await broker.start()
    yield broker
    await broker.stop()


async def test_a_percent_encoded_password_connects(guarded: Broker) -> None:
    async with connect(Settings(nats_url=f"nats://me:{ENCODED}@127.0.0.1:{guarded.port}"), "test") as connection:
        assert connection.is_connected


async def test_a_list_of_servers_connects_though_the_first_is_away(guarded: Broker) -> None:
    url = f"nats://me:{ENCODED}@127.0.0.1:{free_port()},nats://127.0.0.1:{guarded.port}"
    async with connect(Settings(nats_url=url), "test") as connection:
        assert connection.is_connected


@pytest.mark.parametrize(
    ("login", "says"),
    [
        ("me:wrong@", r"^the broker at nats://\*\*\*@127\.0\.0\.1:\d+ refuses the user or password of MESH_NATS_URL$"),
        ("wrong@", r"^the broker at nats://\*\*\*@127\.0\.0\.1:\d+ refuses the token of MESH_NATS_URL$"),
        ("", r"^the broker at nats://127\.0\.0\.1:\d+ asks for a login, and there is none: MESH_NATS_CREDS"),
    ],
)
async def test_a_wrong_login_reads_as_such(guarded: Broker, tmp_path: Path, login: str, says: str) -> None:
    settings = Settings(nats_url=f"nats://{login}127.0.0.1:{guarded.port}", home=tmp_path)
    with pytest.raises(BrokerRefused, match=says):
        async with connect(settings, "test"):
            pytest.fail("it was let in")
    checks = {check.check: check for check in diagnose(await gather(settings))}
    assert checks["broker"].status == "ok"
    assert checks["login"].status == "fail"
    assert "streams" not in checks


async def test_a_certificate_that_is_not_trusted_reads_as_such_and_one_that_is_connects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path, "localhost")
    broker = Broker(tmp_path / "nats", extra=f'tls {{ cert_file: "{certificate}", key_file: "{certificate}" }}')
    await broker.start()
    try:
        settings = Settings(nats_url=f"tls://localhost:{broker.port}", home=tmp_path)
        async with within(5):
            with pytest.raises(BrokerDistrusted, match="a certificate that is not trusted here: self-signed"):
                async with connect(settings, "test"):
                    pytest.fail("it was trusted")
        checks = {check.check: check for check in diagnose(await gather(settings))}
        assert checks["broker"].status == "ok"
        assert checks["certificate"].status == "fail"
        assert "MESH_NATS_TLS_CA" in checks["certificate"].remedy
        assert not checks.keys() & {"login", "streams"}
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with connect(settings, "test") as connection:
            assert connection.is_connected
    finally:
        await broker.stop()


async def test_a_token_of_the_url_connects(tokened: Broker) -> None:
    url = f"nats://{quote(TOKEN, safe='')}@127.0.0.1:{tokened.port}"
    async with connect(Settings(nats_url=url), "test") as connection:
        assert connection.is_connected


async def test_the_logins_of_a_home_are_shown_to_its_own_broker_alone(guarded: Broker, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / PORTS_FOLDER).mkdir(parents=True)
    path = login_path(home, "steward")
    path.parent.mkdir()
    path.write_text(render_login(BrokerLogin("me", PASSWORD)))
    settings = Settings(nats_url=guarded.url, home=home)
    with pytest.raises(BrokerRefused, match="asks for a login"):
        async with connect(settings, "steward"):
            pytest.fail("the login went to a broker that is not known to be the home's")
    assert guarded.process is not None
    ports = home / PORTS_FOLDER / f"nats-server_{guarded.process.pid}.ports"
    ports.write_text(f'{{"nats": ["nats://127.0.0.1:{guarded.port}"]}}')
    with pytest.raises(BrokerRefused, match="asks for a login"):
        async with connect(settings, "steward"):
            pytest.fail("the login went to who has a port, and maybe a pid, that a broker of this home had once")
    with Home(home).locked():
        for alone in (settings, replace(settings, nats_url=None, nats_port=guarded.port)):
            async with connect(alone, "steward") as connection:
                assert connection.is_connected


async def test_an_inbox_that_may_not_be_heard_is_named_at_the_start(tmp_path: Path) -> None:
    deny = 'permissions: { subscribe: { deny: ["_INBOX_test.>"] } }'
    broker = Broker(tmp_path / "nats", extra=f"authorization {{ users: [{{ user: me, password: x, {deny} }}] }}")
    await broker.start()
    try:
        with pytest.raises(SettingsError, match=r"^the broker's user may not subscribe to _INBOX_test\..*: no answer"):
            async with connect(Settings(nats_url=broker.url.replace("//", "//me:x@")), "test"):
                pytest.fail("nobody would answer")
    finally:
        await broker.stop()
