"""Which code this is: a digest of it, or the name that whoever built it has given."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

BUILD_VARIABLE: Final = "MESH_BUILD"
DIGITS: Final = 12
NAME_CHARACTERS_MAX: Final = 64
PACKAGES: Final = (
    "contracts",
    "mesh",
    "meshctl",
    "ingress",
    "inference_worker",
    "tool_runner",
    "stream_edge",
    "steward",
)


def digest_of(files: Iterable[tuple[str, bytes]]) -> str:
    """The digest of files, each a name and what it holds: alike for the same files, in whatever order they come."""
    whole = hashlib.sha256()
    for name, content in sorted(files):
        whole.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(content).digest())
    return whole.hexdigest()[:DIGITS]


def _code() -> Iterable[tuple[str, bytes]]:
    # The packages lie beside one another where they are installed, and in two folders of a checkout.
    beside = Path(__file__).parent.parent
    for root in dict.fromkeys((beside, beside.parent / "services")):
        for package in PACKAGES:
            for file in (root / package).rglob("*.py"):
                yield file.relative_to(root).as_posix(), file.read_bytes()


def _build() -> str:
    given = os.environ.get(BUILD_VARIABLE, "")
    name = "".join(character for character in given if character.isprintable())[:NAME_CHARACTERS_MAX].strip()
    return name or digest_of(_code())


BUILD: Final = _build()
"""The build id of this process: `MESH_BUILD` (an image's commit, for one), else 12 hexadecimal digits of its code."""
