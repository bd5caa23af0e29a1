"""Who is behind what is done, and who may approve what somebody has submitted."""

from __future__ import annotations

import pytest

from contracts.actors import (
    OWN_SUBMITTER,
    UNKNOWN_APPROVER,
    UNKNOWN_SUBMITTER,
    by_operator,
    by_rule,
    four_eyes_objection,
    is_person,
    is_proposal,
)
from contracts.fields import BY_CHARACTERS_MAX

ALICE, BOB = "key:aaaaaaaaaaaaaaaa", "jwt:bob"


@pytest.mark.parametrize(
    ("by", "submitters", "objection"),
    [
        (BOB, [ALICE], None),
        (ALICE, [ALICE], OWN_SUBMITTER),
        (ALICE, [BOB, ALICE], OWN_SUBMITTER),
        ("key:front/alice", ["key:front/alice"], OWN_SUBMITTER),
        ("key:front/bob", ["key:front/alice"], None),
        ("key:front", ["key:front/alice"], OWN_SUBMITTER),
        ("key:front/alice", ["key:front"], OWN_SUBMITTER),
        ("key:fronts", ["key:front"], None),
        ("key:front-of-tomorrow/alice", ["key:front/alice"], OWN_SUBMITTER),
        ("key:front-of-tomorrow/bob", ["key:front/alice"], None),
        (BOB, [None], UNKNOWN_SUBMITTER),
        (BOB, ["http"], UNKNOWN_SUBMITTER),
        (BOB, ["critic", None], UNKNOWN_SUBMITTER),
        (BOB, ["critic", ALICE], None),
        (BOB, ["rule:low-stock"], None),
        (by_operator("root", "edge-1"), [ALICE], None),
        ("http", [ALICE], UNKNOWN_APPROVER),
        ("link", [ALICE], UNKNOWN_APPROVER),
        ("taskmesh", [ALICE], UNKNOWN_APPROVER),
        ("critic", [ALICE], UNKNOWN_APPROVER),
        ("rule:low-stock", [ALICE], UNKNOWN_APPROVER),
        ("propose_replay:01jh2v0000000000000000000a.1-0", [ALICE], UNKNOWN_APPROVER),
    ],
)
def test_another_person_than_the_submitter_approves(
    by: str, submitters: list[str | None], objection: str | None
) -> None:
    assert four_eyes_objection(by, submitters) == objection


def test_names_of_callers_are_none_of_the_meshs_own() -> None:
    assert is_person("jwt:critic")
    assert is_person("jwt:rule:x")
    assert not is_person(by_rule("x"))
    assert is_proposal("propose_replay:t.1-0")
    assert not is_proposal("jwt:propose_replay:t.1-0")


def test_the_name_of_an_operator_fits_into_a_command() -> None:
    assert len(by_operator("u" * 300, "h" * 300)) == BY_CHARACTERS_MAX
