"""The generated files of the wire: `python -m contracts.generate` writes them, `--check` says which have drifted.

Everything here is rendered from the types and declarations of this library, so that a reader without Python has
the same. The folders of `FOLDERS` hold nothing else that ends in `.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from contracts.generation import accounts, files
from contracts.generation.openapi import openapi
from contracts.generation.schemas import schemas
from contracts.streams import BUCKETS, BUILT_IN_TOOLS, STREAMS, consumers

REPOSITORY = Path(__file__).resolve().parents[2]
SCHEMAS = "libs/contracts/spec/schemas"
OPENAPI = "libs/contracts/spec/openapi.json"
STREAM_CONFIGURATIONS = "deploy/nats/streams"
CONSUMER_CONFIGURATIONS = "deploy/nats/consumers"
ACCOUNTS = "deploy/nats"
"""Least rights: `accounts.conf` and `accounts.nsc.sh`."""
FOLDERS = (SCHEMAS, STREAM_CONFIGURATIONS, CONSUMER_CONFIGURATIONS)

POOLS = ("default",)
"""The pool that is there without a configuration file."""


def render() -> dict[str, str]:
    """Every generated file: its path from the repository's root, and its text."""
    contents: dict[str, Any] = {f"{SCHEMAS}/{name}.json": schema for name, schema in schemas().items()}
    contents[OPENAPI] = openapi()
    for stream in (*STREAMS, *(bucket.as_stream() for bucket in BUCKETS)):
        contents[f"{STREAM_CONFIGURATIONS}/{stream.name}.json"] = stream.as_config()
    for consumer in consumers(POOLS, BUILT_IN_TOOLS):
        contents[f"{CONSUMER_CONFIGURATIONS}/{consumer.stream}.{consumer.name}.json"] = consumer.as_config()
    texts = {path: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for path, content in contents.items()}
    return texts | {f"{ACCOUNTS}/{name}": text for name, text in accounts.files().items()}


def existing(root: Path) -> dict[str, str]:
    """The generated files as they are below `root`."""
    paths = [path for folder in FOLDERS for path in (root / folder).glob("*.json")]
    return files.read(root, [*paths, *root.glob(OPENAPI), *(root / ACCOUNTS).glob("accounts.*")])


def main(arguments: list[str] | None = None, root: Path = REPOSITORY) -> int:
    """Run the command; returns its exit status."""
    return files.run("contracts.generate", render, existing, arguments, root)


if __name__ == "__main__":
    sys.exit(main())
