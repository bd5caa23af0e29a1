"""Fixtures that every layer of tests uses."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Generator
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest

from mesh.broker.connection import Connection, connect
from mesh.broker.provisioning import apply, declared
from mesh.configuration.settings import Settings
from tests.support import children
from tests.support.broker import Broker
from tests.support.patience import lease
from tests.support.watchdog import Watchdog

# A shell that starts the tests in the background has SIGINT ignored, and so would every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# `nohup` has SIGHUP ignored, by which a service reads its file again. What is ignored stays so in all that is started,
# and a handler does not: with one that does nothing the tests outlive a hangup, and what they start hears it. A worker
# of pytest-xdist, which is started itself, ends with who started it.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN or "PYTEST_XDIST_WORKER" in os.environ:
    signal.signal(signal.SIGHUP, lambda *_: None)

# No test passes or fails by the clock: an example that is slow on a busy machine is no defect.
hypothesis.settings.register_profile("taskmesh", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("taskmesh")

WORKERS_PER_CORE = 1.5
"""Most tests wait, for a lease to pass or for a model's next token, more than they compute. Those that start no process
compute alone: one for each core."""
WORKERS_MAX = 8
"""More would gain nothing: the tests of a file run one after another, and by then the longest file sets the time."""


def pytest_xdist_auto_num_workers() -> int:
    """How many workers `pytest -n auto` starts; with -n 0 the tests run in pytest's own process."""
    per_core = 1.0 if os.environ.get(children.NONE_VARIABLE) else WORKERS_PER_CORE
    return max(1, min(WORKERS_MAX, int(per_core * (os.cpu_count() or 1))))


WATCHDOG = pytest.StashKey[Watchdog]()


def pytest_configure(config: pytest.Config) -> None:
    """A process that starts others is watched from its beginning: pytest's own, for its workers (pytest-xdist)."""
    assert sys.__stderr__ is not None
    # A copy: while a test runs, the descriptor itself leads to pytest's capture.
    config.stash[WATCHDOG] = Watchdog(os.dup(sys.__stderr__.fileno()))
    if getattr(config.option, "numprocesses", None):
        children.guard()


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """No test runs for ever."""
    item.config.stash[WATCHDOG].begin()
    try:
        return (yield)
    finally:
        item.config.stash[WATCHDOG].end()


def pytest_enter_pdb(config: pytest.Config) -> None:
    """Whoever looks at a test in a debugger takes all the time there is."""
    config.stash[WATCHDOG].end()


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
    home = tmp_path / "mesh"
    return replace(Settings(), nats_url=broker.url, home=home, ack_wait_seconds=lease(1.0), drain_seconds=5.0)


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    """A connection to that broker, with all streams as declared."""
    async with connect(settings, "test") as opened:
        await apply(opened.requests, declared(settings), update=False)
        yield opened
