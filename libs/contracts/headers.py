"""NATS header names that taskmesh sets or reads, and the HTTP headers of its API."""

from __future__ import annotations

MESSAGE_ID = "Nats-Msg-Id"
EXPECTED_LAST_SUBJECT_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
SEQUENCE = "Nats-Sequence"
SUBJECT = "Nats-Subject"
STREAM = "Nats-Stream"
TIME_STAMP = "Nats-Time-Stamp"
NUM_PENDING = "Nats-Num-Pending"
LAST_SEQUENCE = "Nats-Last-Sequence"
STATUS = "Status"
"""nats-py's name for the number in a status line such as `NATS/1.0 404 Message Not Found`."""
DESCRIPTION = "Description"
TRACEPARENT = "traceparent"
"""W3C trace context, on every work message and on every milestone of a journal."""

HTTP_TENANT = "Mesh-Tenant"
HTTP_IDEMPOTENCY_KEY = "Idempotency-Key"
HTTP_PREFER = "Prefer"
HTTP_LAST_EVENT_ID = "Last-Event-ID"
