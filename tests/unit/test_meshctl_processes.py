"""How long a dead process stays away, and what its home keeps of it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from mesh.broker.embedded import LOGINS, read_login
from meshctl.errors import HomeBusy, MeshctlError
from meshctl.supervision import home as home_module
from meshctl.supervision.broker_logins import kept_or_made, successors
from meshctl.supervision.home import LOG_BYTES_MAX, LOG_TAIL_LINES, Addresses, Home
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


def test_a_log_is_rotated_while_its_process_writes(home: Home) -> None:
    descriptor = home.open_log("ingress")
    os.write(descriptor, b"x" * LOG_BYTES_MAX)
    home.rotate_logs(["ingress", "steward"])
    assert home.log_size("ingress") == LOG_BYTES_MAX
    os.write(descriptor, b"one more\n")
    home.rotate_logs(["ingress", "steward"])
    os.write(descriptor, b"after\n")
    os.close(descriptor)
    assert home.log_path("ingress").read_bytes() == b"after\n"
    assert (home.logs / "ingress.log.1").read_bytes() == b"x" * LOG_BYTES_MAX + b"one more\n"


def sizes(home: Home) -> int:
    return sum(path.stat().st_size for path in home.logs.iterdir())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """A bound of all logs that a test can come to quickly."""
    monkeypatch.setattr(home_module, "LOGS_BYTES_MAX", 4 * LOG_BYTES_MAX)
    return 4 * LOG_BYTES_MAX


def test_the_logs_of_many_processes_stay_within_a_bound_together(home: Home, small: int) -> None:
    names = [f"inference_worker-{number}" for number in range(40)]
    for _ in range(4):
        for name in names:
            with home.log_path(name).open("ab") as log:
                log.write(b"x" * (small // 60))
        home.rotate_logs(names)
        assert sizes(home) <= small
    assert all(home.log_path(name).exists() for name in names)


def test_logs_of_places_that_are_gone_go_once_there_are_too_many_the_oldest_first(home: Home, small: int) -> None:
    for number in range(10):
        descriptor = home.open_log(f"inference_worker-{number}")
        os.truncate(descriptor, LOG_BYTES_MAX)
        os.close(descriptor)
        os.utime(home.log_path(f"inference_worker-{number}"), (number, number))
    home.log_path("nats_server").touch()
    os.utime(home.log_path("nats_server"), (0, 0))
    home.rotate_logs(["inference_worker-0"])
    assert sizes(home) == small
    left = {int(path.stem.rpartition("-")[2]) for path in home.logs.glob("inference_worker-*.log")}
    assert left == {0, 7, 8, 9}
    assert home.log_path("nats_server").exists()


@pytest.mark.parametrize("name", ["pids.json", "addresses.json", "logins/steward", "nats.conf", "pids.json.new"])
def test_a_link_in_the_home_is_replaced_and_not_written_through(home: Home, tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("")
    home.create_folder(home.logins)
    (home.path / name).symlink_to(precious)
    home.write_pids({})
    home.write_addresses(Addresses("http://a", "http://b"))
    users = kept_or_made(home)
    assert all(len(user.login.password or "") > 40 for user in users)
    home.write_private(home.nats_config, b"text")
    assert precious.read_text() == ""
    for file in (home.pids, home.addresses, *home.logins.iterdir(), home.nats_config):
        assert not file.is_symlink()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_log_or_a_lock_that_is_a_link_is_an_error(home: Home, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    home.log_path("ingress").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        home.open_log("ingress")
    (home.logs / "steward.log.1").symlink_to(precious)
    home.log_path("steward").write_bytes(b"x" * (LOG_BYTES_MAX + 1))
    home.rotate_logs(["steward"])
    home.lock.symlink_to(precious)
    with pytest.raises(MeshctlError, match="symbolic links"), home.locked():
        pytest.fail("a link was locked")
    assert precious.read_text() == "precious"


def test_logins_are_made_once_and_for_their_owner_alone(home: Home) -> None:
    users = kept_or_made(home)
    assert {user.role for user in users} == set(LOGINS)
    assert len({user.login.password for user in users}) == len(LOGINS)
    assert stat.S_IMODE(home.logins.stat().st_mode) == 0o700
    path = home.logins / "steward"
    path.chmod(0o644)
    assert kept_or_made(home) == users
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("spoilt", ["", "NATS_USER=steward-1", "NATS_USER=admin-1\nNATS_PASSWORD=" + "x" * 40, "\0"])
def test_a_login_that_was_spoilt_is_made_anew_and_no_other(home: Home, spoilt: str) -> None:
    before = {user.role: user for user in kept_or_made(home)}
    (home.logins / "steward").write_text(spoilt)
    after = {user.role: user for user in kept_or_made(home)}
    assert {role for role in LOGINS if before[role] != after[role]} == {"steward"}
    assert read_login(home.logins / "steward") == after["steward"].login


def test_a_successor_has_the_next_number_and_a_secret_of_its_own(home: Home) -> None:
    users = kept_or_made(home)
    new = successors(users)
    assert [user.login.user for user in new] == [f"{role}-2" for role in LOGINS]
    assert not {user.login.password for user in new} & {user.login.password for user in users}
    assert kept_or_made(home) == users, "they are not written down yet"


def test_the_token_of_an_earlier_version_goes(home: Home) -> None:
    (home.path / "broker.token").write_text("old")
    kept_or_made(home)
    assert not (home.path / "broker.token").exists()


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
