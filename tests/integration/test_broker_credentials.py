"""Credentials at real brokers: what lets a process in, the one line where it doesn't, and what is taken up later on."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from mesh.broker.connection import connect
from mesh.broker.pull_consumer import PullConsumer
from mesh.configuration.settings import Settings
from mesh.errors import BrokerRefused, SettingsError
from meshctl.commands.doctor import gather
from meshctl.diagnosis.checks import diagnose
from tests.support.broker import Broker
from tests.support.certificates import Authority, Pair
from tests.support.operator_mode import OperatorMode, account_key, private, user_key
from tests.support.patience import within
from tests.support.slow_link import slow_link
from tests.support.waiting import until

pytestmark = pytest.mark.integration


async def lets_in(settings: Settings) -> bool:
    async with within(10), connect(settings, "test") as connection:
        return connection.is_connected


async def says(settings: Settings) -> str:
    """The one line why there is no connection; the doctor has it, too."""
    with pytest.raises(SettingsError) as raised:
        async with within(10), connect(settings, "test"):
            pytest.fail("it was let in")
    said = str(raised.value)
    assert "\n" not in said
    checks = {check.check: check for check in diagnose(await gather(settings))}
    failed = [check for check in checks.values() if check.status == "fail"]
    # A broker that speaks TLS first tells nothing to who can't: then the first line has it.
    assert [check.detail.removeprefix(f"none at {settings.nats_url}: ") for check in failed][:1] == [said]
    assert "streams" not in checks
    return said


def tls_of(server: Pair, authority: Authority, *, first: bool) -> str:
    """A server's TLS, which asks clients for a certificate."""
    return f"tls {{ {authority.broker_tls(server)}, handshake_first: {str(first).lower()} }}"


async def test_creds_let_in_and_wrong_ones_are_one_line(tmp_path: Path) -> None:
    operator = OperatorMode()
    async with Broker(tmp_path / "nats", extra=operator.configuration()) as broker:
        url = broker.url
        good = private(tmp_path / "good.creds", operator.creds("me"))
        assert await lets_in(Settings(nats_url=url, nats_creds=good))
        for name, creds, line in (
            ("expired", operator.creds("me", expires_at=time.time() - 60), ": its JWT expired on "),
            ("foreign", OperatorMode().creds("me"), ""),
        ):
            file = private(tmp_path / f"{name}.creds", creds)
            refused = f"the broker at {url} refuses the credentials of MESH_NATS_CREDS={file}{line}"
            assert (await says(Settings(nats_url=url, nats_creds=file))).startswith(refused)
        assert "asks for a login, and there is none: MESH_NATS_CREDS" in await says(Settings(nats_url=url))
        missing = Settings(nats_url=url, nats_creds=tmp_path / "none")
        assert await says(missing) == f"MESH_NATS_CREDS={tmp_path / 'none'}: No such file or directory"


async def test_nkeys_passwords_and_tokens_let_in_and_wrong_ones_are_one_line(tmp_path: Path) -> None:
    key = user_key()
    users = f"authorization {{ users: [ {{ nkey: {key.public} }}, {{ user: me, password: right }} ] }}"
    seed, other = private(tmp_path / "seed", key.seed), private(tmp_path / "other", user_key().seed)
    right, wrong = private(tmp_path / "right", "right\n"), private(tmp_path / "wrong", "wrong\n")
    async with Broker(tmp_path / "users", extra=users) as broker:
        url = broker.url
        assert await lets_in(Settings(nats_url=url, nats_nkey=seed))
        assert await lets_in(Settings(nats_url=url, nats_user="me", nats_password_file=right))
        assert f"refuses the nkey of MESH_NATS_NKEY={other}: its public key is U" in await says(
            Settings(nats_url=url, nats_nkey=other)
        )
        assert (
            f"refuses the user of MESH_NATS_USER=me, or the password of MESH_NATS_PASSWORD_FILE={wrong}"
            in await says(Settings(nats_url=url, nats_user="me", nats_password_file=wrong))
        )
        account = private(tmp_path / "account", account_key().seed)
        assert "holds the seed of an account" in await says(Settings(nats_url=url, nats_nkey=account))
    async with Broker(tmp_path / "token", extra="authorization { token: right }") as broker:
        assert await lets_in(Settings(nats_url=broker.url, nats_token_file=right))
        assert f"refuses the token of MESH_NATS_TOKEN_FILE={wrong}" in await says(
            Settings(nats_url=broker.url, nats_token_file=wrong)
        )


