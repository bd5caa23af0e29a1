"""Variables beside the settings of the mesh: those that `meshctl` itself reads, and those of every process."""

from __future__ import annotations

from typing import Final, NamedTuple

from contracts.build import BUILD_VARIABLE

INGRESS_URL_VARIABLE: Final = "MESH_INGRESS_URL"
EDGE_URL_VARIABLE: Final = "MESH_EDGE_URL"
API_KEY_VARIABLE: Final = "MESH_API_KEY"
API_KEY_FILE_VARIABLE: Final = "MESH_API_KEY_FILE"
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
    Variable(
        API_KEY_VARIABLE,
        "API key, or token",
        "unset",
        "What ingress and edge are shown. Unset: the key that a mesh on MESH_HOME has made there, and that mesh alone.",
    ),
    Variable(API_KEY_FILE_VARIABLE, "path", "unset", "The file that holds it, in its place."),
    Variable(NO_COLOR_VARIABLE, "anything", "unset", "Set, it keeps colours and spinners away."),
)
EVERY_PROCESS: Final = (
    Variable(
        BUILD_VARIABLE,
        "text",
        "a digest of the code",
        "What this build is called, such as the commit that an image was made of: 64 characters at most.",
    ),
)
"""None has a flag: they come with an installation, and no two processes of it have different ones."""
