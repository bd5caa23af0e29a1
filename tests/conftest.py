"""Fixtures that every layer of tests uses."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest

from mesh.broker.connection import Connection, connect
from mesh.broker.provisioning import apply, declared
from mesh.configuration.settings import Settings
from tests.support.broker import Broker

# A shell that starts the tests in the background has SIGINT ignored, and so would every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test passes or fails by the clock: an example that is slow on a busy machine is no defect.
hypothesis.settings.register_profile("taskmesh", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("taskmesh")

WORKERS_PER_CORE = 1.5
"""Most tests wait, for a lease to pass or for a model's next token, more than they compute."""
WORKERS_MAX = 8
"""More would gain nothing: the tests of a file run one after another, and by then the longest file sets the time."""


def pytest_xdist_auto_num_workers() -> int:
    """How many workers `pytest -n auto` starts; with -n 0 the tests run in pytest's own process."""
    return max(1, min(WORKERS_MAX, int(WORKERS_PER_CORE * (os.cpu_count() or 1))))


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """A running broker without streams."""
    running = Broker(tmp_path / "broker")
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
def settings(broker: Broker, tmp_path: Path) -> Settings:
    """Settings for that broker, with a short lease so that takeovers don't take long."""
    return replace(Settings(), nats_url=broker.url, home=tmp_path / "mesh", ack_wait_seconds=1.0)


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    """A connection to that broker, with all streams as declared."""
    async with connect(settings, "test") as opened:
        await apply(opened.requests, declared(settings), update=False)
        yield opened
