"""What the broker lets this process do: asked for, and learnt from what it refuses.

A right that is missing is seen nowhere else: a refused publish gets no answer, and who may not subscribe just hears
nothing, so that a stream stands still while everything looks well. The broker tells a connection its own lists
(`$SYS.REQ.USER.INFO`); one that does not, or tells none, shows what it refuses when it does so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec
import structlog

from contracts.errors import TaskmeshError
from contracts.permission_lists import Permissions
from contracts.permissions import ROLES, USER_INFO, Role, essentials_of
from contracts.records.status import HealthCheck
from contracts.subject_filters import overlap, within
from contracts.subjects import jetstream_api
from mesh.background import first_of
from mesh.broker.requests import Requests
from mesh.wording import first_few

log = structlog.get_logger("mesh.broker.rights")

Verb = Literal["publish", "subscribe"]

ANSWER_SECONDS_MAX: Final = 2.0
AGAIN_SECONDS: Final = 30.0
"""How often a connection asks for its lists: who changes them at a broker need not break its connections."""
SOON_SECONDS: Final = 5.0
"""The same while something is missing."""
REFUSED_MAX: Final = 64
"""Subjects that are remembered as refused: a stream of a task has one of its own."""
_ACKS: Final = "$JS.ACK."


class Rule(NamedTuple):
    """The lists of a user for one verb. `allow`: None is everything."""

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()

    def allows_some(self, subject: str) -> bool:
        """Whether anything that a filter takes is allowed."""
        allowed = self._names(subject) or any(overlap(subject, each) for each in self.allow or ())
        return allowed and not any(within(subject, each) for each in self.deny)

    def allows_all(self, subject: str) -> bool:
        """Whether the server takes the filter itself: one list entry has to hold all of it."""
        allowed = self._names(subject) or any(within(subject, each) for each in self.allow or ())
        return allowed and not any(overlap(subject, each) for each in self.deny)

    def _names(self, subject: str) -> bool:
        """Whether a subject is allowed as it stands, which a rendered list makes the common case."""
        return self.allow is None or subject in self.allow


class Missing(NamedTuple):
    """Something that the broker's user may not do."""

    verb: Verb
    subject: str


def told(missing: Sequence[Missing]) -> str:
    """What is missing, for people: the first few of each verb; empty if nothing is."""
    by_verb = {verb: [each.subject for each in missing if each.verb == verb] for verb in ("publish", "subscribe")}
    parts = [f"{verb} to {first_few(names)}" for verb, names in by_verb.items() if names]
    return f"the broker's user may not {', nor '.join(parts)}" if parts else ""


class Granted(NamedTuple):
    """What the broker says that a connection may do."""

    publish: Rule = Rule()
    subscribe: Rule = Rule()
    may_respond: bool = False

    def lacks(self, needed: Permissions) -> list[Missing]:
        """What of these is not granted. Pure.

        Of a publish some has to be allowed: lists may be narrowed to some pools, or tenants. A subscription is taken
        whole or not at all.
        """
        refused = [each for each in needed.publish if not self.publish.allows_some(each)]
        acks = [each for each in refused if each.startswith(_ACKS)]
        if acks and (self.may_respond or len(acks) < sum(each.startswith(_ACKS) for each in needed.publish)):
            # One of their forms will do, or the right to answer.
            refused = [each for each in refused if each not in acks]
        not_heard = [each for each in needed.subscribe if not self.subscribe.allows_all(each)]
        return [*(Missing("publish", each) for each in refused), *(Missing("subscribe", each) for each in not_heard)]


class Rights:
    """The rights of one connection, as they were a moment ago."""

    def __init__(self, requests: Requests, role: str) -> None:
        self._requests = requests
        self._role: Role | None = next((each for each in ROLES if each == role), None)
        self._look = asyncio.Event()
        self._tells = True
        """Whether the broker may be asked: a user who may not ask would stand in the server's log each time."""
        self._refused: dict[Missing, None] = {}
        """Since the last connect, in small letters."""
        self._missing: list[Missing] = []
        self.granted: Granted | None = None
        """None while the broker has not told, or will not."""

    @property
    def are_needed(self) -> bool:
        """Whether this is a process with a list of what it needs: of anybody else nothing can be missing."""
        return self._role is not None

    def may_call(self, call: str) -> bool:
        """Whether a call of the JetStream API is allowed, by what is known: True where nothing is."""
        subject = jetstream_api(self._requests.domain_in_rights) + call
        return self.granted is None or self.granted.publish.allows_all(subject)

    def on_refused(self, verb: Verb, subject: str) -> None:
        """The server has refused a subject. It names it in small letters."""
        if subject.lower() == USER_INFO.lower():
            self._tells = False
            return
        refused = Missing(verb, subject.lower())
        # What is refused again and again, maybe a hundred times a second, tells nothing new.
        if refused not in self._refused and len(self._refused) < REFUSED_MAX:
            self._refused[refused] = None
            self._look.set()

    def was_refused(self, verb: Verb, subject: str) -> bool:
        """Whether the server has refused a subject on this connection."""
        return Missing(verb, subject.lower()) in self._refused

    def on_reconnected(self) -> None:
        """All is subscribed anew, as a user who may have got other rights."""
        self._refused.clear()
        self._tells = True
        self._look.set()

    @property
    def missing(self) -> list[Missing]:
        """What this process needs for its work and may not do."""
        return self._missing

    def checks(self) -> list[HealthCheck]:
        """What is not well: empty while nothing is missing."""
        missing = self._missing
        return [HealthCheck(name="rights", ok=False, detail=told(missing))] if missing else []

    async def learn(self) -> None:
        """Ask the broker once."""
        if self._tells:
            with contextlib.suppress(TaskmeshError):
                answer = await self._requests.of_own_server(USER_INFO, timeout_seconds=ANSWER_SECONDS_MAX)
                self.granted = read_granted(answer.data)
        missing = self._find()
        if missing and missing != self._missing:
            log.error(
                "broker.rights_missing", missing=told(missing), remedy="meshctl permissions says what a service needs"
            )
        elif self._missing and not missing:
            log.info("broker.rights_complete")
        self._missing = missing

    def _find(self) -> list[Missing]:
        if self._role is None:
            return []
        essential = essentials_of(self._role, self._requests.domain_in_rights)
        missing = self.granted.lacks(essential) if self.granted is not None else []
        for verb, subject in self._refused:
            needed = essential.publish if verb == "publish" else essential.subscribe
            missing += [Missing(verb, each) for each in needed if overlap(each.lower(), subject)]
        return list(dict.fromkeys(missing))

    async def keep(self) -> None:
        """Ask now and then, and whenever something was refused, until cancelled."""
        while True:
            await first_of(self._look, seconds=SOON_SECONDS if self._missing else AGAIN_SECONDS)
            self._look.clear()
            await self.learn()


def read_granted(payload: bytes) -> Granted | None:
    """The answer of a server on `$SYS.REQ.USER.INFO`; None if it tells nothing. Lists that are not there allow all."""
    try:
        told: dict[str, Any] = msgspec.json.decode(payload, type=dict[str, Any])["data"]
        permissions: dict[str, Any] = told.get("permissions", {})
        return Granted(
            _rule(permissions.get("publish") or {}),
            _rule(permissions.get("subscribe") or {}),
            bool(permissions.get("responses")),
        )
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        return None


def _rule(lists: dict[str, Sequence[str]]) -> Rule:
    allow = lists.get("allow")
    return Rule(tuple(map(str, allow)) if allow else None, tuple(map(str, lists.get("deny") or ())))
