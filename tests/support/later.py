"""`python -m tests.support.later SERVICE`: a service of a later version, whose requests may have a field `later`."""

from __future__ import annotations

import json
import runpy
import sys
from typing import Any

from contracts import codec

FIELD = "later"


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(each) for name, each in value.items() if name != FIELD}
    return [_without(each) for each in value] if isinstance(value, list) else value


def main(service: str) -> None:
    """Run the service. Whoever decodes, decodes as a version would that knows the field."""
    as_now = codec.decode

    def decode(payload: bytes, kind: Any, *, whole_numbers: bool = False) -> Any:
        if f'"{FIELD}"'.encode() in payload:
            payload = json.dumps(_without(json.loads(payload))).encode()
        return as_now(payload, kind, whole_numbers=whole_numbers)

    # Before any module that takes it by name is imported.
    codec.decode = decode
    sys.argv = [service]
    runpy.run_module(service, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1])
