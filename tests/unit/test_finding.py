"""How a command finds a mesh: what it is told outright, then the mesh on MESH_HOME, then the default addresses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.configuration.settings import load_settings
from mesh.errors import SettingsError
from meshctl.errors import MeshctlError, MeshGone
from meshctl.supervision import discovery
from meshctl.supervision.home import Addresses, Home

ELSEWHERE = Addresses("http://127.0.0.1:5080", "http://127.0.0.1:5081", "nats://127.0.0.1:5222")
DEFAULT = ("http://127.0.0.1:8080", "http://127.0.0.1:8081")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home on which no mesh runs."""
    home = Home(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def running(home: Home) -> Iterator[Home]:
    """A home whose mesh holds it, and has said where it is."""
    with home.locked():
        home.write_addresses(ELSEWHERE)
        yield home


def services(home: Home, url: str | None = None, edge_url: str | None = None, **variables: str) -> tuple[str, str]:
    found = discovery.at_services(load_settings({"MESH_HOME": str(home.path), **variables}), url, edge_url)
    return (found.ingress, found.edge)


def broker(home: Home, **variables: str) -> str:
    return discovery.at_broker(load_settings({"MESH_HOME": str(home.path), **variables})).broker_url


def test_without_a_mesh_on_the_home_the_defaults_hold(home: Home) -> None:
    assert services(home) == DEFAULT
    assert broker(home) == "nats://127.0.0.1:4222"


def test_the_mesh_of_the_home_is_found(running: Home) -> None:
    assert services(running) == (ELSEWHERE.ingress_url, ELSEWHERE.edge_url)
    assert broker(running) == ELSEWHERE.nats_url


def test_a_port_0_asks_for_a_free_one_and_names_none(running: Home) -> None:
    free = {"MESH_INGRESS_ADDRESS": "127.0.0.1:0", "MESH_EDGE_ADDRESS": "127.0.0.1:0"}
    assert services(running, **free) == (ELSEWHERE.ingress_url, ELSEWHERE.edge_url)
    assert broker(running, MESH_NATS_PORT="0") == ELSEWHERE.nats_url


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({"url": "http://a"}, ("http://a", ELSEWHERE.edge_url)),
        ({"edge_url": "http://b"}, (ELSEWHERE.ingress_url, "http://b")),
        ({"url": "http://a", "edge_url": "http://b"}, ("http://a", "http://b")),
        ({"MESH_INGRESS_ADDRESS": "127.0.0.1:7080"}, ("http://127.0.0.1:7080", ELSEWHERE.edge_url)),
        ({"MESH_EDGE_ADDRESS": "127.0.0.1:7081"}, (ELSEWHERE.ingress_url, "http://127.0.0.1:7081")),
        ({"MESH_EDGE_PUBLIC_URL": "https://edge/"}, (ELSEWHERE.ingress_url, "https://edge")),
        # Asked for, be it the default itself.
        ({"MESH_INGRESS_ADDRESS": "127.0.0.1:8080", "MESH_EDGE_ADDRESS": "127.0.0.1:8081"}, DEFAULT),
    ],
)
def test_an_address_that_is_named_wins(running: Home, told: dict[str, str], found: tuple[str, str]) -> None:
    assert services(running, **told) == found


@pytest.mark.parametrize(
    ("variable", "value", "found"),
    [
        ("MESH_NATS_URL", "nats://other:4222", "nats://other:4222"),
        ("MESH_NATS_PORT", "4333", "nats://127.0.0.1:4333"),
        ("MESH_NATS_PORT", "4222", "nats://127.0.0.1:4222"),
    ],
)
def test_a_broker_that_is_named_wins(running: Home, variable: str, value: str, found: str) -> None:
    assert broker(running, **{variable: value}) == found


def test_a_mesh_that_was_killed_is_said_and_not_asked(home: Home) -> None:
    with home.locked():
        home.write_addresses(ELSEWHERE)
    with pytest.raises(MeshGone, match=rf"the mesh on {home.path} no longer runs: .* meshctl up, .* --url"):
        services(home)
    with pytest.raises(MeshGone, match=rf"the mesh on {home.path} no longer runs: .* meshctl up, .* --nats-url"):
        broker(home)
    # Who names another one is not told of it.
    assert services(home, "http://a") == ("http://a", DEFAULT[1])
    assert broker(home, MESH_NATS_URL="nats://other:4222") == "nats://other:4222"


def test_a_mesh_that_speaks_tls_is_found_with_its_certificate(home: Home) -> None:
    def certificate(url: str | None = None, **variables: str) -> Path | None:
        settings = load_settings({"MESH_HOME": str(home.path), **variables})
        return discovery.at_services(settings, url, None).certificate

    assert services(home, MESH_TLS_CERT="/c.pem") == ("https://127.0.0.1:8080", "https://127.0.0.1:8081")
    assert (certificate(), certificate(MESH_TLS_CERT="/c.pem")) == (None, Path("/c.pem"))
    with home.locked():
        home.write_addresses(Addresses("https://127.0.0.1:1", "https://127.0.0.1:2", None, "/home.pem"))
        assert services(home) == ("https://127.0.0.1:1", "https://127.0.0.1:2")
        assert certificate() == Path("/home.pem")
        # Who is named by a URL may be another mesh, with another certificate.
        assert certificate("https://127.0.0.1:9") is None


def test_a_broker_with_a_password_has_to_be_named(running: Home) -> None:
    running.write_addresses(Addresses(ELSEWHERE.ingress_url, ELSEWHERE.edge_url))
    assert services(running) == (ELSEWHERE.ingress_url, ELSEWHERE.edge_url)
    with pytest.raises(SettingsError, match=r"MESH_NATS_URL is unset: .* holds a password"):
        broker(running)


def test_a_file_that_is_none_is_one_clear_line(running: Home) -> None:
    running.addresses.write_text("{")
    with pytest.raises(MeshctlError, match=r"can't read .*addresses\.json"):
        services(running)


def test_a_look_at_the_lock_keeps_nobody_out(home: Home) -> None:
    assert not home.is_locked()
    with home.locked():
        assert home.is_locked()
    assert not home.is_locked()
    with home.locked():
        assert home.is_locked()
