"""The door that takes signed links to a task's events."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from litestar.types import HTTPScope

from contracts.access import Scope
from contracts.actors import BY_LINK
from contracts.links import LINK_QUERY, LinkInvalid
from contracts.subjects import TASK_PATTERN
from mesh.access.callers import Door, Identity
from mesh.access.link_keys import LinkSigning

_EVENTS = re.compile(rf"/v1/tasks/({TASK_PATTERN})/events")
_READ: frozenset[Scope] = frozenset({"read"})


def with_links(door: Door, links: LinkSigning) -> Door:
    """A door that takes links, too. A request for a task's events that shows one goes by that alone."""

    async def through(scope: HTTPScope) -> Identity:
        match = _EVENTS.fullmatch(scope["path"]) if scope["method"] == "GET" else None
        tokens = _tokens(scope) if match is not None else None
        if match is None or not tokens:
            return await door(scope)
        if len(tokens) > 1:
            raise LinkInvalid("there is more than one link")
        link = await links.check(tokens[0], match[1])
        return Identity(BY_LINK, link.tenant, _READ, until=link.expires_at)

    return through


def _tokens(scope: HTTPScope) -> list[str]:
    query = scope["query_string"].decode("latin-1")
    if LINK_QUERY not in query:
        return []
    return parse_qs(query, keep_blank_values=True).get(LINK_QUERY, [])
