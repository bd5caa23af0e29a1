"""docs/clusters.md: its commands as printed, on a new cluster that runs deploy/nats/cluster.conf."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support.deployed import deployed_cluster, with_login
from tests.support.pages import Examples, read_page
from tests.support.terminal import Terminal

pytestmark = pytest.mark.acceptance

PAGE = read_page("docs/clusters.md")
WALKS = (PAGE,)
HOSTS = tuple(f"nats-{number}.example.com:4222" for number in (1, 2, 3))


async def test_a_new_cluster_gets_three_copies_of_all_by_the_pages_commands(tmp_path: Path) -> None:
    async with deployed_cluster(tmp_path / "cluster") as cluster:
        # As the page has it, with the login once: nats://mesh:secret@nats-1…,nats-2…
        first, *others = (node.url.removeprefix("nats://") for node in cluster.nodes)
        url = ",".join([with_login(f"nats://{first}"), *others])
        exported, *commands = PAGE.commands
        assert exported.text == f"export MESH_NATS_URL=nats://mesh:secret@{','.join(HOSTS)}"
        assert [command.text for command in commands] == ["meshctl streams apply", "meshctl doctor"]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MESH_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MESH_NATS_URL": url,
            "MESH_HOME": str(tmp_path / "home"),
            "MESH_CONFIG": os.devnull,
            "NO_COLOR": "1",
        }
        real = dict(zip(HOSTS, (first, *others), strict=True))
        for command in commands:
            terminal = Terminal(["sh", "-c", command.text], environment, tmp_path)
            status = await terminal.run()
            # The doctor misses the services, which nobody has started here.
            assert status == (1 if "doctor" in command.text else 0), terminal.output
            expected = command.output
            assert expected
            for host, address in real.items():
                expected = expected.replace(host, address)
            assert Examples({}).missed(expected, terminal.output) is None, terminal.output
