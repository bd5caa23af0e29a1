"""Orders to reload the configuration, on core NATS, and what each process answers."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

LINES_MAX = 50
LINE_CHARACTERS_MAX = 1_000

Step = Literal["tell", "check", "keep", "undo", "take"]
"""
tell: say which configuration holds.             check: read the file again, and hold what it says for the order's id.
keep: who starts processes from a copy of the file writes it.   undo: it writes the one before.
take: the others go by what they have checked.
"""
Line = Annotated[str, Meta(max_length=LINE_CHARACTERS_MAX)]


class ReloadOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a reload. All steps of one have the same `id`."""

    id: Annotated[str, Meta(min_length=1, max_length=64)]
    step: Step


class ReloadAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a process says to a step.

    `configuration` is the digest of what holds, `offered` of what was checked. `mistakes` are in its file, or in its
    variables for what the file says; `fixed` is what differs and can't change while it runs. `copy` is the copy of a
    file that it reads, or keeps, `<host>:<path>`; absent where it reads the file itself. `secrets_changed`: a secret
    that the file names is another one than it goes by; no digest tells that.
    """

    worker: Annotated[str, Meta(max_length=255)]
    service: Annotated[str, Meta(max_length=64)]
    ok: bool
    configuration: str
    offered: str | None = None
    mistakes: Annotated[list[Line], Meta(max_length=LINES_MAX)] = []
    fixed: Annotated[list[Line], Meta(max_length=LINES_MAX)] = []
    copy: Annotated[str, Meta(max_length=8192)] | None = None
    secrets_changed: bool = False


def lines_of(texts: list[str]) -> list[str]:
    """Lines as an answer may have them."""
    return [text[:LINE_CHARACTERS_MAX] for text in texts[:LINES_MAX]]
