"""How long a loop is said to stand still, and what systemd is told of a process."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mesh.serving.notifying import Notifier, without_notify
from mesh.serving.watchdog import StandstillCount, watched

TICK_SECONDS = 1.0


def test_silence_adds_up_and_a_sign_of_life_ends_it() -> None:
    count = StandstillCount(TICK_SECONDS)
    for _ in range(30):
        count.silent(1.0)
    assert count.seconds == 30.0
    count.answered()
    assert count.seconds == 0.0


def test_a_process_that_was_stopped_or_slept_for_an_hour_has_missed_two_ticks() -> None:
    count = StandstillCount(TICK_SECONDS)
    count.silent(3600.0)
    assert count.seconds == 2.0


def test_a_loop_that_waits_for_its_memory_is_excused() -> None:
    count = StandstillCount(TICK_SECONDS)
    for _ in range(3600):
        count.silent(1.0, excused=True)
    assert count.seconds == 0.0


async def test_a_loop_that_works_is_not_ended_and_leaves_no_thread() -> None:
    ended: list[int] = []
    async with watched(0.5, ended.append):
        for _ in range(100):
            await asyncio.sleep(0.01)
    assert ended == []


@asynccontextmanager
async def listening(address: str) -> AsyncIterator[socket.socket]:
    """What systemd has at the other end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(20)
        yield listener


@pytest.mark.parametrize("is_abstract", [False, True])
async def test_systemd_is_told_of_the_start_the_service_its_life_and_its_end(
    tmp_path: Path, *, is_abstract: bool
) -> None:
    name = f"taskmesh-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    async with listening("\0" + name if is_abstract else name) as listener:
        environment = {
            "NOTIFY_SOCKET": "@" + name if is_abstract else name,
            "WATCHDOG_USEC": "200000",
            "WATCHDOG_PID": str(os.getpid()),
        }
        notifier = Notifier(environment)

        async def told() -> list[str]:
            return (await asyncio.to_thread(listener.recv, 4096)).decode().splitlines()

        async with notifier.kept_up():
            assert sorted([(await told())[0], (await told())[0]]) == [
                "STATUS=starting, or waiting for the broker",
                "WATCHDOG=1",
            ]
            notifier.ready()
            said = [await told(), await told()]
            assert ["READY=1", "STATUS="] in said
            assert ["WATCHDOG=1"] in said
            notifier.stopping(120.0)
            while (last := await told()) == ["WATCHDOG=1"]:
                pass
            assert last == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=150000000"]


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_signs_of_life_are_given_to_who_waits_for_them(environment: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environment).watchdog_seconds == seconds


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/notify", "@nobody-listens", "vsock:2:1234"])
async def test_nobody_who_listens_is_no_error(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    async with notifier.kept_up():
        notifier.ready()
        notifier.stopping(1.0)


def test_a_child_does_not_speak_for_its_parent() -> None:
    environment = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    without_notify(environment)
    assert environment == {"PATH": "/bin"}
