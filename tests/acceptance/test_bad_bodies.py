"""Bad bodies of requests are refused, leave nothing behind and harm nobody; odd ones that are sound are taken."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from contracts.tasks import BODY_BYTES_MAX
from tests.support.bad_input import (
    ABSENT_TASK,
    DEEP,
    JSON,
    SOUND,
    WAIT,
    Bench,
    assert_problem,
    body_of,
    deep,
    exchange,
    harming_nobody,
    header,
    open_bench,
    raw_task_with,
    task_with,
)
from tests.support.waiting import until_no_work_is_left

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path_factory.mktemp("bad-input")) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def unharmed(bench: Bench) -> AsyncIterator[None]:
    async with harming_nobody(bench):
        yield


BAD_BODIES: dict[str, bytes] = {
    "empty": b"",
    "cut off": b'{"input":"hello"',
    "no JSON": b"input=hello",
    "JSON and more": SOUND + b" x",
    "two documents": SOUND + SOUND,
    "a byte order mark": b"\xef\xbb\xbf" + SOUND,
    "UTF-16": SOUND.decode().encode("utf-16"),
    "null": b"null",
    "a list": b"[]",
    "a string": b'"hello"',
    "a number": b"1",
    "no input": b"{}",
    "input null": b'{"input":null}',
    "input a number": b'{"input":1}',
    "input an object": b'{"input":{"role":"user","content":"hello"}}',
    "input empty text": b'{"input":""}',
    "input an empty list": b'{"input":[]}',
    "input a list of text": b'{"input":["hello"]}',
    "input too many messages": json.dumps({"input": [{"role": "user", "content": "a"}] * 1001}).encode(),
    "message without content": b'{"input":[{"role":"user"}]}',
    "message with empty content": b'{"input":[{"role":"user","content":""}]}',
    "message of an unknown role": b'{"input":[{"role":"robot","content":"hello"}]}',
    "message with an unknown field": b'{"input":[{"role":"user","content":"hello","name":"x"}]}',
    "bad UTF-8 in input": b'{"input":"\xff\xfe"}',
    "bad UTF-8 in an unknown field": b'{"input":"hello","more":"\xc3\x28"}',
    "an overlong encoding": b'{"input":"\xc0\xaf"}',
    "an encoded surrogate": b'{"input":"\xed\xa0\x80"}',
    "a lone high surrogate": b'{"input":"\\ud800"}',
    "a lone low surrogate": b'{"input":"\\udc00"}',
    "surrogates the wrong way round": b'{"input":"\\ude00\\ud83d"}',
    "a lone surrogate in a key": b'{"input":"hello","metadata":{"\\ud800":1}}',
    "a raw control character": b'{"input":"a\nb"}',
    "a raw NUL": b'{"input":"a\x00b"}',
    "5,000 lists": deep("[", "]").encode(),
    "5,000 lists as input": f'{{"input":{deep("[", "]")}}}'.encode(),
    "5,000 objects as input": f'{{"input":{deep("""{"a":""", "}")}}}'.encode(),
    "5,000 lists as metadata": raw_task_with(f'"metadata":{deep("[", "]")}'),
    "5,000 lists in metadata": raw_task_with(f'"metadata":{{"a":{deep("[", "]")}}}'),
    "5,000 objects in metadata": raw_task_with(f'"metadata":{deep("""{"a":""", "}")}'),
    "5,000 lists in an unknown field": raw_task_with(f'"more":{deep("[", "]")}'),
    "5,000 lists never closed": raw_task_with(f'"metadata":{"[" * DEEP}'),
    "NaN": raw_task_with('"temperature":NaN'),
    "Infinity": raw_task_with('"temperature":Infinity'),
    "a number beyond doubles": raw_task_with('"temperature":1e999'),
    "an integer of 5,000 digits": raw_task_with(f'"max_output_tokens":{"9" * 5000}'),
    "an unknown field": task_with(deadline=1),
    "a misspelt field": task_with(max_output_token=1),
    "pool in upper case": task_with(pool="Default"),
    "pool with a dot": task_with(pool="a.b"),
    "pool *": task_with(pool="*"),
    "pool >": task_with(pool=">"),
    "pool with a line break": task_with(pool="default\n"),
    "pool with a NUL": task_with(pool="default\0"),
    "pool too long": task_with(pool="a" * 49),
    "pool empty": task_with(pool=""),
    "pool not text": task_with(pool=1),
    "pool unknown": task_with(pool="other"),
    "priority unknown": task_with(priority="urgent"),
    "priority in upper case": task_with(priority="HIGH"),
    "priority with a line break": task_with(priority="normal\n"),
    "priority *": task_with(priority="*"),
    "tools not a list": task_with(tools="add"),
    "too many tools": task_with(tools=["add"] * 65),
    "tools of a wrong name": task_with(tools=["tools.>"]),
    "approval of an unknown mode": task_with(approval="sometimes"),
    "approval true": task_with(approval=True),
    "continues a task and a line break": task_with(continues=ABSENT_TASK + "\n"),
    "continues no task": task_with(continues="*"),
    "model empty": task_with(model=""),
    "model too long": task_with(model="m" * 129),
    "instructions empty": task_with(instructions=""),
    "max_output_tokens 0": task_with(max_output_tokens=0),
    "max_output_tokens negative": task_with(max_output_tokens=-1),
    "max_output_tokens a fraction": task_with(max_output_tokens=1.5),
    "max_output_tokens text": task_with(max_output_tokens="1"),
    "max_output_tokens true": task_with(max_output_tokens=True),
    "max_output_tokens too large": task_with(max_output_tokens=1_000_001),
    "max_turns 0": task_with(max_turns=0),
    "max_turns too large": task_with(max_turns=1001),
    "temperature negative": task_with(temperature=-0.1),
    "temperature too high": task_with(temperature=2.1),
    "deadline 0": task_with(deadline_seconds=0),
    "deadline negative": task_with(deadline_seconds=-1),
    "deadline NaN": raw_task_with('"deadline_seconds":NaN'),
    "deadline too far": raw_task_with('"deadline_seconds":1e12'),
    "deadline text": task_with(deadline_seconds="1"),
    "metadata a list": task_with(metadata=[]),
    "metadata with a null": task_with(metadata={"a": None}),
    "metadata with a fraction": task_with(metadata={"a": 1.5}),
    "metadata with an object": task_with(metadata={"a": {}}),
    "metadata with an empty key": task_with(metadata={"": 1}),
    "metadata with a long key": task_with(metadata={"k" * 65: 1}),
    "metadata with a long value": task_with(metadata={"a": "v" * 513}),
    "metadata with a large integer": task_with(metadata={"a": 2**53 + 1}),
    "metadata with too many entries": task_with(metadata={str(number): number for number in range(17)}),
}


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_bad_body_is_refused(bench: Bench, body: bytes) -> None:
    assert_problem(await bench.ingress.post("/v1/tasks", content=body, headers=JSON), "invalid-request")


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/jsonx", "multipart/form-data"])
async def test_a_body_that_is_not_json_by_its_type_is_refused(bench: Bench, content_type: str | None) -> None:
    headers = {} if content_type is None else header("Content-Type", content_type)
    assert_problem(await bench.ingress.post("/v1/tasks", content=SOUND, headers=headers), "unsupported-media-type")


@pytest.mark.usefixtures("unharmed")
async def test_a_body_that_says_it_is_too_large_is_refused(bench: Bench) -> None:
    response = await bench.ingress.post("/v1/tasks", content=body_of(BODY_BYTES_MAX + 1), headers=JSON)
    assert_problem(response, "payload-too-large")


@pytest.mark.usefixtures("unharmed")
async def test_a_body_that_turns_out_too_large_is_refused(bench: Bench) -> None:
    async def in_pieces() -> AsyncIterator[bytes]:
        body = body_of(BODY_BYTES_MAX + 1)
        for start in range(0, len(body), 16_384):
            yield body[start : start + 16_384]

    response = await bench.ingress.post("/v1/tasks", content=in_pieces(), headers=JSON)
    assert response.request.headers["transfer-encoding"] == "chunked"
    assert_problem(response, "payload-too-large")


@pytest.mark.usefixtures("unharmed")
async def test_a_body_that_only_says_it_is_too_large_is_refused_at_once(bench: Bench) -> None:
    head = b"POST /v1/tasks HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n"
    assert_problem(await exchange(bench.mesh.settings.ingress_address, head), "payload-too-large")


# What is sound


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"input":"first","input":"last"}', "last"),
        (b'{"input":"a","metadata":{"k":1},"metadata":{"k":2}}', "a"),
    ],
)
async def test_of_duplicate_keys_the_last_one_counts(bench: Bench, body: bytes, expected: str) -> None:
    response = await bench.ingress.post("/v1/tasks", content=body, headers={**JSON, **WAIT})
    assert response.status_code == 200
    assert f"You said: {expected}\n" in response.json()["output"]
    assert response.json().get("metadata", {"k": 2}) == {"k": 2}
    await until_no_work_is_left(bench.connection)


async def test_the_largest_body_is_taken(bench: Bench) -> None:
    body = body_of(BODY_BYTES_MAX)
    assert len(body) == BODY_BYTES_MAX
    response = await bench.ingress.post("/v1/tasks", content=body, headers={**JSON, **WAIT})
    assert (response.status_code, response.json()["status"]) == (200, "completed")
    await until_no_work_is_left(bench.connection)
