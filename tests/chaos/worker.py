"""`python -m tests.chaos.worker`: the inference worker, with short waits."""

from __future__ import annotations

from inference_worker.__main__ import main
from mesh.serving.service import run
from tests.chaos.clocks import short_waits

if __name__ == "__main__":
    with short_waits():
        run("inference_worker", main)
