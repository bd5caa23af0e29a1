"""docs/failure.md: each command as printed, against a mesh of `meshctl up` whose configuration is the page's own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from contracts.tasks import TaskRequest
from mesh.broker.connection import connect
from mesh.configuration.settings import load_settings
from steward.critic import critics_task
from tests.support import children
from tests.support.agents import Agents
from tests.support.letters import Letters
from tests.support.model_server import DONE, Exchange, chunk, model_server, openai, usage
from tests.support.pages import Page, read_page
from tests.support.waiting import until
from tests.support.walks import PageMesh, Walk, page_mesh

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

PAGE = read_page("docs/failure.md")
WALKS = (PAGE,)
BREAKER = PAGE.section("A provider that is down")
CRITIC = PAGE.section("A critic for dead letters")
VARIES = (r"\d+[smh] ago", r"delay_seconds=0\.\d+")
SINCE = "--since 2026-01-31T00:00:00Z"
MENDED = {"input": "Hello"}


def fragment(page: Page) -> str:
    """What a section says for mesh.toml."""
    [text] = [block.text for block in page.blocks if block.language == "toml"]
    return text


async def critic(exchange: Exchange) -> None:
    """A model that proposes another input for whatever gave up."""
    messages = exchange.body["messages"]
    if messages[-1]["role"] == "tool":
        await openai(exchange, ("So ", "it ", "is."))
        return
    record = json.loads(messages[-1]["content"])
    arguments = {"task": record["task"], "reason": "It asks for a failure.", "edits": MENDED}
    function = {"name": "propose_replay", "arguments": json.dumps(arguments)}
    await exchange.begin()
    await exchange.say(
        chunk({"tool_calls": [{"index": 0, "id": "call_0", "type": "function", "function": function}]}),
        chunk({}, "tool_calls"),
        usage(9, 4),
    )
    await exchange.send(DONE)
    await exchange.end()


@dataclass
class House:
    """The mesh, and what is known of it besides the page."""

    mesh: PageMesh
    agents: Agents
    letters: Letters

    def walk(self, **tables: Any) -> Walk:
        """A reader of the page."""
        return Walk(self.mesh, varies=VARIES, **tables)

    async def of_calls(self, *arguments: dict[str, Any]) -> str:
        """A task whose calls of `add` gave up: its id."""
        return (await self.letters.of_calls("add", *arguments)).state.task

    async def of_turn(self, code: str = "provider-overloaded") -> str:
        """A task whose turn gave up, although it would succeed."""
        return (await self.letters.of_turn(code=code)).state.task

    async def output(self, task: str) -> str:
        """The output of a task, once it is completed."""
        return str(getattr((await self.agents.until_status(task, "completed")).terminal, "output", None))

    def curl(self, path: str, body: str) -> tuple[int, dict[str, Any]]:
        """Status and answer of a POST, by the real curl."""
        command = ["curl", "-s", "-w", "\n%{http_code}", "-H", "Content-Type: application/json", "-d", body]
        url = self.mesh.address("ingress") + path
        posted = children.run_blocking([*command, url])
        assert posted.returncode == 0, posted.stderr
        answer, _, status = posted.stdout.rpartition("\n")
        return int(status), json.loads(answer)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("failure")
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(model_server(critic))
        provider = f'[providers.critic]\nkind = "openai"\nbase_url = "{server.base_url}"\n'
        pool = '[pools.critic]\nprovider = "critic"\nmodel = "m"\n'
        file = folder / "mesh.toml"
        file.write_text(f'{fragment(CRITIC)}pool = "critic"\n{fragment(BREAKER)}{provider}{pool}')
        mesh = stack.enter_context(page_mesh(folder, MESH_CONFIG=str(file)))
        connection = await stack.enter_async_context(connect(load_settings(mesh.environment), "test"))
        yield House(mesh, Agents(connection), Letters(connection))


async def test_a_try_that_fails_is_followed_by_another(house: House) -> None:
    await house.walk().through(PAGE.section("A try that fails"))


async def test_dead_letters_are_looked_at_repaired_and_given_up(house: House) -> None:
    called: list[str] = []
    dropped: list[str] = []
    replayed: list[str] = []

    async def it_gave_up(walk: Walk) -> None:
        await house.agents.until_status(walk.examples.filled("TASK"), "dead_lettered")

    async def a_call_gave_up(walk: Walk) -> None:
        called.append(await house.of_calls({"a": 1, "b": "two"}))
        walk.examples.put("TASK", called[0])

    async def its_calls_gave_up(_: Walk) -> None:
        assert await house.output(called[0]) == "The tools said: 1-0 = 3"
        called.extend([await house.of_calls({"a": 1, "b": 4}) for _ in range(3)])

    async def a_turn_gave_up(walk: Walk) -> None:
        dropped.append(await house.of_turn())
        walk.examples.put("TASK", dropped[-1])

    async def a_turn_waits_for_curl(walk: Walk) -> None:
        replayed.append(await house.of_turn())
        walk.examples.put("TASK", replayed[-1])

    [lists, replays] = [each.text for each in PAGE.section("Many at once").commands]
    [found, shown, tried, as_it_was, given_up] = [each.text for each in PAGE.section("By HTTP").commands]
    shows = {
        'meshctl dead-letters replay TASK --arguments \'{"a": 1, "b": 2}\'': ["TASK goes on: 1-0 (gen 1)"],
        lists: ["tool-error", "add"],
        replays: ["replayed 3, refused 0"],
        "meshctl dead-letters drop TASK": ["TASK will be given up"],
        found: ['"task":"TASK"', '"code":"provider-overloaded"', '"open":true'],
        shown: ['"open":[{"step":"1","gen":0,"code":"provider-overloaded"}]', '"errors":[', '"journal_from":'],
        tried: ['"before":{"input":"hello"}', '"after":{"input":"Hello"}'],
        as_it_was: ['"steps":[{"step":"1","gen":1}]'],
        given_up: ['"id":"TASK"'],
    }
    before = {
        'meshctl dead-letters replay TASK --arguments \'{"a": 1, "b": 2}\'': a_call_gave_up,
        lists: its_calls_gave_up,
        "meshctl dead-letters drop TASK": a_turn_gave_up,
        found: a_turn_waits_for_curl,
        given_up: a_turn_gave_up,
    }
    another = "test_other_versions.py::test_what_only_older_ones_met_is_put_back_once_a_later_one_is_there"
    elsewhere = {each.text: another for each in PAGE.section("Of another version").commands}
    await house.walk(shows=shows, before=before, elsewhere=elsewhere).through(PAGE.section("Dead letters"))
    assert [await house.output(task) for task in called[1:]] == ["The tools said: 1-0 = 5"] * 3
    assert "You said: hello" in await house.output(replayed[0])
    for task in dropped:
        assert "given up" in str(getattr((await house.agents.until_status(task, "cancelled")).terminal, "reason", None))


async def test_the_edits_of_a_call_stand_under_its_id(house: House) -> None:
    [edits] = [block.text for block in PAGE.section("By HTTP").blocks if block.language == "json"]
    task = await house.of_calls({"a": 1, "b": "two"})
    path = f"/v1/dead-letters/{task}/replay"
    for wrong in ({"inputs": "Hello"}, {"pool": "nowhere"}, {"arguments": {"1-0": {"a": "one"}}}):
        status, problem = house.curl(path, json.dumps({"edits": wrong}))
        assert (status, problem["code"]) == (400, "invalid-request")
    assert (await house.agents.state(task)).open_dead_letters != []
    assert house.curl(path, edits)[0] == 202
    assert await house.output(task) == "The tools said: 1-0 = 3"
    status, problem = house.curl(path, "{}")
    assert (status, problem["code"]) == (409, "conflict")


async def test_a_critic_proposes_and_a_person_agrees(house: House) -> None:
    task = await house.of_turn(code="provider-error")
    proposal = critics_task(task, "1", 0)

    async def it_waits(walk: Walk) -> None:
        await house.agents.until_asked(proposal, "1-0")
        walk.examples.put("CRITIC", proposal)

    [waiting, shown, agreed] = [each.text for each in CRITIC.commands]
    shows = {waiting: ["CRITIC"], shown: ["propose_replay", "It asks for a failure.", task], agreed: []}
    await house.walk(shows=shows, before={waiting: it_waits}).through(CRITIC)
    assert "You said: Hello" in await house.output(task)
    state = await house.agents.state(task)
    assert state.request == TaskRequest(input=MENDED["input"])
    assert "So it is." in await house.output(proposal)


async def test_a_provider_that_is_down_is_called_no_more(house: House) -> None:
    posts = BREAKER.commands[-1].text

    async def the_ingress_knows(_: Walk) -> None:
        # It looks at the breakers twice a second. What it has taken before waits in the lane.
        await until(lambda: house.curl("/v1/tasks", '{"input": "Hello", "pool": "fragile"}')[0] == 503)

    await house.walk(before={posts: the_ingress_knows}).through(BREAKER)


async def test_models_that_cant_are_configured_as_the_page_says(house: House) -> None:
    await house.walk().through(PAGE.section("A model that can't"))


async def test_a_task_that_takes_too_much_ends_with_what_there_is(house: House) -> None:
    await house.walk().through(PAGE.section("A task that takes too much"))
