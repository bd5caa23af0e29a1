"""The lists of least rights: what they hold by declaration, what nobody has, and what of them is missing."""

from __future__ import annotations

import json

import pytest

from contracts import guests, subject_filters, subjects
from contracts.errors import InvalidName
from contracts.generation import accounts
from contracts.permission_lists import Permissions, Responses
from contracts.permissions import ROLES, USER_INFO, essentials_of, permissions_of
from contracts.streams import ADVISORIES, BUCKETS, STREAMS
from mesh.broker.rights import Granted, Missing, Rule, read_granted, told

EVERYBODY = {role: permissions_of(role) for role in ROLES}


def _may_publish(permissions: Permissions, subject: str) -> bool:
    return any(subject_filters.overlap(subject, each) for each in permissions.publish)


@pytest.mark.parametrize("stream", [*STREAMS, *(each.as_stream() for each in BUCKETS)], ids=lambda each: each.name)
def test_somebody_may_write_into_each_stream_and_nobody_may_delete_one(stream) -> None:  # type: ignore[no-untyped-def]
    for subject in stream.subjects:
        # Timers that fire, and advisories, are the server's own.
        written_by_server = stream is ADVISORIES or subject == "timers.fired.>"
        writers = [role for role, each in EVERYBODY.items() if _may_publish(each, subject)]
        assert bool(writers) != written_by_server, subject
    for permissions in EVERYBODY.values():
        assert not _may_publish(permissions, f"$JS.API.STREAM.DELETE.{stream.name}")
        assert not _may_publish(permissions, f"$JS.API.STREAM.SNAPSHOT.{stream.name}")


def test_only_who_has_to_may_create_streams_and_consumers() -> None:
    creating = {
        role
        for role, each in EVERYBODY.items()
        if any(".CREATE." in subject or ".UPDATE." in subject for subject in each.publish)
    }
    assert creating == {"steward", "operator", "supervisor", "tool_runner"}
    assert [each for each in EVERYBODY["tool_runner"].publish if "CREATE" in each] == [
        "$JS.API.CONSUMER.DURABLE.CREATE.TOOLS.*"
    ]


def test_only_the_ingress_and_operators_may_decide_on_a_call() -> None:
    assert {role for role, each in EVERYBODY.items() if _may_publish(each, "control.approval.acme")} == {
        "ingress",
        "operator",
    }


def test_only_stewards_and_operators_may_count_what_was_used() -> None:
    counting = {role for role, each in EVERYBODY.items() if _may_publish(each, subjects.USAGE_ALL)}
    assert counting == {"steward", "operator"}
    reading = {role for role, each in EVERYBODY.items() if _may_publish(each, "$JS.API.DIRECT.GET.USAGE")}
    assert reading == {"steward", "operator", "ingress"}


def test_nobody_listens_to_everything_or_to_the_inbox_of_another() -> None:
    for role, permissions in EVERYBODY.items():
        inboxes = [each for each in permissions.subscribe if each.startswith("_INBOX")]
        assert len(inboxes) == 1
        assert not any(each in (">", "*", "$JS.>", "$KV.>") for each in permissions.subscribe), role


@pytest.mark.parametrize("role", ROLES)
def test_no_list_names_a_subject_twice_or_has_one_that_another_entry_holds(role: str) -> None:
    for names in EVERYBODY[role][:2]:  # type: ignore[index]  # one of them
        held = [(one, other) for one in names for other in names if one != other and subject_filters.within(one, other)]
        assert held == []


@pytest.mark.parametrize("role", ROLES)
def test_with_a_domain_each_call_and_each_key_is_in_it_and_nothing_else_changes(role: str) -> None:
    plain, there = EVERYBODY[role], permissions_of(role, domain="hub")  # type: ignore[index,arg-type]  # one of them
    assert not [each for each in there.publish if each.startswith(("$JS.API.", "$KV."))]
    back = [each.replace("$JS.hub.API.$KV.", "$KV.").replace("$JS.hub.API.", "$JS.API.") for each in there.publish]
    assert tuple(back) == plain.publish
    assert there.subscribe == plain.subscribe


