"""How long a dead process stays away, and what its home keeps of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from meshctl.errors import HomeBusy
from meshctl.supervision.home import LOG_BYTES_MAX, LOG_TAIL_LINES, Home
from meshctl.supervision.processes import LIVED_SECONDS, Backoff


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


def test_the_back_off_doubles_from_a_tenth_of_a_second_to_five_seconds() -> None:
    backoff = Backoff()
    delays = [backoff.delay_seconds(lived_seconds=0.01) for _ in range(9)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])


def test_who_lived_long_enough_begins_anew() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.delay_seconds(LIVED_SECONDS - 0.1)
    assert backoff.delay_seconds(LIVED_SECONDS) == pytest.approx(0.1)
    assert backoff.delay_seconds(0.0) == pytest.approx(0.2)


def test_a_log_is_appended_to_until_it_is_too_long(home: Home) -> None:
    def append(data: bytes) -> None:
        descriptor = home.open_log("ingress")
        os.write(descriptor, data)
        os.close(descriptor)

    append(b"one\n")
    append(b"two\n")
    assert home.log_path("ingress").read_bytes() == b"one\ntwo\n"
    with home.log_path("ingress").open("ab") as log:
        log.truncate(LOG_BYTES_MAX + 1)
    append(b"three\n")
    assert home.log_path("ingress").read_bytes() == b"three\n"
    assert (home.logs / "ingress.log.1").stat().st_size == LOG_BYTES_MAX + 1


def test_the_tail_of_a_log_tells_of_this_run_alone(home: Home) -> None:
    assert home.log_tail("steward") == []
    home.log_path("steward").write_text("of yesterday\n")
    since = home.log_size("steward")
    with home.log_path("steward").open("a") as log:
        log.writelines(f"line {number}\n" for number in range(40))
    tail = home.log_tail("steward", since)
    assert len(tail) == LOG_TAIL_LINES
    assert tail[-1] == "line 39"
    assert home.log_tail("steward", since + 1_000_000)[-1] == "line 39"


def test_one_mesh_holds_a_home_at_a_time(home: Home) -> None:
    with home.locked(), pytest.raises(HomeBusy, match=rf"pid {os.getpid()}\) runs on"), Home(home.path).locked():
        pytest.fail("two held the same home")
    with home.locked() as descriptor:
        assert os.get_inheritable(descriptor) is False


def test_the_pids_are_replaced_whole(home: Home) -> None:
    home.write_pids({"ingress": [1], "steward": []})
    home.write_pids({"ingress": [2]})
    assert json.loads(home.pids.read_text()) == {"ingress": [2]}
    home.remove_pids()
    home.remove_pids()
    assert sorted(path.name for path in home.path.iterdir()) == ["logs"]
