"""Points: what a service comes to in a run, and what is done to it, or to the broker, there."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from mesh import faults

SERVICES = {
    "ingress": "ingress",
    "inference_worker": "tests.chaos.worker",
    "tool_runner": "tests.chaos.runner",
    "steward": "steward",
}
"""Service → the module that is run. The stream edge causes nothing: it is followed by a client in every run."""
Fault = Literal["kill", "broker", "pause", "drain"]
"""The process is killed; nats-server is; the process sleeps until another one has taken over, and goes on then; the
process is told to stop, and hands over what it has in hand."""
FAULTS: tuple[Fault, ...] = get_args(Fault)
LEASED = ("inference_worker", "tool_runner", "steward")
"""Services whose work another one takes over."""
DRAINED = ("inference_worker", "tool_runner")
"""Services that hand over steps."""


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """The `which`-th time (from 1) that a service comes to a point of a run, and what is done then."""

    fault: Fault
    service: str
    what: str
    which: int
    held: str = ""
    """A service that sleeps until then, so that it is not faster."""

    @property
    def is_of_archive(self) -> bool:
        """Whether it is come to for the sake of tasks that have ended."""
        return self.what.startswith((*ARCHIVING, *DROPPING, *WALKING))

    def __str__(self) -> str:
        held = f" while {self.held} is held" if self.held else ""
        return f"{self.fault} {self.service} {self.what}#{self.which}{held}"


ARCHIVING = ("before-pack:", "after-pack:", "after-part:", "after-place", "after-purge:")
DROPPING = ("before-drop:", "after-drop:")
WALKING = ("before-walk:", "after-walk:", "after-sweep:")
"""What stewards do with tasks that have ended."""
MOVING = ("before-move:", "after-move:")
"""What the steward that has the lease does with tasks that wait in BACKLOG."""
COUNTING = ("before-count:", "after-count:")
"""What one of the stewards does each second, whatever a run is about: points of the run `ledger` alone."""
BEGUN = "append:task.queued"
"""Who begins a journal is a race: the ingress that has accepted the task, or the worker that claims it."""
HELD = (("ingress", "inference_worker"), ("inference_worker", "ingress"))
"""Who is to win that race, and who is held for it."""


class Reached(NamedTuple):
    """A line of what a process came to; `time` is Unix time in seconds."""

    time: float
    pid: int
    what: str


def read_reached(folder: Path, after: int = 0) -> list[Reached]:
    """What the processes of a service came to, without the first `after` lines."""
    file = folder / faults.REACHED_FILE
    lines = file.read_text().splitlines()[after:] if file.exists() else []
    return [
        Reached(float(moment), int(pid), what)
        for moment, pid, what in (line.split(" ") for line in lines if line.count(" ") == 2)
    ]


def points_of(recordings: Sequence[dict[str, Counter[str]]]) -> list[Point]:
    """All points of a run, by how often each service came to each, in several runs that nobody disturbed.

    Of events there are as many as any run had. Projections in the background, and messages that two send who both saw
    the last result, come and go: there are as many as every run had.
    """
    points: list[Point] = []
    for service in SERVICES:
        counts = [recording[service] for recording in recordings]
        for what in sorted(each for each in set().union(*counts) if not each.startswith(COUNTING)):
            numbers = [count[what] for count in counts]
            often = max(numbers) if what.startswith("append:") and what != BEGUN else min(numbers)
            points += [each for which in range(1, often + 1) for each in _faults_at(service, what, which)]
    for service, held in HELD:
        points += _faults_at(service, BEGUN, 1, held)
    return sorted(points)


def _faults_at(service: str, what: str, which: int, held: str = "") -> Iterator[Point]:
    """Its own death at any point; the other faults at events, around the archive, and around moves."""
    yield Point("kill", service, what, which, held)
    if what.startswith(("append:", *ARCHIVING, *DROPPING, *MOVING)):
        yield Point("broker", service, what, which, held)
        if service in LEASED:
            yield Point("pause", service, what, which, held)
        if service in DRAINED and not held:
            yield Point("drain", service, what, which)


_SIGNALS = {"pause": signal.SIGSTOP, "drain": signal.SIGTERM}


def give_order(folder: Path, name: str, point: Point, broker_pid: int) -> None:
    """Have the process of that folder carry it out. `name` makes the order another one than those before."""
    number = _SIGNALS.get(point.fault, signal.SIGKILL)
    _write_order(folder, name, point.what, point.which, number, broker_pid if point.fault == "broker" else 0)


def order_sleep(folder: Path, name: str, what: str) -> None:
    """Have the process of that folder sleep where it first comes to a point."""
    _write_order(folder, name, what, 1, signal.SIGSTOP, 0)


def _write_order(folder: Path, name: str, what: str, which: int, number: signal.Signals, pid: int) -> None:
    order = folder / faults.ORDER_FILE
    draft = order.with_suffix(".draft")
    draft.write_text(f"{name} {what} {which} {int(number)} {pid}")
    draft.rename(order)


def order_is_open(folder: Path) -> bool:
    """Whether nobody has come to the point of the order."""
    return (folder / faults.ORDER_FILE).exists()


def take_back(folder: Path) -> None:
    """Nobody need come to it any more."""
    (folder / faults.ORDER_FILE).unlink(missing_ok=True)