@pytest.mark.parametrize("first", [False, True])
async def test_certificates_let_in_and_wrong_ones_are_one_line(tmp_path: Path, first: bool) -> None:
    authority, other = Authority(tmp_path / "right"), Authority(tmp_path / "wrong")
    mine, foreign = authority.issue("client"), other.issue("client")
    async with Broker(tmp_path / "nats", extra=tls_of(authority.issue("server"), authority, first=first)) as broker:
        for url in (broker.url, broker.url.replace("nats", "tls")):
            right = Settings(
                nats_url=url,
                nats_tls_ca=authority.file,
                nats_tls_cert=mine.certificate,
                nats_tls_key=mine.key,
                nats_tls_first=first,
            )
            assert await lets_in(right)
        nobody = Settings(nats_url=url, nats_tls_ca=authority.file, nats_tls_first=first)
        wrong_ca, no_ca = replace(right, nats_tls_ca=other.file), replace(right, nats_tls_ca=None)
        stranger = replace(right, nats_tls_cert=foreign.certificate, nats_tls_key=foreign.key)
        untrusted = f"the broker at {url} shows a certificate that is not trusted here: "
        assert (await says(wrong_ca)).startswith(untrusted)
        assert (await says(wrong_ca)).endswith(f"MESH_NATS_TLS_CA={other.file} has not its authority")
        assert (await says(no_ca)).endswith("MESH_NATS_TLS_CA names its authority")
        for settings, line in (
            (nobody, "asks for a certificate: MESH_NATS_TLS_CERT and MESH_NATS_TLS_KEY name one"),
            (stranger, f"refuses the certificate of MESH_NATS_TLS_CERT={foreign.certificate}: unknown ca"),
        ):
            with pytest.raises(BrokerRefused, match=f"^the broker at {url} {line}"):
                async with within(20), connect(settings, "test"):
                    pytest.fail("it was let in")


async def test_nothing_goes_in_the_clear_to_a_broker_that_offers_no_tls(tmp_path: Path, broker: Broker) -> None:
    token, authority = private(tmp_path / "token", "s3cr3t"), Authority(tmp_path)
    tls = broker.url.replace("nats", "tls")
    assert (await says(Settings(nats_url=tls, nats_token_file=token))) == (
        f"the broker at {tls} offers no TLS, which its URL asks for: nothing is sent to it in the clear"
    )
    with_ca = Settings(nats_url=broker.url, nats_tls_ca=authority.file, nats_token_file=token)
    assert f"which MESH_NATS_TLS_CA={authority.file} asks for" in await says(with_ca)
    first = Settings(nats_url=broker.url, nats_tls_first=True, nats_token_file=token)
    assert "does not begin with TLS, as MESH_NATS_TLS_FIRST has it" in await says(first)


