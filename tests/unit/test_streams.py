"""Declarations of streams, buckets and consumers: bounded, consistent, and rendered as they are declared."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from contracts import declarations, streams, subjects
from contracts.declarations import ConsumerDeclaration, StreamDeclaration
from contracts.generate import CONSUMER_CONFIGURATIONS, POOLS, REPOSITORY, STREAM_CONFIGURATIONS
from contracts.streams import BUCKETS, BUILT_IN_TOOLS, STREAMS, consumers

DECLARED: list[StreamDeclaration] = [*STREAMS, *(bucket.as_stream() for bucket in BUCKETS)]
CONSUMERS = consumers(POOLS, BUILT_IN_TOOLS)
BY_NAME = {stream.name: stream for stream in DECLARED}
SERVER_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What is safe as a name on every server and in every file system."""
NANOSECONDS = 1_000_000_000


def rendered(folder: str, name: str) -> dict[str, Any]:
    """A committed configuration."""
    config: dict[str, Any] = json.loads((REPOSITORY / folder / f"{name}.json").read_text(encoding="utf-8"))
    return config


def overlap(one: str, other: str) -> bool:
    """Whether some subject matches both filters."""
    for first, second in itertools.zip_longest(one.split("."), other.split(".")):
        if ">" in (first, second):
            return True
        if first is None or second is None or (first != second and "*" not in (first, second)):
            return False
    return True


def covers(wide: str, narrow: str) -> bool:
    """Whether every subject of `narrow` matches `wide`."""
    wide_tokens, narrow_tokens = wide.split("."), narrow.split(".")
    for position, token in enumerate(wide_tokens):
        if token == ">":
            return len(narrow_tokens) > position
        if position >= len(narrow_tokens) or narrow_tokens[position] == ">":
            return False
        if token not in ("*", narrow_tokens[position]):
            return False
    return len(wide_tokens) == len(narrow_tokens)


@pytest.mark.parametrize("stream", DECLARED, ids=lambda stream: stream.name)
def test_every_stream_has_numeric_limits(stream: StreamDeclaration) -> None:
    config = stream.as_config()
    for limit in ("max_bytes", "max_msg_size", "max_consumers", "duplicate_window"):
        assert config[limit] > 0, limit
    for limit in ("max_msgs", "max_msgs_per_subject"):
        assert config[limit] == -1 or config[limit] > 0, limit
    assert config["max_age"] >= 0
    assert config["max_msg_size"] <= declarations.MESSAGE_BYTES_MAX < config["max_bytes"]
    # JetStream takes no duplicate window longer than the age of the messages.
    assert config["max_age"] == 0 or config["duplicate_window"] <= config["max_age"]


@pytest.mark.parametrize("stream", DECLARED, ids=lambda stream: stream.name)
def test_the_rendered_file_of_a_stream_is_its_declaration(stream: StreamDeclaration) -> None:
    assert rendered(STREAM_CONFIGURATIONS, stream.name) == stream.as_config()


@pytest.mark.parametrize("consumer", CONSUMERS, ids=lambda consumer: f"{consumer.stream}.{consumer.name}")
def test_the_rendered_file_of_a_consumer_is_its_declaration(consumer: ConsumerDeclaration) -> None:
    assert rendered(CONSUMER_CONFIGURATIONS, f"{consumer.stream}.{consumer.name}") == consumer.as_config()


def test_nothing_is_rendered_that_is_not_declared() -> None:
    def names(folder: str) -> set[str]:
        return {path.stem for path in Path(REPOSITORY / folder).glob("*.json")}

    assert names(STREAM_CONFIGURATIONS) == {stream.name for stream in DECLARED}
    assert names(CONSUMER_CONFIGURATIONS) == {f"{consumer.stream}.{consumer.name}" for consumer in CONSUMERS}


def test_names_are_valid_and_different() -> None:
    stream_names = [stream.name for stream in DECLARED]
    consumer_names = [(consumer.stream, consumer.name) for consumer in CONSUMERS]
    assert len(set(stream_names)) == len(stream_names)
    assert len(set(consumer_names)) == len(consumer_names)
    for name in [*stream_names, *(name for _, name in consumer_names)]:
        assert SERVER_NAME.fullmatch(name), name


def test_the_longest_names_still_fit() -> None:
    longest = "p" * 48
    for name in (streams.lane_consumer("TASKS", longest, "normal"), streams.tool_consumer(longest)):
        assert SERVER_NAME.fullmatch(name)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(DECLARED, 2)), ids=lambda stream: stream.name)
def test_no_subject_belongs_to_two_streams(one: StreamDeclaration, other: StreamDeclaration) -> None:
    assert not [pair for pair in itertools.product(one.subjects, other.subjects) if overlap(*pair)]


