"""The mesh that runs on a MESH_HOME, as another process finds it.

An address that was asked for, by a flag or a variable, holds. Without one it is that of the mesh on MESH_HOME, and
where there is none, the default. So a second terminal finds a mesh on free ports without being told where it is.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from mesh.broker import embedded
from mesh.configuration.mesh_toml import DEFAULT_FILE, load_configuration
from mesh.configuration.settings import Settings
from mesh.errors import SettingsError
from meshctl.errors import MeshGone
from meshctl.supervision.home import Addresses, Home

_SYNC_INTERVAL: Final = re.compile(r'^\s*sync_interval: "([^"]*)"$', re.MULTILINE)


class ServiceUrls(NamedTuple):
    """Where the two services of a mesh that speak HTTP are."""

    ingress: str
    edge: str
    certificate: Path | None = None
    """The file of the certificate that is theirs, if they are those of a mesh of this machine that speaks TLS."""


def running_addresses(home: Home, flag: str) -> Addresses | None:
    """Where the mesh that runs on this home answers; None if none runs. `flag` is the one that names another mesh.

    Raises `MeshGone` if it was killed.
    """
    found = home.read_addresses()
    if found is not None and not home.is_locked():
        raise MeshGone(
            f"the mesh on {home.path} no longer runs: start it again with meshctl up, or name another with {flag}"
        )
    return found


def running_url(home: Home) -> str | None:
    """Where the embedded broker of this home listens; None if none runs. It says so itself, before all is ready."""
    return next((f"nats://{embedded.HOST}:{port}" for port in embedded.ports(home.path)), None)


def at_broker(settings: Settings) -> Settings:
    """Settings with the broker's URL: as given, else of the mesh that runs on MESH_HOME, else the default.

    Raises `MeshGone`, and `SettingsError` if that mesh uses a broker whose URL is not written down.
    """
    if settings.nats_url is not None or (settings.nats_port and settings.is_given("nats_port")):
        return settings
    home = Home(settings.home)
    url = running_url(home)
    if url is None:
        found = running_addresses(home, "--nats-url")
        if found is not None and found.nats_url is None:
            raise SettingsError(
                f"MESH_NATS_URL is unset: the mesh on {home.path} uses a broker whose URL holds a password, so name it"
            )
        url = found.nats_url if found is not None else settings.broker_url
    return replace(settings, nats_url=url)


def running_configuration(settings: Settings) -> Settings | None:
    """Settings with the configuration that the mesh on MESH_HOME goes by; None if none runs there, or keeps one.

    For who has to know what a mesh is like: mesh.toml may have been changed since, and may be wrong by now.
    """
    home = Home(settings.home)
    if not home.is_locked() or not home.configuration.exists():
        return None
    configuration = load_configuration(home.configuration)
    source = str(settings.config or DEFAULT_FILE)
    return replace(settings, configuration=msgspec.structs.replace(configuration, source=source))


def at_services(settings: Settings, ingress_url: str | None, edge_url: str | None) -> ServiceUrls:
    """Where ingress and edge are: each as given, else of the mesh that runs on MESH_HOME, else the default.

    `ingress_url`, `edge_url`: what a flag or a variable says outright. Raises `MeshGone`.
    """
    is_named = ingress_url is not None
    if ingress_url is None and settings.ingress_address.port and settings.is_given("ingress_address"):
        ingress_url = f"{settings.scheme}://{settings.ingress_address}"
    if edge_url is None and (
        settings.edge_public_url is not None or (settings.edge_address.port and settings.is_given("edge_address"))
    ):
        edge_url = settings.events_base_url
    found = None
    if ingress_url is None or edge_url is None:
        try:
            found = running_addresses(Home(settings.home), "--url")
        except MeshGone:
            # Whoever names an ingress asks another mesh.
            if ingress_url is None:
                raise
    if found is None:
        certificate = str(settings.tls_cert) if settings.tls_cert is not None else None
        found = Addresses(
            f"{settings.scheme}://{settings.ingress_address}", settings.events_base_url, tls_cert=certificate
        )
    # Whoever is named outright may be another mesh, with another one.
    shown = settings.tls_cert if found.tls_cert is None or is_named else Path(found.tls_cert)
    return ServiceUrls(ingress_url or found.ingress_url, edge_url or found.edge_url, shown)


def operator_key(settings: Settings, urls: ServiceUrls) -> str | None:
    """The key of the mesh that runs on MESH_HOME, if these are its addresses: nobody else is shown it."""
    home = Home(settings.home)
    found = home.read_addresses()
    if found is None or (urls.ingress.rstrip("/"), urls.edge.rstrip("/")) != (found.ingress_url, found.edge_url):
        return None
    return home.read_operator_key()


def sync_interval(home: Home) -> str | None:
    """What the embedded broker's configuration says; None if it can't be read."""
    try:
        match = _SYNC_INTERVAL.search(home.nats_config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return match[1] if match else None
