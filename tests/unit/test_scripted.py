"""The scripted model: its tokens, and what it does in a try."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.journal.parts import Usage
from contracts.tasks import Message
from inference_worker.dialects.scripted.model import Pace, ScriptedProvider
from inference_worker.dialects.scripted.script import Failure, Halfway, Hang, Rate, Say, Script, Text
from inference_worker.models.chunks import Finished, RequestedCall, TextDelta, TurnInput
from inference_worker.providers import open_providers
from mesh.configuration.settings import Settings
from mesh.task.conversation import AssistantTurn, ConversationItem, ToolAnswer
from mesh.task.failures import StepFailed
from tests.unit.scripts import SCRIPT, turn_input


class Killed(BaseException):
    """Stands for the end of the process."""


def kill() -> None:
    raise Killed


class Heard:
    """What came out of a provider, up to its end or failure."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.finished: Finished | None = None
        self.error: StepFailed | None = None
        self.killed = False

    @property
    def text(self) -> str:
        return "".join(self.tokens)


async def listen(
    script: str, since: Iterable[ConversationItem] = (), *, exit_allowed: bool = False, **fields: Any
) -> Heard:
    heard = Heard()
    provider = ScriptedProvider(exit_allowed=exit_allowed, exit_process=kill)
    try:
        async with aclosing(provider.stream(turn_input(script, since, **fields))) as chunks:
            async for chunk in chunks:
                assert heard.finished is None, "a chunk after the last one"
                match chunk:
                    case TextDelta(text):
                        assert text
                        heard.tokens.append(text)
                    case Finished():
                        heard.finished = chunk
    except StepFailed as error:
        heard.error = error
    except Killed:
        heard.killed = True
    return heard


async def test_calls_stand_at_the_end_of_their_turn() -> None:
    heard = await listen("one two\n!call add\nthree", prefix="one t")
    assert heard.text == "wo\nthree\n"
    assert heard.finished == Finished(finish_reason="tool_calls", usage=Usage(5, 3), calls=(RequestedCall("add", {}),))


async def test_a_script_says_what_came_from_a_cache_and_how_much_reasoning_nobody_sees() -> None:
    heard = await listen("!cached 2\n!reasoning 10\n!say 3")
    assert heard.text == "t0 t1 t2 "
    assert heard.finished is not None
    assert heard.finished.usage == Usage(6, 13, cached_tokens=2, reasoning_tokens=10)
    more = await listen("!cached 100\n!say 1\n!then\n!say 1")
    assert more.finished is not None
    assert more.finished.usage.cached_tokens == more.finished.usage.input_tokens  # no more than it reads


async def test_a_turn_that_is_cut_off_has_not_come_to_its_calls() -> None:
    cut = await listen("!call add\n!say 3", max_output_tokens=2)
    assert cut.finished == Finished(finish_reason="length", usage=Usage(4, 2))
    whole = await listen("!call add\n!say 3", max_output_tokens=3)
    assert whole.finished is not None
    assert (whole.finished.finish_reason, len(whole.finished.calls)) == ("tool_calls", 1)


@given(st.integers(0, 2), st.integers(0, 60))
async def test_any_cut_point_of_any_turn_gives_the_same_text_and_calls(turns_before: int, cut: int) -> None:
    script = "!say 3\n!call add\n!then\nand now\n!say 4\n!ask Why?\n!then\nthe end"
    entries = [entry for _ in range(turns_before) for entry in (AssistantTurn("said"), ToolAnswer("1-0", "add", "3"))]
    whole = await listen(script, entries)
    rest = await listen(script, entries, prefix=whole.text[:cut])
    assert whole.text[:cut] + rest.text == whole.text
    assert rest.finished == whole.finished
    assert whole.finished is not None
    assert len(whole.finished.calls) == (0 if turns_before == 2 else 1)


async def test_failures_and_exits_belong_to_their_turn() -> None:
    failed = await listen(SCRIPT)
    assert failed.error is not None
    assert (failed.error.code, failed.killed) == ("provider-overloaded", False)
    killed = await listen(SCRIPT, [AssistantTurn("")], exit_allowed=True)
    assert (killed.error, killed.killed) == (None, True)
    fine = await listen(SCRIPT, [AssistantTurn(""), AssistantTurn("")], exit_allowed=True)
    assert (fine.text, fine.error, fine.killed) == ("All done.\n", None, False)


# What happens in a turn


