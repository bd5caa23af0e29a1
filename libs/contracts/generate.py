"""The generated files of the wire: `python -m contracts.generate` writes them, `--check` says which have drifted.

Everything here is rendered from the types and declarations of this library, so that a reader without Python has
the same. The folders of `FOLDERS` hold nothing else that ends in `.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from contracts.generation.openapi import openapi
from contracts.generation.schemas import schemas
from contracts.streams import BUCKETS, BUILT_IN_TOOLS, STREAMS, consumers

REPOSITORY = Path(__file__).resolve().parents[2]
SCHEMAS = "libs/contracts/spec/schemas"
OPENAPI = "libs/contracts/spec/openapi.json"
STREAM_CONFIGURATIONS = "deploy/nats/streams"
CONSUMER_CONFIGURATIONS = "deploy/nats/consumers"
FOLDERS = (SCHEMAS, STREAM_CONFIGURATIONS, CONSUMER_CONFIGURATIONS)

POOLS = ("default",)
"""The pool that is there without a configuration file."""


class Drift(NamedTuple):
    """A file that is not what it should be."""

    path: str
    kind: Literal["drifted", "missing", "superfluous"]


def render() -> dict[str, str]:
    """Every generated file: its path from the repository's root, and its text."""
    files: dict[str, Any] = {f"{SCHEMAS}/{name}.json": schema for name, schema in schemas().items()}
    files[OPENAPI] = openapi()
    for stream in (*STREAMS, *(bucket.as_stream() for bucket in BUCKETS)):
        files[f"{STREAM_CONFIGURATIONS}/{stream.name}.json"] = stream.as_config()
    for consumer in consumers(POOLS, BUILT_IN_TOOLS):
        files[f"{CONSUMER_CONFIGURATIONS}/{consumer.stream}.{consumer.name}.json"] = consumer.as_config()
    return {path: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for path, content in files.items()}


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


def read(root: Path) -> dict[str, str]:
    """The generated files as they are below `root`. Line ends are read as "\\n", as a checkout may have others."""
    paths = [path for folder in FOLDERS for path in (root / folder).glob("*.json")]
    if (root / OPENAPI).exists():
        paths.append(root / OPENAPI)
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


def main(arguments: list[str] | None = None, root: Path = REPOSITORY) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m contracts.generate", description="Write the generated files.")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if a file is not as it should be")
    check = parser.parse_args(arguments).check
    rendered = render()
    drifts = compare(rendered, read(root))
    if not check:
        write(root, rendered, drifts)
    for drift in drifts:
        print(f"{drift.kind}: {drift.path}" if check else drift.path)
    if check and drifts:
        print("Write them again with: make schemas", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
