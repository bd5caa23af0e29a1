"""An MCP server as a program that tells its token wherever it can: `python -m tests.support.leaking_mcp`.

Its tools: `give` returns nothing of it; `breaks` names it in the error of the protocol, `fails` in that of the tool,
`odd` in an answer that is none, `dies` says it and ends; `own` returns it as its result.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from tests.support.scripted_mcp import answer_to, tool

TOOLS = ("give", "breaks", "fails", "odd", "dies", "own")
VARIABLES = ("LEAKED_BY_VARIABLE", "LEAKED_BY_FILE")
"""Its tokens, if it is given any."""


def told() -> str:
    """All of its tokens, in a sentence."""
    return " ".join(f"my token is {os.environ[name]}!" for name in VARIABLES if name in os.environ)


def answer(request: dict[str, Any]) -> dict[str, Any] | None:
    """What it answers, or None."""
    name = request["params"]["name"] if request.get("method") == "tools/call" else None
    match name:
        case "breaks":
            return {"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32000, "message": told()}}
        case "fails":
            result: Any = {"isError": True, "content": [{"type": "text", "text": told()}]}
        case "odd":
            result = {"content": [{"type": told(), "text": told()}]}
        case "own":
            result = {"content": [{"type": "text", "text": told()}]}
        case "dies":
            sys.stderr.write(f"Traceback: {told()}")
            sys.stderr.flush()
            os._exit(3)
        case _:
            return answer_to(request, [tool(each) for each in TOOLS], {})
    return {"jsonrpc": "2.0", "id": request["id"], "result": result}


def main() -> None:
    """Serve standard input."""
    sys.stderr.write(f"starting: {told()}\n{json.dumps({'environment': dict(os.environ)})}\n{told() * 20_000}\n")
    sys.stderr.flush()
    for line in sys.stdin:
        answered = answer(json.loads(line))
        if answered is not None:
            sys.stdout.write(json.dumps(answered) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
