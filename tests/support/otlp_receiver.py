"""An OTLP receiver of a test's own, in a process, and what it has got so far."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import children, otlp_server


class OtlpReceiver:
    """The process. What it got is read from the file that it writes."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "otlp.jsonl"
        self._popen: subprocess.Popen[bytes] | None = None
        self.endpoint = ""

    async def start(self) -> OtlpReceiver:
        """Start, and wait until it serves."""
        self._file.touch()
        self._popen = children.start([sys.executable, otlp_server.__file__, str(self._file)], stdout=children.PIPE)
        assert self._popen.stdout is not None
        port = int(await asyncio.to_thread(self._popen.stdout.readline))
        self.endpoint = f"http://127.0.0.1:{port}"
        return self

    async def stop(self) -> None:
        """End the process."""
        if self._popen is not None:
            self._popen.kill()
            await asyncio.to_thread(self._popen.wait)
            assert self._popen.stdout is not None
            self._popen.stdout.close()

    def spans(self, trace: str | None = None) -> list[dict[str, Any]]:
        """The spans of a trace, or all, in the order in which they came."""
        return [one for one in self._lines("span") if trace is None or one["trace"] == trace]

    def metrics(self, name: str | None = None) -> list[dict[str, Any]]:
        """Every point of a metric, or of all, in the order in which they came."""
        return [one for one in self._lines("metric") if name is None or one["name"] == name]

    def _lines(self, signal: str) -> list[dict[str, Any]]:
        # The last line may be half written.
        lines = [json.loads(line) for line in self._file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in lines if line["signal"] == signal]
