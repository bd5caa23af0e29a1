"""The entrance of an HTTP service: its audit log, its limits, links and its door, around an application."""

from __future__ import annotations

from typing import cast

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send
from litestar.utils.path import normalize_path

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
    entered = identified(app, limited(with_links(door, signing), limits))
    return with_one_path(audited(entered, limits.source))


def with_one_path(app: ASGIApp) -> ASGIApp:
    """An application that is shown each path as the framework takes it: `/v1/tasks` for `//v1//tasks/`.

    Else the framework would serve what the door has taken for none of its own.
    """

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            path = normalize_path(scope["path"])
            if path != scope["path"]:
                scope = cast("Scope", {**scope, "path": path})
        await app(scope, receive, send)

    return dispatch