def test_what_is_pulled_is_narrowed_to_what_is_served() -> None:
    worker = permissions_of("inference_worker", pools=("gpu",))
    assert _may_publish(worker, "$JS.API.CONSUMER.MSG.NEXT.TASKS.gpu-high")
    assert not _may_publish(worker, "$JS.API.CONSUMER.MSG.NEXT.TASKS.default-high")
    assert not _may_publish(worker, "$JS.ACK.TASKS.default-high.1.1.1.1.1")
    runner = permissions_of("tool_runner", tools=("add",))
    assert _may_publish(runner, "$JS.API.CONSUMER.MSG.NEXT.TOOLS.tool-add")
    assert not _may_publish(runner, "$JS.API.CONSUMER.MSG.NEXT.TOOLS.tool-charge")
    steward = permissions_of("steward", webhooks=("shop",))
    assert _may_publish(steward, "$JS.API.CONSUMER.MSG.NEXT.EVENTS.webhook-shop")
    assert not _may_publish(steward, "$JS.API.CONSUMER.MSG.NEXT.EVENTS.webhook-other")


def test_a_runner_has_its_own_tool_s_consumer_alone_and_decides_nothing() -> None:
    charge = guests.runner(["charge"])
    exported = Permissions(tuple(each.subject for each in charge.imports), ())
    for wrong in (
        "$JS.API.CONSUMER.MSG.NEXT.TOOLS.tool-refund",
        "$JS.ACK.TOOLS.tool-refund.1.1.1.1.1",
        "$JS.API.CONSUMER.CREATE.TOOLS.tool-charge.tools.refund",
        "$JS.API.CONSUMER.CREATE.TOOLS.tool-charge",
        "$JS.API.CONSUMER.DURABLE.CREATE.TOOLS.tool-charge",
        "$KV.tools.refund",
        "tools.refund",
        "tasks.default.normal.acme",
        *(f"control.{kind}.acme" for kind in subjects.CONTROL_KINDS),
    ):
        assert not _may_publish(exported, wrong), wrong
    assert {each.local for each in charge.imports} == set(charge.permissions.publish) - {USER_INFO}
    assert charge.permissions.subscribe == ("_INBOX.>",)


def test_what_two_guests_have_is_exported_once_to_both() -> None:
    both = [guests.runner(["charge"]), guests.runner(["refund", "void"])]
    exports = accounts.export_lines(both)
    subjects_exported = [line.partition(",")[0] for line in exports]
    assert len(subjects_exported) == len(set(subjects_exported))
    assert '  { service: "events.*.*.log", accounts: [ RUNNER_charge, RUNNER_refund ] }' in exports
    assert '  { service: "tools.void", accounts: [ RUNNER_refund ] }' in exports


@pytest.mark.parametrize("name", ["", "a.b", "*", ">", "A", "a b", "a'; rm -rf /; '", 'a"'])
def test_a_name_that_is_none_gets_no_list(name: str) -> None:
    with pytest.raises(InvalidName):
        guests.signals(name)
    for tools in ([name], ["charge", name]):
        with pytest.raises(InvalidName):
            guests.runner(tools)


def test_each_guest_has_an_account_and_a_user_of_its_own() -> None:
    names = ("a", "b", "a-b", "ab", "a--b")
    made = [guests.signals(name) for name in names] + [guests.runner([name]) for name in (*names, "a_b")]
    assert len({each.account for each in made}) == len({each.user for each in made}) == len(made)
    assert guests.signals("acme-2").account == "SIGNALS_ACME_2"


def test_an_empty_list_is_written_as_a_denial_since_it_would_allow_everything() -> None:
    nothing = accounts.User("nobody", Permissions((), ()))
    conf = accounts.users_conf([nothing])
    assert conf.count('deny: [\n      ">"\n    ]') == 2, conf
    assert "allow" not in conf
    assert "--deny-pub '>'" in accounts.nsc_commands([nothing])


def test_each_form_of_a_list_says_the_same() -> None:
    users = accounts.role_users()
    conf, nsc = accounts.accounts_conf(users), accounts.nsc_commands(users)
    for told_user, user in zip(accounts.as_json(users), users, strict=True):
        assert told_user["publish"] == list(user.permissions.publish)
        for subject in (*user.permissions.publish, *user.permissions.subscribe):
            assert json.dumps(subject) in conf
            assert f"'{subject}'" in nsc


# What a connection lacks


GRANTED = Granted(Rule(("events.>", "$JS.API.>")), Rule(("live.events.*.*.log", "_INBOX_x.>")))


