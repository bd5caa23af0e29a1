"""`python -m tests.api_contract ST [ARGUMENTS]`: start a mesh, and let schemathesis ask it whatever the schema allows.

ST is schemathesis's program; the arguments go to it. Ends with 1 if anything was answered in another way than
openapi.json says, with 5xx, or left a traceback in a log.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.support import children
from tests.support.processes import ROOT, running_mesh

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
DOCUMENT = ROOT / "libs" / "contracts" / "spec" / "openapi.json"
SERVICES = ("ingress", "stream_edge", "steward", "inference_worker", "tool_runner")
EVENTS = "/v1/tasks/{id}/events"
"""The edge's; the ingress sends a client there."""


async def main(program: str, arguments: list[str]) -> int:
    """Both services, one after the other; the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        async with running_mesh(Path(folder), *SERVICES) as mesh:
            failed = [
                name
                for name, url, choice in (
                    ("ingress", mesh.ingress_url, "--exclude-path"),
                    ("stream_edge", mesh.edge_url, "--include-path"),
                )
                if not await _holds(folder, program, url, [choice, EVENTS, *arguments])
            ]
            tracebacks = mesh.tracebacks()
    for each in tracebacks:
        print(each, file=sys.stderr)
    print(f"not as openapi.json says: {', '.join(failed) or 'nothing'}; tracebacks: {len(tracebacks)}")
    return 1 if failed or tracebacks else 0


async def _holds(folder: str, program: str, url: str, arguments: list[str]) -> bool:
    # Where it keeps what it has found is the folder that it runs in.
    command = [program, "--config-file", str(CONFIGURATION), "run", str(DOCUMENT), "--url", url, *arguments]
    process = await children.begin(command, cwd=Path(folder))
    return await process.wait() == 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(str(Path(sys.argv[1]).absolute()), sys.argv[2:])))
