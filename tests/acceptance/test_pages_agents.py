"""docs/agents.md, docs/triggers-and-webhooks.md: each command as printed, and what an endpoint is told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from contracts import subjects
from mesh.broker.connection import connect
from mesh.configuration.settings import Settings
from tests.support.pages import read_page
from tests.support.waiting import until
from tests.support.walks import PageMesh, Walk, page_mesh
from tests.support.webhook_receiver import SECRET, WebhookReceiver, webhook_receiver

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

AGENTS = read_page("docs/agents.md")
TRIGGERS = read_page("docs/triggers-and-webhooks.md")
SECTIONS = ("Tools", "Approvals", "Questions and messages", "Sub-tasks", "Conversations", "Limits")
"""Of docs/agents.md: each begins with a task of its own."""
WALKS = (*map(AGENTS.section, SECTIONS), TRIGGERS)
SENT = 'nats pub signals.default.inventory.stock_level_zero \'{"sku": "widget-7", "quantity": 20}\''
"""The page's command that needs the `nats` CLI."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def receiver() -> AsyncIterator[WebhookReceiver]:
    async with webhook_receiver() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(receiver: WebhookReceiver, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PageMesh]:
    """As the page's fragments configure it, but for where the endpoint is."""
    folder = tmp_path_factory.mktemp("mesh")
    webhook, *others = sorted(
        (block.text for block in TRIGGERS.blocks if block.language == "toml" and block.text.startswith("[")),
        reverse=True,
    )
    here = webhook.replace("https://hooks.example.com/taskmesh", receiver.url) + "allow_private = true\n"
    configuration = folder / "mesh.toml"
    configuration.write_text("\n".join([here, *others]))
    with page_mesh(folder, MESH_CONFIG=str(configuration), OPS_WEBHOOK_SECRET=SECRET) as running:
        yield running


async def send(walk: Walk) -> None:
    """What `nats pub` does, by another NATS client."""
    _, _, subject, payload = SENT.split(" ", 3)
    settings = replace(Settings(), nats_url=walk.mesh.address("broker"), home=walk.mesh.home)
    async with connect(settings, "test") as connection:
        assert subject == subjects.signal("default", "inventory.stock_level_zero")
        await connection.requests.publish(subject, payload.strip("'").encode())


@pytest.mark.parametrize("section", SECTIONS)
async def test_every_command_about_agents_does_what_the_page_says(mesh: PageMesh, section: str) -> None:
    await Walk(mesh).through(AGENTS.section(section))


async def test_every_command_about_triggers_does_what_the_page_says(mesh: PageMesh) -> None:
    assert SENT in [command.text for command in TRIGGERS.commands]
    [cycle] = [command.text for command in TRIGGERS.commands if "--name loop" in command.text]
    walk = Walk(
        mesh,
        shows={'echo "whsec_$(openssl rand -base64 32)"': ["whsec_"]},
        statuses={cycle: 1},
        before={"meshctl list --limit 1": send},
    )
    await walk.through(TRIGGERS)


async def test_a_notification_is_as_the_page_shows_it(mesh: PageMesh, receiver: WebhookReceiver) -> None:
    """After the walk, whose tasks have ended."""
    [block] = [block for block in TRIGGERS.blocks if block.language == "json"]
    shown = json.loads(block.text)
    await until(lambda: receiver.ids(shown["type"]) != [])
    told = next(each for each in receiver.received if each.type == shown["type"])
    assert told.valid
    assert told.body.keys() == shown.keys()
    assert told.body["data"].keys() == shown["data"].keys()
    assert told.body["data"]["links"].keys() == shown["data"]["links"].keys()
    assert told.body["data"]["event"].keys() >= shown["data"]["event"].keys()
