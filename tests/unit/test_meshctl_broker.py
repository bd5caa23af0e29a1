"""The embedded broker: where its program is found, and what its configuration says."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from contracts.sizes import DEFAULT_TOTAL_BYTES
from mesh.broker.embedded import LOGINS
from mesh.configuration.broker_urls import BrokerLogin
from mesh.errors import SettingsError
from meshctl.errors import StartFailed
from meshctl.supervision.broker_logins import User
from meshctl.supervision.embedded_broker import (
    FREE_PORT,
    STORE_BYTES_MAX,
    BrokerConfig,
    check_port,
    check_sync_interval,
    check_version,
    find_program,
    render_config,
    with_memory_limit,
)


def config(port: int = 4222, store: Path = Path("/data/jetstream"), sync_interval: str = "always") -> BrokerConfig:
    return BrokerConfig(port, store, Path("/data/ports"), Path("/data/logs/nats_server.log"), sync_interval)


def program(folder: Path, says: str = "nats-server: v2.15.1") -> Path:
    """A stand-in that answers `--version`."""
    folder.mkdir(exist_ok=True)
    path = folder / "nats-server"
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_it_listens_on_loopback_alone_without_monitoring() -> None:
    text = render_config(config(port=14222))
    assert 'listen: "127.0.0.1:14222"' in text
    assert "http" not in text.replace("HTTP monitoring stays off", "")


def test_every_client_has_to_be_one_of_the_users() -> None:
    user = User("ingress", BrokerLogin("ingress-1", 'se"cret'))
    text = render_config(config()._replace(users=[user]))
    assert (
        'users: [\n    { user: "ingress-1", password: "se\\"cret", permissions: {"publish": {"allow": ['
        in text.replace("authorization {\n  ", "")
    )
    assert '"_INBOX_ingress.>"' in text
    assert "authorization" not in render_config(config())


def test_the_administrator_alone_may_do_everything() -> None:
    users = [User(role, BrokerLogin(f"{role}-1", "x")) for role in LOGINS]
    lines = [line for line in render_config(config()._replace(users=users)).splitlines() if "{ user:" in line]
    assert len(lines) == len(LOGINS)
    assert [line.split('"')[1] for line in lines if "permissions" not in line] == ["admin-1"]


def test_a_free_port_is_the_servers_to_choose() -> None:
    assert 'listen: "127.0.0.1:-1"' in render_config(config(port=FREE_PORT))


def test_every_write_is_synced_by_default_and_the_feature_flag_is_pinned() -> None:
    text = render_config(config())
    assert 'sync_interval: "always"' in text
    assert "js_ack_fc_v2: false" in text


def test_the_server_bounds_no_sum_of_sizes() -> None:
    assert 1024 * DEFAULT_TOTAL_BYTES < STORE_BYTES_MAX
    assert f"max_file_store: {STORE_BYTES_MAX}" in render_config(config())


def test_half_of_the_memory_is_the_servers_unless_somebody_has_set_it() -> None:
    assert with_memory_limit({"PATH": "/bin"}, 1024**3) == {"PATH": "/bin", "GOMEMLIMIT": "536870912B"}
    assert with_memory_limit({"GOMEMLIMIT": "1GiB"}, 1024**3) == {"GOMEMLIMIT": "1GiB"}


def test_a_folders_name_cannot_break_out_of_its_string() -> None:
    text = render_config(config(store=Path('/da ta/"x\\y}/ü')))
    assert 'store_dir: "/da ta/\\"x\\\\y}/ü"' in text


@pytest.mark.parametrize("value", ["always", "1s", "500ms", "2m", "1m30s", "1.5s"])
def test_sync_intervals_that_the_server_takes(value: str) -> None:
    assert check_sync_interval(value) == value


@pytest.mark.parametrize("value", ["", "5", "never", "1 s", "1s\n", 'always" x: "'])
def test_other_sync_intervals_are_wrong_settings(value: str) -> None:
    with pytest.raises(SettingsError, match="MESH_SYNC_INTERVAL"):
        check_sync_interval(value)


def test_the_named_program_comes_first_then_the_path_then_the_wheel(tmp_path: Path) -> None:
    named, on_path, wheel = (program(tmp_path / name) for name in ("named", "path", "wheel"))
    python = str(wheel.parent / "python")
    assert find_program(str(named), str(on_path.parent), python) == named
    assert find_program("nats-server", str(on_path.parent), python) == on_path
    assert find_program(None, str(on_path.parent), python) == on_path
    assert find_program(None, str(tmp_path / "empty"), python) == wheel


def test_a_missing_program_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=r"pip install 'taskmesh-nats\[broker\]'"):
        find_program(None, str(tmp_path), str(tmp_path / "python"))


def test_a_named_program_that_is_missing_is_a_wrong_setting(tmp_path: Path) -> None:
    program(tmp_path / "path")
    with pytest.raises(SettingsError, match="MESH_NATS_SERVER"):
        find_program("nonsense", str(tmp_path / "path"))


@pytest.mark.parametrize("says", ["nats-server: v2.14.0", "nats-server: v2.15.1", "nats-server: v3.0.0-dev", "my own"])
def test_versions_that_will_do(tmp_path: Path, says: str) -> None:
    check_version(program(tmp_path / "bin", says))


def test_an_older_server_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=r"version 2\.12: at least 2\.14"):
        check_version(program(tmp_path / "bin", "nats-server: v2.12.4"))


def test_a_program_that_does_not_run_is_said_so(tmp_path: Path) -> None:
    path = program(tmp_path / "bin")
    path.write_bytes(b"\x00not a program")
    with pytest.raises(StartFailed, match="does not run"):
        check_version(path)


def test_a_taken_port_names_its_setting_and_its_flag() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartFailed) as caught:
            check_port("127.0.0.1", port, "MESH_NATS_PORT", "--nats-port")
    assert str(caught.value) == (
        f"can't listen on 127.0.0.1:{port} (MESH_NATS_PORT): Address already in use."
        " Choose another with --nats-port; port 0 takes a free one"
    )
    check_port("127.0.0.1", port, "MESH_NATS_PORT", "--nats-port")
