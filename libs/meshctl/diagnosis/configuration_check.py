"""What the doctor says of mesh.toml. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from meshctl.diagnosis.check import Check

SHOWN_MAX = 3


class SeenConfiguration(NamedTuple):
    """What was found. `running` is the digest of what the mesh on MESH_HOME goes by, if one runs there.

    `offered` is that of the file now, absent if it has `mistakes`.
    """

    running: str | None
    offered: str | None
    mistakes: Sequence[str]


def check_configuration(seen: SeenConfiguration) -> Check:
    """Whether a start would find the file that the mesh goes by."""
    if seen.mistakes:
        detail = "; ".join(seen.mistakes[:SHOWN_MAX])
        if seen.running is not None:
            remedy = "the mesh goes on with what it has, and would not start again: meshctl config check"
            return Check("configuration", "warn", detail, remedy)
        return Check("configuration", "fail", detail, "meshctl config check")
    if seen.running is not None and seen.running != seen.offered:
        detail = f"mesh.toml was changed since: the mesh goes by {seen.running}, the file is {seen.offered}"
        return Check("configuration", "warn", detail, "meshctl reload")
    return Check("configuration", "ok", f"is {seen.offered}", "")
