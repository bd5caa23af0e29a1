"""Variables that `meshctl` itself reads, beside the settings of the mesh."""

from __future__ import annotations

from typing import Final, NamedTuple

INGRESS_URL_VARIABLE: Final = "MESH_INGRESS_URL"
EDGE_URL_VARIABLE: Final = "MESH_EDGE_URL"
NO_COLOR_VARIABLE: Final = "NO_COLOR"


class Variable(NamedTuple):
    """A variable. `value` says what it holds."""

    name: str
    value: str
    default: str
    description: str


OWN_VARIABLES: Final = (
    Variable(INGRESS_URL_VARIABLE, "URL", "unset", "The ingress that tasks are submitted to; the flag is `--url`."),
    Variable(EDGE_URL_VARIABLE, "URL", "unset", "The edge that streams are read from; the flag is `--edge-url`."),
    Variable(NO_COLOR_VARIABLE, "anything", "unset", "Set, it keeps colours and spinners away."),
)
