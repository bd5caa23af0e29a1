"""What a stream, a consumer and a bucket are as data: `contracts.streams` has those of a mesh."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

ACK_WAIT_SECONDS = 5.0
"""Lease of a step: how long a delivery may go without a heartbeat. MESH_ACK_WAIT_SECONDS overrides it."""
MAX_DELIVER = 10
"""The net under crash loops; tries by policy are fewer (`contracts.retries`). MESH_MAX_DELIVER overrides it."""
DUPLICATE_WINDOW_SECONDS = 600
MESSAGE_BYTES_MAX = 1024 * 1024
"""NATS's own default `max_payload`."""
ACK_PENDING_MAX = 10_000
"""Deliveries in flight in one lane, delayed retries included. The server's default of 1,000 stops a lane early."""
FEW_WAITING_PULLS_MAX = 512
"""The same of consumers that only the steward pulls."""
_NANOSECONDS = 1_000_000_000


class StreamDeclaration(msgspec.Struct, frozen=True, kw_only=True):
    """A stream. Sizes in bytes, times in seconds; -1 is no limit of that kind, and then another kind has one.

    The server reserves `max_bytes` of all streams together against the limit of the account, if that has one. As
    declared they come to 24 GiB (`contracts.sizes`); a mesh replaces them by what its disk and mesh.toml say.
    """

    name: str
    description: str
    subjects: tuple[str, ...]
    retention: Literal["limits", "workqueue"] = "limits"
    discard: Literal["old", "new"] = "old"
    discard_new_per_subject: bool = False
    max_msgs: int = -1
    max_msgs_per_subject: int = -1
    max_bytes: int
    max_age_seconds: float = 0
    max_msg_bytes: int = MESSAGE_BYTES_MAX
    max_consumers: int = 256
    duplicate_window_seconds: float = DUPLICATE_WINDOW_SECONDS
    allow_direct: bool = True
    allow_msg_schedules: bool = False
    allow_msg_ttl: bool = False
    allow_rollup_headers: bool = False
    allow_msg_counter: bool = False
    deny_delete: bool = False
    republish: tuple[str, str] | None = None

    def as_config(self, replicas: int = 1) -> dict[str, Any]:
        """The JSON of a JetStream StreamConfig."""
        config: dict[str, Any] = {
            "name": self.name,
            "description": self.description,
            "subjects": list(self.subjects),
            "retention": self.retention,
            "discard": self.discard,
            "discard_new_per_subject": self.discard_new_per_subject,
            "storage": "file",
            "num_replicas": replicas,
            "max_msgs": self.max_msgs,
            "max_msgs_per_subject": self.max_msgs_per_subject,
            "max_bytes": self.max_bytes,
            "max_age": int(self.max_age_seconds * _NANOSECONDS),
            "max_msg_size": self.max_msg_bytes,
            "max_consumers": self.max_consumers,
            "duplicate_window": int(self.duplicate_window_seconds * _NANOSECONDS),
            "allow_direct": self.allow_direct,
            "allow_rollup_hdrs": self.allow_rollup_headers,
            "deny_delete": self.deny_delete,
        }
        if self.allow_msg_schedules:
            config["allow_msg_schedules"] = True
        if self.allow_msg_ttl:
            config["allow_msg_ttl"] = True
        if self.allow_msg_counter:
            config["allow_msg_counter"] = True
        if self.republish is not None:
            config["republish"] = {"src": self.republish[0], "dest": self.republish[1]}
        return config


class ConsumerDeclaration(msgspec.Struct, frozen=True, kw_only=True):
    """A durable pull consumer with explicit ack. Its `backoff` list stays unset: it would overwrite `ack_wait`."""

    stream: str
    name: str
    filter_subject: str
    ack_wait_seconds: float = ACK_WAIT_SECONDS
    max_deliver: int = MAX_DELIVER
    max_ack_pending: int = ACK_PENDING_MAX
    max_waiting: int = FEW_WAITING_PULLS_MAX
    inactive_threshold_seconds: float = 0
    deliver_policy: Literal["all", "new"] = "all"

    def as_config(self) -> dict[str, Any]:
        """The JSON of a JetStream ConsumerConfig."""
        config: dict[str, Any] = {
            "durable_name": self.name,
            "name": self.name,
            "filter_subject": self.filter_subject,
            "deliver_policy": self.deliver_policy,
            "ack_policy": "explicit",
            "ack_wait": int(self.ack_wait_seconds * _NANOSECONDS),
            "max_deliver": self.max_deliver,
            "max_ack_pending": self.max_ack_pending,
            "max_waiting": self.max_waiting,
        }
        if self.inactive_threshold_seconds:
            config["inactive_threshold"] = int(self.inactive_threshold_seconds * _NANOSECONDS)
        return config


class BucketDeclaration(msgspec.Struct, frozen=True, kw_only=True):
    """A key-value bucket with direct reads, and one value kept for each key."""

    name: str
    description: str
    max_bytes: int
    ttl_seconds: float = 0

    @property
    def stream_name(self) -> str:
        """Name of the stream under the bucket."""
        return f"KV_{self.name}"

    def as_stream(self) -> StreamDeclaration:
        """The stream under the bucket (NATS ADR-8)."""
        return StreamDeclaration(
            name=self.stream_name,
            description=self.description,
            subjects=(f"$KV.{self.name}.>",),
            discard="new",
            max_msgs_per_subject=1,
            max_bytes=self.max_bytes,
            max_age_seconds=self.ttl_seconds,
            # JetStream takes no duplicate window longer than the age of the messages.
            duplicate_window_seconds=min(120.0, self.ttl_seconds) if self.ttl_seconds else 120.0,
            allow_rollup_headers=True,
            deny_delete=True,
        )