@pytest.mark.parametrize(
    ("script", "token_count", "covered", "moments"),
    [
        (Script((Say(2),)), 2, 0, ["t0 ", Halfway(), "t1 "]),
        (Script((Say(1),)), 1, 0, [Halfway(), "t0 "]),
        (Script(), 0, 0, [Halfway()]),
        (Script((Hang(1),)), 0, 0, [Halfway(), Hang(1)]),
        (Script((Say(3),)), 3, 4, [Halfway(), "1 ", "t2 "]),
        (Script((Text("a b "), Rate(5), Say(1))), 3, 0, ["a ", Halfway(), "b ", Rate(5), "t0 "]),
        (Script((Say(4),)), 4, 6, [Halfway(), "t2 ", "t3 "]),
        (Script((Say(4),)), 4, 7, [Halfway(), "2 ", "t3 "]),
        (Script((Say(4),)), 4, 12, [Halfway()]),
        (Script((Say(4),)), 4, 99, [Halfway()]),
        (Script((Say(1), Hang(1), Say(1))), 2, 0, ["t0 ", Hang(1), Halfway(), "t0 "]),
        (Script((Say(1), Hang(1), Say(1))), 2, 3, [Hang(1), Halfway(), "t0 "]),
        (Script((Say(1), Hang(1), Say(1))), 2, 4, [Halfway(), "0 "]),
        (Script((Rate(5), Say(1))), 1, 3, [Rate(5), Halfway()]),
        (Script((Say(2), Hang(1), Say(2))), 2, 0, ["t0 ", Halfway(), "t1 "]),
        (Script((Say(2), Hang(1))), 2, 0, ["t0 ", Halfway(), "t1 ", Hang(1)]),
    ],
)
def test_the_moments_of_a_turn(script: Script, token_count: int, covered: int, moments: list[object]) -> None:
    assert list(script.moments(token_count, covered)) == moments


@pytest.mark.parametrize(
    ("tries", "kind"), [(0, "rate_limit"), (1, "rate_limit"), (2, "disconnect"), (3, None), (100, None)]
)
def test_failures_take_turns(tries: int, kind: str | None) -> None:
    script = Script(failures=(Failure("rate_limit", 2), Failure("overloaded", 0), Failure("disconnect", 1)))
    failure = script.failure(tries)
    assert (failure.kind if failure else None) == kind


scripts = st.lists(
    st.one_of(st.builds("!say {}".format, st.integers(0, 40)), st.text(alphabet="ab \t\r€😀", max_size=20)),
    max_size=6,
).map("\n".join)


@given(scripts, st.integers(0, 300), st.none() | st.integers(1, 60))
async def test_any_cut_point_gives_the_same_text(script: str, cut: int, max_output_tokens: int | None) -> None:
    whole = await listen(script, max_output_tokens=max_output_tokens)
    prefix = whole.text[:cut]
    rest = await listen(script, max_output_tokens=max_output_tokens, prefix=prefix)
    assert prefix + rest.text == whole.text
    assert rest.finished == whole.finished


async def test_plain_text_is_answered_word_by_word() -> None:
    heard = await listen("How was  the\nthird quarter?")
    assert heard.text.startswith("You said: How was the third quarter?\n")
    assert len(heard.tokens) > 10
    assert heard.finished == Finished(finish_reason="stop", usage=Usage(5, len(heard.tokens)))


async def test_the_last_message_of_the_user_is_the_script() -> None:
    messages: list[ConversationItem] = [
        Message("system", "!say 9"),
        Message("user", "!say 8"),
        Message("user", "!say 2"),
        Message("assistant", "one two"),
    ]
    provider = ScriptedProvider(exit_allowed=False)
    chunks = [chunk async for chunk in provider.stream(TurnInput(messages=messages, model="scripted"))]
    assert chunks == [TextDelta("t0 "), TextDelta("t1 "), Finished(finish_reason="stop", usage=Usage(8, 2))]


async def test_max_output_tokens_cuts_the_whole_output_prefix_included() -> None:
    heard = await listen("!say 10", max_output_tokens=4, prefix="t0 t")
    assert heard.text == "1 t2 t3 "
    assert heard.finished == Finished(finish_reason="length", usage=Usage(2, 4))
    exact = await listen("!say 4", max_output_tokens=4)
    assert exact.finished == Finished(finish_reason="stop", usage=Usage(2, 4))


