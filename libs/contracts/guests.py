"""Programs of others, each in an account of its own: a runner of tools, and who sends a tenant's signals.

An account shares no subject with the mesh's but those that the mesh exports to it, so that a guest hears nothing of the
mesh, and an answer of the mesh goes to the guest's own account alone, whatever subject it asks for it on. As a user in
the mesh's account a runner could have an event of its own making sent to `control.approval.<tenant>`: the broker does
not ask whether who names an answer's subject may publish there (tried with nats-server 2.15.1).

For JetStream a guest names the domain `taskmesh`, as NATS clients call it: each account of a server answers `$JS.API`
itself. What it asks there is taken to the mesh, call by call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from contracts import subjects
from contracts.permission_lists import Lists, Permissions
from contracts.permissions import USER_INFO
from contracts.streams import DEAD_LETTERS, EVENTS, TOOLS, TOOLS_BUCKET, TURNS, tool_consumer

DOMAIN: Final = "taskmesh"
"""What a guest names as JetStream's domain (MESH_NATS_DOMAIN)."""
_CALLS: Final = subjects.jetstream_api(DOMAIN)
_STREAMED: Final = ("CONSUMER.MSG.NEXT.", "DIRECT.GET.")
"""Calls that are answered by more than one message."""


class Import(NamedTuple):
    """A subject of the mesh's that an account has, and what it is called there."""

    subject: str
    local: str

    @property
    def is_streamed(self) -> bool:
        """Whether one request may have many answers."""
        return any(call in self.subject for call in _STREAMED)


class Guest(NamedTuple):
    """A program of others: its user, the account that it is alone in, and what of the mesh there is in it."""

    user: str
    account: str
    imports: tuple[Import, ...]

    @property
    def permissions(self) -> Permissions:
        """What the user may do in its account: no more than what is imported."""
        return Permissions((USER_INFO, *(each.local for each in self.imports)), ("_INBOX.>",))


def runner(tools: Sequence[str], *, domain: str | None = None) -> Guest:
    """A program that serves these tools (PROTOCOL.md, "Serving a tool"), named after the first.

    It can decide on no call, and pulls and creates the consumers of its tools alone: a consumer's filter is part of the
    subject that creates it. It reads and writes journals of all tasks, as each append is fenced by all before it.
    `domain`: that of the mesh's JetStream, if MESH_NATS_DOMAIN is set there. Raises `InvalidName`.
    """
    lists = Lists(domain)
    for tool in tools:
        consumer = tool_consumer(tool)
        lists.pull(TOOLS.name, consumer)
        lists.call(
            f"CONSUMER.INFO.{TOOLS.name}.{consumer}",
            f"CONSUMER.CREATE.{TOOLS.name}.{consumer}.{subjects.tools(tool)}",
        )
        lists.write(TOOLS_BUCKET, tool)
        lists.publish(subjects.tools(tool))
    lists.read(EVENTS.name)
    lists.publish("events.*.*.log", "events.*.*.delta", *TURNS.subjects, *DEAD_LETTERS.subjects)
    lists.publish("timers.at.retry.*.*.*")
    imports = [Import(subject, _local(subject)) for subject in lists.made().publish]
    # By its plain name, too: a client that knows no domains of buckets writes there.
    imports += [Import(f"$KV.{TOOLS_BUCKET.name}.{tool}", f"{_CALLS}$KV.{TOOLS_BUCKET.name}.{tool}") for tool in tools]
    return Guest(f"runner_{tools[0]}", f"RUNNER_{tools[0]}", tuple(imports))


def _local(subject: str) -> str:
    prefix, api, call = subject.partition(".API.")
    return _CALLS + call if api and prefix.startswith("$JS") else subject


def signals(tenant: str) -> Guest:
    """A program that sends a tenant's signals, and may do nothing else. Raises `InvalidName`."""
    subject = f"signals.{subjects.check_tenant(tenant)}.>"
    account = f"SIGNALS_{tenant.upper().replace('-', '_')}"
    return Guest(f"signals_{tenant}", account, (Import(subject, subject),))
