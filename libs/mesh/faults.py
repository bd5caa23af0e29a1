"""Switches that break taskmesh on purpose. For tests only: negative controls that keep the checker honest, and crashes.

`MESH_TEST_SWITCH_OFF` names safeguards, separated by commas: `ack`, `fence`, `message_id`, `watch`, `broker_clock`,
`archive_order`.
A process that starts with one says so in its log at level error. Nothing else reads the variable.

`MESH_TEST_CLOCK` puts this process's wall clock ahead by so many seconds, or names a file that holds them: what is
written there in mid-run is a clock that jumps. Clocks that only go forward are as they were. It is said, too.

`MESH_TEST_POINTS` names a folder. Each point that the process comes to is a line in the file `reached` there, and an
order in the file `crash` is carried out at the point that it names: `<name of the order> <point> <which time, from 1>
<signal> <process id, 0 for this one>`. In place of a signal `block` has the loop of this process stand still, and
`spin` with the interpreter's lock held. The order's file is removed just before. Such a process says so, too.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

SWITCHED_OFF = frozenset(filter(None, os.environ.get("MESH_TEST_SWITCH_OFF", "").split(",")))
ACK_ON = "ack" not in SWITCHED_OFF
FENCE_ON = "fence" not in SWITCHED_OFF
MESSAGE_ID_ON = "message_id" not in SWITCHED_OFF
WATCH_ON = "watch" not in SWITCHED_OFF
BROKER_CLOCK_ON = "broker_clock" not in SWITCHED_OFF
ARCHIVE_ORDER_ON = "archive_order" not in SWITCHED_OFF
"""Whether it is written down where a task is packed before anything of it is purged."""

CLOCK_VARIABLE = "MESH_TEST_CLOCK"
CLOCK_OFF = os.environ.get(CLOCK_VARIABLE, "")

POINTS_VARIABLE = "MESH_TEST_POINTS"
REACHED_FILE = "reached"
ORDER_FILE = "crash"
_STANDSTILL_SECONDS = 3600.0
_NAMED_ELSEWHERE = ("events.", "archive.", "usage.", "$KV.")
"""Subjects of appends, packs and projections, which are points of their own, and of records and counters that no work
hangs on."""


def clock_off_seconds() -> float:
    """How far this process's wall clock is put ahead; 0 but in tests."""
    if not CLOCK_OFF:
        return 0.0
    try:
        return float(CLOCK_OFF)
    except ValueError:
        return float(Path(CLOCK_OFF).read_text())


class _Points:
    """What this process has come to, and where it is to be stopped."""

    def __init__(self, folder: Path) -> None:
        self._order_file = folder / ORDER_FILE
        self._reached = os.open(folder / REACHED_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._order = ""
        self._times = 0

    def reach(self, point: str) -> None:
        os.write(self._reached, f"{time.time():.6f} {os.getpid()} {point}\n".encode())
        try:
            order = self._order_file.read_text()
        except FileNotFoundError:
            return
        if order != self._order:
            self._order, self._times = order, 0
        _, ordered, which, number, pid = order.split()
        self._times += point == ordered
        if point == ordered and self._times == int(which):
            try:
                self._order_file.unlink()
            except FileNotFoundError:
                return  # Another process of the service was a moment sooner.
            if number == "block":
                time.sleep(_STANDSTILL_SECONDS)
            elif number == "spin":
                re.match(r"(a+)+$", "a" * 64 + "b")
            else:
                os.kill(int(pid) or os.getpid(), int(number))


POINTS_ON = bool(os.environ.get(POINTS_VARIABLE))
_points = _Points(Path(os.environ[POINTS_VARIABLE])) if POINTS_ON else None


def reach(kind: str, what: str) -> None:
    """A point at which a test may stop this process: `append:<event type>`, `before-project:<status>`, ….

    Of a subject its first two names are told, of a timer's three: the last of these is its kind.
    """
    if _points is not None and not what.startswith(_NAMED_ELSEWHERE):
        names = 3 if what.startswith("timers.") else 2
        _points.reach(f"{kind}:{what}" if kind == "append" else f"{kind}:{'.'.join(what.split('.')[:names])}")
