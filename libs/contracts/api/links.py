"""What a client may ask of a link to a task's events: the body of `POST /v1/tasks/{id}/links`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.links import LINK_SECONDS_DEFAULT, LINK_SECONDS_MAX


class LinkRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How long the link is to hold. Unknown fields are refused."""

    expires_in_seconds: Annotated[int, Meta(ge=1, le=LINK_SECONDS_MAX)] = LINK_SECONDS_DEFAULT