@pytest.mark.parametrize(
    ("kind", "code", "terminal"),
    [
        ("rate_limit", "rate-limited", False),
        ("overloaded", "provider-overloaded", False),
        ("server_error", "provider-error", False),
        ("bad_request", "provider-bad-request", True),
        ("disconnect", "provider-disconnected", False),
    ],
)
async def test_the_first_tries_fail(kind: str, code: str, *, terminal: bool) -> None:
    for tries in (0, 1):
        heard = await listen(f"!say 4\n!fail {kind} 2", tries=tries)
        assert heard.error is not None
        assert (heard.error.code, heard.error.terminal, heard.error.retryable) == (code, terminal, not terminal)
        assert heard.text == ("t0 t1 " if kind == "disconnect" else "")
    heard = await listen(f"!say 4\n!fail {kind} 2", tries=2)
    assert (heard.error, heard.text) == (None, "t0 t1 t2 t3 ")


async def test_a_failure_may_say_when_to_try_again() -> None:
    for line, seconds in (("!fail rate_limit 1 12.5", 12.5), ("!fail rate_limit", None)):
        heard = await listen(line)
        assert heard.error is not None
        assert heard.error.retry_after_seconds == seconds


async def test_a_disconnect_comes_halfway_through_the_whole_turn() -> None:
    again = await listen("!say 4\n!fail disconnect 2", tries=1, prefix="t0 t1 ")
    assert (again.text, again.error is not None) == ("", True)
    cut = await listen("!say 40\n!fail disconnect", max_output_tokens=6)
    assert cut.text == "t0 t1 t2 "


async def test_the_first_deliveries_kill_their_process_halfway() -> None:
    for deliveries in (1, 2):
        heard = await listen("!say 4\n!exit 2", exit_allowed=True, deliveries=deliveries)
        assert (heard.text, heard.killed) == ("t0 t1 ", True)
    heard = await listen("!say 4\n!exit 2", exit_allowed=True, deliveries=3)
    assert (heard.text, heard.killed) == ("t0 t1 t2 t3 ", False)


async def test_exit_is_refused_unless_it_is_allowed() -> None:
    heard = await listen("!say 4\n!exit 2", deliveries=3)
    assert heard.error is not None
    assert heard.error.code == "invalid-script"
    assert (heard.text, heard.killed) == ("", False)


@pytest.mark.parametrize(
    ("rate", "asked_at", "delays"),
    [
        (10, [0.0, 0.0, 0.1, 0.2], [0.0, 0.1, 0.1, 0.1]),
        # Late by a slow reader, or by a timer: the tokens that are due come at once, and then the clock holds again.
        (10, [5.0, 5.35, 5.35, 5.35, 5.35], [0.0, 0.0, 0.0, 0.0, 0.05]),
        (0, [0.0, 0.0, 9.0], [0.0, 0.0, 0.0]),
        (0.5, [1.0, 1.0], [0.0, 2.0]),
    ],
)
def test_a_rate_holds_on_average(rate: float, asked_at: list[float], delays: list[float]) -> None:
    pace = Pace(rate)
    assert [pace.delay_seconds(at) for at in asked_at] == pytest.approx(delays)


def test_a_silence_is_not_made_up_for() -> None:
    pace = Pace(10)
    assert pace.delay_seconds(0.0) == 0.0
    pace.begin_again()
    assert [pace.delay_seconds(at) for at in (60.0, 60.0)] == pytest.approx([0.0, 0.1])


async def test_a_rate_takes_its_time() -> None:
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    await listen("!rate 1000\n!say 21")
    assert loop.time() - began_at >= 0.019


async def test_without_a_rate_others_still_run() -> None:
    rounds = 0

    async def other() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await listen("!say 5120")
    task.cancel()
    assert rounds >= 20


async def test_closing_the_stream_ends_a_silence() -> None:
    provider = ScriptedProvider(exit_allowed=False)
    chunks = provider.stream(turn_input("!say 1\n!hang 3600\n!say 1"))
    assert await anext(chunks) == TextDelta("t0 ")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await anext(chunks)
    await chunks.aclose()


@pytest.mark.parametrize("allowed", [True, False])
async def test_the_provider_of_a_process_obeys_its_settings(allowed: bool) -> None:
    async with open_providers(Settings(scripted_allow_exit=allowed)) as providers:
        (only,) = providers["default"].all
        assert (only.provider, only.model, only.source.continues("t0 ")) == ("scripted", "scripted", True)
        stream = only.source.stream(turn_input("!exit 1\n!say 2", deliveries=2))
        if allowed:
            assert [chunk async for chunk in stream][:1] == [TextDelta("t0 ")]
        else:
            with pytest.raises(StepFailed, match="MESH_SCRIPTED_ALLOW_EXIT"):
                await anext(stream)