async def test_a_broker_that_waits_for_tls_is_told_as_such(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with Broker(tmp_path / "nats", extra=tls_of(authority.issue("server"), authority, first=True)) as broker:
        settings = Settings(nats_url=broker.url, nats_tls_ca=authority.file)
        checks = {check.check: check for check in diagnose(await gather(settings))}
        assert "if it waits for TLS first, set MESH_NATS_TLS_FIRST=1" in checks["broker"].detail


async def test_a_jwt_that_expires_in_the_middle_is_followed_by_its_successor(tmp_path: Path) -> None:
    operator = OperatorMode()
    file = private(tmp_path / "me.creds", operator.creds("me", expires_at=time.time() + 4))
    async with Broker(tmp_path / "nats", extra=operator.configuration()) as broker:
        with capture_logs() as logs:
            async with connect(Settings(nats_url=broker.url, nats_creds=file), "test") as connection:
                await until(lambda: not connection.is_connected)
                await until(lambda: any("its JWT expired on" in str(line.get("error")) for line in logs))
                private(file, operator.creds("me"))
                await until(lambda: connection.is_connected)
                assert await connection.requests.api("INFO")


async def test_a_new_login_is_taken_while_requests_and_pulls_go_on(tmp_path: Path) -> None:
    keys = [user_key() for _ in range(4)]
    file = private(tmp_path / "seed", keys[0].seed)
    nkeys = ", ".join(f"{{ nkey: {key.public} }}" for key in keys)
    other = private(tmp_path / "other", "x")
    users = f"authorization {{ users: [ {nkeys}, {{ user: other, password: x }} ] }}"
    # At a distance, so that something is on its way at any time.
    async with Broker(tmp_path / "nats", extra=users) as broker, slow_link(broker.port, 0.04) as link:
        settings = Settings(nats_url=link.url, nats_nkey=file)
        publisher = Settings(nats_url=broker.url, nats_user="other", nats_password_file=other)
        with capture_logs() as logs:
            async with connect(settings, "test") as connection, connect(publisher, "publisher") as far:
                requests = connection.requests
                await requests.api("STREAM.CREATE.S", {"name": "S", "subjects": ["s"], "retention": "workqueue"})
                config = {"durable_name": "c", "ack_policy": "explicit", "ack_wait": 60_000_000_000}
                body = {"stream_name": "S", "config": {**config, "max_ack_pending": -1}}
                await requests.api("CONSUMER.DURABLE.CREATE.S.c", body)
                taken: list[int] = []
                consumer = PullConsumer(connection, "S", "c", 60, lambda each: taken.append(int(each.payload)))
                published, is_over = 0, False

                async def pull() -> None:
                    while not is_over:
                        await consumer.wait(1)

                async def publish() -> None:
                    nonlocal published
                    while not is_over:
                        await far.requests.publish("s", str(published).encode())
                        published += 1
                        await asyncio.sleep(0.005)  # Slower than they are pulled: one is waited for at any time.

                async def ask() -> None:
                    while not is_over:
                        await requests.api("INFO")

                work = [asyncio.create_task(each()) for each in (pull, publish, ask)]
                for number, key in enumerate(keys[1:], 1):
                    await until(partial(_has_grown, taken, len(taken) + 20))
                    private(file, key.seed)
                    await until(partial(_times, logs, "broker.reconnected", number))
                is_over = True
                await asyncio.gather(*work)
                # Without a delivery that was lost with the connection: it would come again a minute later.
                while await consumer.take(100):
                    pass
                assert sorted(taken) == list(range(published))
        assert not [line for line in logs if line["event"] == "broker.disconnected"]


def _has_grown(taken: list[int], to: int) -> bool:
    return len(taken) > to


def _times(logs: list[EventDict], event: str, times: int) -> bool:
    return [line["event"] for line in logs].count(event) >= times


def _was_said(logs: list[EventDict], says: str) -> bool:
    return any(says in str(line.get("error")) for line in logs)


async def test_a_new_login_that_is_refused_leaves_the_old_one_in_use(tmp_path: Path) -> None:
    key, other = user_key(), user_key()
    file = private(tmp_path / "seed", key.seed)
    async with Broker(tmp_path / "nats", extra=f"authorization {{ users: [ {{ nkey: {key.public} }} ] }}") as broker:
        with capture_logs() as logs:
            async with connect(Settings(nats_url=broker.url, nats_nkey=file), "test") as connection:
                for content, says in ((other.seed, "refuses the nkey of MESH_NATS_NKEY="), ("", "holds no seed")):
                    private(file, content)
                    await until(partial(_was_said, logs, says))
                    assert await connection.requests.api("INFO")
                private(file, other.seed)
                assert broker.process is not None
                config = tmp_path / "nats" / "nats.conf"
                config.write_text(config.read_text().replace(key.public, f"{key.public} }}, {{ nkey: {other.public}"))
                broker.process.send_signal(signal.SIGHUP)
                await until(lambda: any(line["event"] == "broker.reconnected" for line in logs))
                assert await connection.requests.api("INFO")
        assert not [line for line in logs if line["event"] == "broker.disconnected"]
        # Said once each, though it is tried every second.
        unusable = [line["error"] for line in logs if line["event"] == "broker.credentials_unusable"]
        assert len(unusable) <= 3, unusable


async def test_certificates_are_taken_up_while_requests_go_on(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, client = authority.issue("server"), authority.issue("client")
    async with Broker(tmp_path / "nats", extra=tls_of(server, authority, first=False)) as broker:
        settings = Settings(
            nats_url=broker.url.replace("nats", "tls"),
            nats_tls_ca=authority.file,
            nats_tls_cert=client.certificate,
            nats_tls_key=client.key,
        )
        with capture_logs() as logs:
            async with connect(settings, "test") as connection:
                authority.issue("server")
                assert broker.process is not None
                broker.process.send_signal(signal.SIGHUP)
                authority.issue("client")

                async def asks_on() -> bool:
                    assert await connection.requests.api("INFO")
                    return any(line["event"] == "broker.reconnected" for line in logs)

                await until(asks_on)
                assert await connection.requests.api("INFO")
        assert not [line for line in logs if line["event"] == "broker.disconnected"]


async def test_a_secret_that_others_can_read_is_used_and_told(tmp_path: Path) -> None:
    file = private(tmp_path / "token", "x")
    file.chmod(0o644)
    async with Broker(tmp_path / "nats", extra="authorization { token: x }") as broker:
        settings = Settings(nats_url=broker.url, nats_token_file=file)
        with capture_logs() as logs:
            assert await lets_in(settings)
        told = f"MESH_NATS_TOKEN_FILE={file} can be read by every user of this machine: chmod o= {file}"
        assert [line["problem"] for line in logs if line["event"] == "broker.secret_open_to_others"] == [told]
        checks = {check.check: check for check in diagnose(await gather(settings))}
        assert (checks["login_files"].status, checks["login_files"].detail) == ("warn", told)
