"""Whether this machine's GPUs have memory left, by NVML, if its Python bindings are installed.

It only holds back growth for servers on this machine that tell nothing of their own cache: one that fills the memory
as it goes, such as Ollama, moves layers to the CPU. Engines that take all of the memory at their start tell of their
cache themselves, and are not judged by this. Source: docs.nvidia.com/deploy/nvml-api, nvmlDeviceGetMemoryInfo.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, Final

FULL: Final = 0.97


def memory_is_full() -> bool:
    """Whether a GPU of this machine has next to no memory left. False where nobody knows."""
    nvml = _nvml()
    if nvml is None:
        return False
    try:
        infos = [
            nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(index))
            for index in range(nvml.nvmlDeviceGetCount())
        ]
    except nvml.NVMLError:
        return False
    return any(info.used >= FULL * info.total for info in infos if info.total)


@cache
def _nvml() -> Any | None:
    """The bindings, ready for use; None without them, or without a driver."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:
        return None
    return nvml