@pytest.mark.parametrize(
    ("granted", "needed", "missing"),
    [
        (Granted(), Permissions(("a.b",), ("c.*",)), []),
        (GRANTED, Permissions(("events.*.*.log",), ()), []),
        (GRANTED, Permissions(("tasks.*.*.*",), ()), [Missing("publish", "tasks.*.*.*")]),
        # A publish may be narrowed, a subscription is taken whole or not at all.
        (Granted(Rule(("tasks.gpu.*.*",))), Permissions(("tasks.*.*.*",), ()), []),
        (GRANTED, Permissions((), ("live.events.*.*.*",)), [Missing("subscribe", "live.events.*.*.*")]),
        (GRANTED, Permissions((), ("live.events.*.*.log",)), []),
        (
            Granted(subscribe=Rule(None, ("live.>",))),
            Permissions((), ("live.events.*.*.*",)),
            [Missing("subscribe", "live.events.*.*.*")],
        ),
        (
            Granted(subscribe=Rule(None, ("live.events.acme.>",))),
            Permissions((), ("live.events.*.*.*",)),
            [Missing("subscribe", "live.events.*.*.*")],
        ),
        (Granted(Rule(None, ("tasks.>",))), Permissions(("tasks.*.*.*",), ()), [Missing("publish", "tasks.*.*.*")]),
        (Granted(Rule(None, ("tasks.gpu.>",))), Permissions(("tasks.*.*.*",), ()), []),
        # One form of acknowledgements will do, and so will the right to answer.
        (
            Granted(Rule(("$JS.ACK.T.c.*.*.*.*.*",))),
            Permissions(("$JS.ACK.T.c.*.*.*.*.*", "$JS.ACK.*.*.T.c.*.*.*.*.*"), ()),
            [],
        ),
        (Granted(Rule(("x",)), may_respond=True), Permissions(("$JS.ACK.T.c.*.*.*.*.*",), ()), []),
        (
            Granted(Rule(("x",))),
            Permissions(("$JS.ACK.T.c.*.*.*.*.*",), ()),
            [Missing("publish", "$JS.ACK.T.c.*.*.*.*.*")],
        ),
    ],
)
def test_what_is_not_granted_is_found(granted: Granted, needed: Permissions, missing: list[Missing]) -> None:
    assert granted.lacks(needed) == missing


@pytest.mark.parametrize("role", ROLES)
def test_who_has_a_role_s_list_lacks_nothing_of_it_and_who_has_none_lacks_each_essential(role: str) -> None:
    whole = EVERYBODY[role]  # type: ignore[index]  # one of them
    essential = essentials_of(role)  # type: ignore[arg-type]  # the same
    assert Granted(Rule(whole.publish), Rule(whole.subscribe)).lacks(whole) == []
    assert set(essential.publish) < set(whole.publish)
    assert set(essential.subscribe) <= set(whole.subscribe)
    lacking = Granted(Rule(("nothing",)), Rule(("nothing",))).lacks(essential)
    assert [each.subject for each in lacking] == [*essential.publish, *essential.subscribe]


@pytest.mark.parametrize("role", ["ingress", "stream_edge"])
def test_without_the_right_to_hear_what_is_live_something_is_missing(role: str) -> None:
    """Streams would stand still while everything else looked well."""
    whole = EVERYBODY[role]  # type: ignore[index]  # one of them
    rest = tuple(each for each in whole.subscribe if each != "live.events.*.*.*")
    lacking = Granted(Rule(whole.publish), Rule(rest)).lacks(essentials_of(role))  # type: ignore[arg-type]  # the same
    assert lacking == [Missing("subscribe", "live.events.*.*.*")]


def test_a_broker_s_answer_is_read_and_what_is_none_tells_nothing() -> None:
    lists = b'{"data":{"permissions":{"publish":{"allow":["a"],"deny":["b"]},"subscribe":{},"responses":{"max":1}}}}'
    assert read_granted(lists) == Granted(Rule(("a",), ("b",)), Rule(), may_respond=True)
    assert read_granted(b'{"data":{"user":"x"}}') == Granted()
    for nothing in (
        b"",
        b"[]",
        b"{}",
        b'{"data":[]}',
        b'{"data":{"permissions":[]}}',
        b'{"error":{"code":1}}',
        b"\xff",
    ):
        assert read_granted(nothing) is None, nothing


def test_what_is_missing_is_told_in_one_line() -> None:
    assert told([]) == ""
    assert told([Missing("publish", "a"), Missing("subscribe", "b")]) == (
        "the broker's user may not publish to a, nor subscribe to b"
    )
    assert told([Missing("publish", str(each)) for each in range(9)]).endswith("0, 1, 2, 3 and 5 more")


def test_answers_are_bounded() -> None:
    for role, permissions in EVERYBODY.items():
        assert permissions.allow_responses == (None if role == "operator" else Responses())
