"""Who is behind what is done: the names that stand as `by` in commands, journals and the audit log."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from contracts.fields import BY_CHARACTERS_MAX
from contracts.subjects import CALL_PATTERN, TASK_PATTERN

BY_HTTP: Final = "http"
"""A caller who is nobody by name: what is known is that it came over HTTP."""
BY_LINK: Final = "link"
"""Who has a link: they only read."""
BY_MESH: Final = "taskmesh"
"""A command that nobody gave: a parent's end, the clock."""
BY_CRITIC: Final = "critic"
_RULE: Final = "rule:"
_OPERATOR: Final = "operator:"
_PROPOSAL: Final = "propose_replay:"
_PROPOSED: Final = re.compile(rf"{_PROPOSAL}({TASK_PATTERN})\.({CALL_PATTERN})(?:\.g[0-9]+)?")
_KEY: Final = "key:"

OWN_SUBMITTER: Final = (
    "who has submitted a task, or has told it something, may not approve its calls: another person has to"
)
UNKNOWN_APPROVER: Final = (
    "another person has to approve this, and nobody knows who asks: it takes [auth] mode keys or jwt"
)
UNKNOWN_SUBMITTER: Final = (
    "another person than the submitter has to approve this, and nobody knows who submitted the task, or spoke to it"
)


def by_rule(rule: str) -> str:
    """Who has submitted the tasks of a trigger rule."""
    return f"{_RULE}{rule}"


def by_operator(user: str, host: str) -> str:
    """Who has used `meshctl` at the broker itself. It is what their machine says of them, and no proof."""
    return f"{_OPERATOR}{user}@{host}"[:BY_CHARACTERS_MAX]


def is_proposal(by: str) -> bool:
    """Whether a replay was proposed by an agent's call: whoever has approved the call was asked."""
    return by.startswith(_PROPOSAL)


def proposing_call(by: str) -> tuple[str, str] | None:
    """The task and the call that a replay was proposed by; None of any other name."""
    match = _PROPOSED.fullmatch(by)
    return (match[1], match[2]) if match is not None else None


def is_person(by: str) -> bool:
    """Whether a name tells one person from another, and is none that the mesh gives itself."""
    return by not in (BY_HTTP, BY_LINK, BY_MESH, BY_CRITIC) and not by.startswith((_RULE, _PROPOSAL))


def _may_be_one(by: str, other: str) -> bool:
    """Whether two names may be those of one person. A front door's is `<front door>/<person>`, or its own alone.

    A person's name at two keys is one: when a front door's key is rotated, its people stay who they are.
    """
    person, another = (name.partition("/")[2] if name.startswith(_KEY) else "" for name in (by, other))
    if person and person == another:
        return True
    return by == other or by.startswith(f"{other}/") or other.startswith(f"{by}/")


def four_eyes_objection(by: str, submitters: Iterable[str | None]) -> str | None:
    """Why somebody may not approve what these have submitted; None if they may.

    None among the submitters is one that nobody knows, who may be anybody.
    """
    if not is_person(by):
        return UNKNOWN_APPROVER
    others = set(submitters)
    if any(other is not None and _may_be_one(by, other) for other in others):
        return OWN_SUBMITTER
    return UNKNOWN_SUBMITTER if others & {None, BY_HTTP} else None
