"""deploy/nats: the configuration is the one that `meshctl up` uses, and the guide speaks of what is there."""

from __future__ import annotations

import re
from pathlib import Path

from contracts.streams import BUCKETS, BUILT_IN_TOOLS, STREAMS, consumers
from meshctl.supervision.embedded_broker import BrokerConfig, render_config

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "nats"
GUIDE = (DEPLOY / "README.md").read_text()
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def settings_of(configuration: str) -> list[str]:
    """Its lines without comments and blank ones."""
    return [line for line in configuration.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def test_the_edge_configuration_is_what_meshctl_renders() -> None:
    home = Path("/var/lib/taskmesh")
    rendered = render_config(
        BrokerConfig(
            port=4222, store=home / "jetstream", ports=home, log=home / "nats_server.log", sync_interval="always"
        )
    )
    assert settings_of((DEPLOY / "edge.conf").read_text()) == settings_of(rendered)


def test_every_stream_consumer_bucket_and_file_that_the_guide_names_is_there() -> None:
    streams = {stream.name for stream in STREAMS}
    by_stream = {(consumer.stream, consumer.name) for consumer in consumers(("default",), BUILT_IN_TOOLS)}
    buckets = {bucket.name for bucket in BUCKETS}
    assert COMMANDS
    for command in COMMANDS:
        words = command.split()
        assert words[0] == "nats"
        for word in words:
            if re.fullmatch("[A-Z_]{2,}", word) and word != "TASK":
                assert word in streams, command
            if word.startswith("deploy/"):
                assert (DEPLOY.parents[1] / word).is_file(), command
        if words[1:3] == ["consumer", "info"]:
            assert (words[3], words[4]) in by_stream, command
        if words[1] == "kv":
            assert words[3] in buckets, command
