"""What workers tell each other of their providers' speed, over a real broker."""

from __future__ import annotations

import pytest
from nats.aio.msg import Msg

from contracts import subjects
from contracts.codec import encode
from contracts.records.speeds import ModelSums, SpeedSample
from inference_worker.speed_reports import SpeedReporter
from mesh.background import background
from mesh.broker.connection import Connection
from mesh.clock import lease_clock
from tests.support.waiting import until

pytestmark = pytest.mark.integration


def seen(seconds: float) -> ModelSums:
    return ModelSums(
        provider="main", model="m", calls=1, first_token_seconds=seconds, answers=1, output_tokens=10, output_seconds=1
    )


def expected(reporter: SpeedReporter) -> float | None:
    return reporter.speeds.of("main", "m").first_token_seconds(0, lease_clock())


async def test_what_one_worker_has_seen_all_know_and_none_counts_its_own_twice(connection: Connection) -> None:
    first, second, third = (SpeedReporter(connection, name) for name in ("first", "second", "third"))
    for reporter in (first, second):
        reporter.want()  # No pool of the third has a preference.
    async with background(first.run(), second.run(), third.run()):
        first.speeds.saw(seen(0.5), lease_clock())
        await until(lambda: expected(second) is not None)
        second.speeds.saw(seen(0.7), lease_clock())
        await until(lambda: (expected(first) or 0.0) > 0.5)
        assert expected(first) == pytest.approx(0.6, abs=0.03)
        assert expected(second) == pytest.approx(0.6, abs=0.03)
        assert expected(third) is None


async def test_a_worker_with_nothing_to_tell_is_silent_and_what_is_unreadable_harms_nobody(
    connection: Connection,
) -> None:
    told: list[bytes] = []

    async def hear(message: Msg) -> None:
        told.append(message.data)

    await connection.client.subscribe(subjects.PROVIDER_SPEEDS, cb=hear)
    reporter, others = SpeedReporter(connection, "only"), encode(SpeedSample(worker="other", models=[seen(0.4)]))
    reporter.want()

    async def is_told() -> bool:
        """Again and again: it may not listen yet."""
        await connection.client.publish(subjects.PROVIDER_SPEEDS, b"{nonsense")
        await connection.client.publish(subjects.PROVIDER_SPEEDS, others)
        await connection.client.flush()
        return expected(reporter) is not None

    async with background(reporter.run()):
        await until(is_told)
        await reporter.report()
        await connection.client.flush()
    assert set(told) == {b"{nonsense", others}
