"""The entrance of an HTTP service: its audit log, its limits, links and its door, around an application."""

from __future__ import annotations

from litestar.types import ASGIApp

from mesh.access.audit import audited
from mesh.access.callers import Door, identified
from mesh.access.limits import limited, limits_of
from mesh.access.link_keys import LinkSigning
from mesh.access.links import with_links
from mesh.serving.service import Service


def behind(door: Door, app: ASGIApp, service: Service, signing: LinkSigning) -> ASGIApp:
    """An application that is reached through a door, or by a link, within limits, and whose acts are written down."""
    limits = limits_of(door, service.settings.configuration.auth)
    service.reloading.add(lambda _: None, limits.take)
    return audited(identified(app, limited(with_links(door, signing), limits)), limits.source)
