"""How a service ends: what its exit status says to whoever supervises it."""

from __future__ import annotations

from typing import Final

STATUS_STOPPED: Final = 0
"""It was told to end."""
STATUS_WRONG_SETTING: Final = 2
"""A setting makes no sense: to start it again would not help."""
STATUS_DRAINED: Final = 3
"""It was told to drain: it is not to be started again."""
STATUS_STOOD_STILL: Final = 4
"""Its loop stood still, and its watchdog has ended it."""