def test_what_the_builders_build_is_stored_where_it_belongs() -> None:
    task = "0" * 26
    stored = {
        subjects.tasks("default", "high", "acme"): "TASKS",
        subjects.turns("default", "high", "acme"): "TURNS",
        subjects.tools("add"): "TOOLS",
        subjects.control("cancel", "acme"): "CONTROL",
        subjects.journal_log("acme", task): "EVENTS",
        subjects.journal_delta("acme", task): "EVENTS",
        subjects.dead_letter("acme", task): "DEAD_LETTERS",
        subjects.malformed_dead_letter(None): "DEAD_LETTERS",
        f"$KV.tasks.{subjects.task_key('acme', task)}": "KV_tasks",
        f"$KV.workers.{subjects.worker_key('inference_worker-1@a.example')}": "KV_workers",
        f"$KV.lanes.{subjects.lane_key('default', 'high')}": "KV_lanes",
    }
    for subject, name in stored.items():
        homes = [stream.name for stream in DECLARED if any(covers(mine, subject) for mine in stream.subjects)]
        assert homes == [name]
    not_stored = [subjects.lane_statistics("default", "high"), subjects.live("acme", task).replace("*", "log")]
    assert not [
        (subject, stream.name)
        for subject in not_stored
        for stream in DECLARED
        for mine in stream.subjects
        if covers(mine, subject)
    ]


@pytest.mark.parametrize("consumer", CONSUMERS, ids=lambda consumer: f"{consumer.stream}.{consumer.name}")
def test_a_consumer_reads_what_its_stream_holds(consumer: ConsumerDeclaration) -> None:
    stream = BY_NAME[consumer.stream]
    assert any(covers(held, consumer.filter_subject) for held in stream.subjects)


def test_every_message_of_a_work_queue_has_one_consumer() -> None:
    """The server takes no two that overlap; and what none reads would wait for ever."""
    for name in ("TASKS", "TURNS", "TOOLS", "CONTROL"):
        filters = [
            consumer.filter_subject for consumer in consumers(("a", "b-c"), ("x", "y_z")) if consumer.stream == name
        ]
        assert filters
        assert not [pair for pair in itertools.combinations(filters, 2) if overlap(*pair)]
    lanes = {
        (consumer.stream, consumer.filter_subject)
        for consumer in consumers(("a",), ())
        if consumer.stream in ("TASKS", "TURNS")
    }
    assert lanes == {
        (name, f"{name.lower()}.a.{priority}.*") for name in ("TASKS", "TURNS") for priority in subjects.PRIORITIES
    }


@pytest.mark.parametrize("consumer", CONSUMERS, ids=lambda consumer: f"{consumer.stream}.{consumer.name}")
def test_a_consumer_is_bounded_and_has_no_backoff(consumer: ConsumerDeclaration) -> None:
    """A `backoff` list would overwrite ack_wait, and restart heartbeats from the wrong step."""
    config = consumer.as_config()
    assert config["ack_policy"] == "explicit"
    assert config["deliver_policy"] == "all"
    assert config["max_ack_pending"] > 1000
    # What fired, and a signal, lie in no queue that could be swept: they come until they are carried out.
    assert (config["max_deliver"] == -1) == (consumer.stream in ("TIMERS", "SIGNALS"))
    assert config["max_waiting"] > 0
    assert "backoff" not in config
    assert "inactive_threshold" not in config


def test_the_lease_and_the_net_can_be_set() -> None:
    for consumer in consumers(POOLS, BUILT_IN_TOOLS, ack_wait_seconds=0.5, max_deliver=3):
        assert consumer.as_config()["ack_wait"] == NANOSECONDS // 2
        assert consumer.as_config()["max_deliver"] == (-1 if consumer.stream in ("TIMERS", "SIGNALS") else 3)


def test_journals_are_never_evicted_and_never_expire() -> None:
    config = streams.EVENTS.as_config()
    assert config["discard"] == "new"
    assert config["max_age"] == 0
    assert config["max_msgs_per_subject"] == -1
    assert config["allow_direct"] is True
    assert config["republish"] == {"src": "events.>", "dest": "live.events.>"}
    assert "persist_mode" not in config
    assert "allow_msg_ttl" not in config


def test_a_full_lane_refuses_and_started_work_does_not() -> None:
    tasks, turns = streams.TASKS.as_config(), streams.TURNS.as_config()
    assert (tasks["discard"], tasks["discard_new_per_subject"]) == ("new", True)
    assert 0 < tasks["max_msgs_per_subject"] < tasks["max_msgs"]
    assert (turns["max_msgs"], turns["max_msgs_per_subject"], turns["discard_new_per_subject"]) == (-1, -1, False)


@pytest.mark.parametrize("bucket", BUCKETS, ids=lambda bucket: bucket.name)
def test_a_bucket_keeps_one_value_for_each_key(bucket: declarations.BucketDeclaration) -> None:
    config = bucket.as_stream().as_config()
    assert config["name"] == f"KV_{bucket.name}"
    assert config["subjects"] == [f"$KV.{bucket.name}.>"]
    assert config["max_msgs_per_subject"] == 1
    assert config["allow_rollup_hdrs"] is config["deny_delete"] is config["allow_direct"] is True
    assert config["max_age"] == bucket.ttl_seconds * NANOSECONDS


def test_replicas_are_the_only_thing_that_a_cluster_changes() -> None:
    for stream in DECLARED:
        assert {**stream.as_config(3), "num_replicas": 1} == stream.as_config()


@pytest.mark.parametrize("stream", ["EVENTS", "tasks", ""])
def test_lanes_are_on_the_two_streams_of_turns_alone(stream: str) -> None:
    with pytest.raises(ValueError, match="lanes are on TASKS and TURNS"):
        streams.lane_consumer(stream, "default", "high")
