"""How `meshctl` starts: it is called once for each thing that a person wants to know."""

from __future__ import annotations

import subprocess
import sys

SERVERS_OWN = ("litestar", "uvicorn", "mcp")


def test_it_loads_nothing_that_a_server_alone_needs() -> None:
    """Half of the time of every command went to a framework that it does not use."""
    code = "import sys, meshctl.__main__; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "meshctl" in loaded
    assert [name for name in SERVERS_OWN if name in loaded] == []
