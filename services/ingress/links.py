"""Where a task is, where its events are, and links to these that need no header."""

from __future__ import annotations

from urllib.parse import urlencode

import structlog

from contracts.errors import TaskmeshError
from contracts.links import LINK_QUERY
from contracts.records.status import Links, TaskLink, links_of
from mesh.access.callers import Caller
from mesh.access.link_keys import LinkSigning
from mesh.clock import now
from mesh.configuration.settings import Settings

log = structlog.get_logger("ingress.links")


def task_path(task: str) -> str:
    """Path of a task."""
    return f"/v1/tasks/{task}"


def task_links(settings: Settings, task: str) -> Links:
    """The links of a task, with its events where the edge is."""
    return links_of(task, settings.events_base_url)


async def signed_link(settings: Settings, signing: LinkSigning, caller: Caller, task: str, seconds: int) -> TaskLink:
    """A link to the events of a task that is the caller's tenant's. Raises `BrokerUnavailable`.

    It holds no longer than what the caller has shown: else that would not end when it says.
    """
    until = caller.identity.until
    if until is not None:
        seconds = max(1, min(seconds, int((until - now()).total_seconds())))
    signed = await signing.make(caller.tenant, task, seconds)
    url = f"{task_links(settings, task).events}?{urlencode({LINK_QUERY: signed.token})}"
    return TaskLink(url=url, expires_at=signed.link.expires_at)


async def preferred_link(
    settings: Settings, signing: LinkSigning, caller: Caller, task: str, seconds: int | None
) -> TaskLink | None:
    """The link that a submission prefers to have; None without one, or where the caller may not read.

    A preference is no condition (RFC 7240): the task is accepted, whether or not a link can be made.
    """
    if seconds is None or "read" not in caller.identity.scopes:
        return None
    try:
        return await signed_link(settings, signing, caller, task, seconds)
    except TaskmeshError as error:
        log.warning("link.missing", task=task, tenant=caller.tenant, error=str(error))
        return None
