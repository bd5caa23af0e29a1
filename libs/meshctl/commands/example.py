"""`meshctl example`: the file that shows every setting of mesh.toml, and where it lies with what else comes along."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

import meshctl
from meshctl.errors import MeshctlError

EXAMPLE: Final = "mesh.example.toml"


def add_commands(commands: Any) -> None:
    """Register `example`."""
    text = (
        f"Print {EXAMPLE}, which shows every setting of mesh.toml: meshctl example > mesh.toml. It lies in"
        f" {folder()}, and so does deploy/: files for a NATS of your own, and a guide for who operates it."
    )
    parser = commands.add_parser("example", help="print an example of mesh.toml", description=text.replace("%", "%%"))
    parser.add_argument("--where", action="store_true", help=f"print the folder that holds {EXAMPLE} and deploy/")
    parser.set_defaults(run=_run_example)


def folder() -> Path:
    """The folder that holds mesh.example.toml and deploy/: the wheel's copy, else the checkout's own."""
    package = Path(meshctl.__file__).parent
    copy = package / "files"
    return copy if copy.is_dir() else package.parents[1]


def _run_example(arguments: argparse.Namespace) -> int:
    if arguments.where:
        print(folder())
        return 0
    try:
        text = (folder() / EXAMPLE).read_bytes()
    except OSError as error:
        raise MeshctlError(f"can't read {folder() / EXAMPLE}: {error.strerror or error}") from None
    # The very bytes: they are to become a file.
    sys.stdout.buffer.write(text)
    return 0
