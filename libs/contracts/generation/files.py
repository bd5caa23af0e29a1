"""Generated files: compared with what is there, and written again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple


class Drift(NamedTuple):
    """A file that is not what it should be."""

    path: str
    kind: Literal["drifted", "missing", "superfluous"]


def compare(rendered: Mapping[str, str], existing: Mapping[str, str]) -> list[Drift]:
    """What differs between the files as they should be and as they are, by path."""
    drifts: list[Drift] = []
    for path in sorted(rendered.keys() | existing.keys()):
        if path not in existing:
            drifts.append(Drift(path, "missing"))
        elif path not in rendered:
            drifts.append(Drift(path, "superfluous"))
        elif rendered[path] != existing[path]:
            drifts.append(Drift(path, "drifted"))
    return drifts


def read(root: Path, paths: list[Path]) -> dict[str, str]:
    """The files by their path below `root`. Line ends are read as "\\n", as a checkout may have others."""
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def write(root: Path, rendered: Mapping[str, str], drifts: list[Drift]) -> None:
    """Make the files below `root` what they should be; superfluous ones are deleted."""
    for drift in drifts:
        path = root / drift.path
        if drift.kind == "superfluous":
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(rendered[drift.path], encoding="utf-8", newline="\n")


def run(
    program: str,
    render: Callable[[], Mapping[str, str]],
    existing: Callable[[Path], Mapping[str, str]],
    arguments: list[str] | None,
    root: Path,
) -> int:
    """A command that keeps generated files: writes what has drifted, or with `--check` says so; returns its status."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description="Write the generated files.")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if a file is not as it should be")
    check = parser.parse_args(arguments).check
    rendered = render()
    drifts = compare(rendered, existing(root))
    if not check:
        write(root, rendered, drifts)
    for drift in drifts:
        print(f"{drift.kind}: {drift.path}" if check else drift.path)
    if check and drifts:
        print("Write them again with: make schemas", file=sys.stderr)
        return 1
    return 0
