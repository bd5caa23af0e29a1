"""The client at a real broker: what goes wrong on its line in passing leaves it at work."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
from pathlib import Path

import nats.errors
import pytest
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from mesh.broker.connection import connect
from mesh.configuration.settings import Settings
from tests.support.broker import Broker
from tests.support.operator_mode import private
from tests.support.patience import stretched
from tests.support.waiting import until

pytestmark = pytest.mark.integration

FOUND_SECONDS = 10.0
"""A line that reads nothing more is found dead by the client's own pings after 40 to 60."""


def lines_open() -> int:
    """Files and sockets that this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_what_is_published_after_a_flush_comes_to_a_subscription_of_just_before(broker: Broker) -> None:
    """nats-py (2.16) writes a ping past the subscription: one message in ten passed by."""
    settings = Settings(nats_url=broker.url)
    async with connect(settings, "test") as listening, connect(settings, "test") as speaking:
        for number in range(300):
            subscription = await listening.client.subscribe("news.*")
            await listening.client.flush()
            await speaking.client.publish("news.today", b"%d" % number)
            assert (await subscription.next_msg(stretched(2))).data == b"%d" % number
            await subscription.unsubscribe()


async def test_an_answer_to_a_ping_that_nobody_waits_for_any_more_breaks_nothing(broker: Broker) -> None:
    """A broker that stood still answers late: nats-py (2.16) would read nothing from then on."""
    assert broker.process is not None
    async with connect(Settings(nats_url=broker.url), "test") as connection:
        broker.process.send_signal(signal.SIGSTOP)
        try:
            stat = Path(f"/proc/{broker.process.pid}/stat")
            # The signal may come after the answer.
            await until(lambda: stat.read_text().rpartition(") ")[2].startswith("T"))
            with pytest.raises(nats.errors.TimeoutError):
                await connection.client.flush(1)
            asked = asyncio.create_task(connection.requests.api("INFO", timeout_seconds=FOUND_SECONDS))
        finally:
            broker.process.send_signal(signal.SIGCONT)
        assert "limits" in await asked


async def test_a_broker_that_refuses_one_more_subscription_still_serves(tmp_path: Path) -> None:
    """It leaves the connection as it is: nats-py (2.16) would close it for good."""
    async with (
        Broker(tmp_path, extra="max_subscriptions: 8") as broker,
        connect(Settings(nats_url=broker.url), "test") as connection,
    ):
        for number in range(9):
            await connection.client.subscribe(f"some.{number}")
        await until(lambda: "maximum subscriptions exceeded" in connection.trouble)
        assert "limits" in await connection.requests.api("INFO")


async def test_tries_that_are_refused_leave_no_line_open(tmp_path: Path) -> None:
    file = private(tmp_path / "token", "right")
    async with (
        Broker(tmp_path / "nats", extra="authorization { token: right }") as broker,
        connect(Settings(nats_url=broker.url, nats_token_file=file), "test") as connection,
    ):
        await broker.kill()
        private(file, "wrong")
        gc.disable()
        try:
            await broker.start()
            await until(lambda: connection._refusals >= 2)
            before = lines_open()
            await until(lambda: connection._refusals >= 12)
            assert lines_open() <= before + 1
        finally:
            gc.enable()
        private(file, "right")
        await until(lambda: connection.is_connected)


async def test_what_is_refused_again_and_again_is_asked_about_once(tmp_path: Path) -> None:
    """A worker without the right to one of its subjects publishes there for each token."""
    async with (
        Broker(tmp_path, enforces=True, may_refuse=True) as broker,
        connect(Settings(nats_url=broker.url_of("inference_worker")), "inference_worker") as connection,
    ):
        sent = connection.client.stats["out_msgs"]
        for _ in range(50):
            await connection.client.publish("control.approval.acme", b"{}")
            await connection.client.flush()
        assert connection.client.stats["out_msgs"] - sent < 55


async def test_the_end_of_a_connection_that_is_given_up_is_no_error(broker: Broker) -> None:
    """What is written to it last may find nobody; whatever keeps the next one from being made is told all the same."""
    async with connect(Settings(nats_url=broker.url), "test") as connection:
        for is_under_way, error, is_told in (
            (True, BrokenPipeError(32, "Broken pipe"), False),
            (True, ConnectionRefusedError(111, "Connection refused"), True),
            (False, BrokenPipeError(32, "Broken pipe"), True),
        ):
            connection.renewal.is_under_way = is_under_way
            with capture_logs() as lines:
                await connection._on_error(error)
            assert ([line["event"] for line in lines] == ["broker.error"]) is is_told, error
        connection.renewal.is_under_way = False


async def test_of_several_answers_the_own_server_s_is_taken(broker: Broker) -> None:
    """At a leaf the hub answers, too, what is asked of the system account: about the link, and it may be faster."""
    settings = Settings(nats_url=broker.url)
    async with connect(settings, "test") as other, connect(settings, "test") as connection:
        from_own = json.dumps({"server": {"id": other.client._server_info["server_id"]}})

        async def answer(message: Msg) -> None:
            for payload in ("no JSON", '{"data":{}}', '{"server":{"id":"HUB"}}', from_own):
                await message.respond(payload.encode())

        await other.client.subscribe("who.am.i", cb=answer)
        await other.client.flush()
        assert (await connection.requests.of_own_server("who.am.i")).data == from_own.encode()
