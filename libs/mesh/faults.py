"""Switches that break taskmesh on purpose. For tests only: negative controls that keep the checker honest.

`MESH_TEST_SWITCH_OFF` names safeguards, separated by commas: `ack`, `fence`, `message_id`, `watch`. A process that
starts with one says so in its log at level error. Nothing else reads the variable.
"""

from __future__ import annotations

import os

SWITCHED_OFF = frozenset(filter(None, os.environ.get("MESH_TEST_SWITCH_OFF", "").split(",")))
ACK_ON = "ack" not in SWITCHED_OFF
FENCE_ON = "fence" not in SWITCHED_OFF
MESSAGE_ID_ON = "message_id" not in SWITCHED_OFF
WATCH_ON = "watch" not in SWITCHED_OFF
