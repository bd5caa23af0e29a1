"""JSON in and out: whatever is wrong with the bytes is one error, and nothing wrong comes through."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.api.inputs import MessageInput, TaskInput
from contracts.codec import decode, encode, exactly
from contracts.errors import InvalidPayload
from contracts.tasks import TaskRequest, canonical, fingerprint

LEVELS = 5_000
ANYTHING: Any = Any

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=5) | st.dictionaries(st.text(), children, max_size=5),
    max_leaves=20,
)


class Point(msgspec.Struct):
    """Something small to decode into."""

    x: int
    name: str = ""


class Named(msgspec.Struct):
    """A name of two letters."""

    name: Annotated[str, exactly("[a-b]{2}")]


@given(json_values)
def test_what_is_encoded_is_decoded_as_it_was(value: Any) -> None:
    assert decode(encode(value), ANYTHING) == value
    assert json.loads(encode(value)) == value


@given(json_values)
def test_payloads_have_no_line_breaks(value: Any) -> None:
    assert b"\n" not in encode(value)
    assert b"\r" not in encode(value)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b'{"x":1}x',
        b'{"x":1}{"x":2}',
        b"{'x':1}",
        b'{"x":1,}',
        b'{"x":01}',
        b'{"x":+1}',
        b"nul",
        b'\xef\xbb\xbf{"x":1}',
        b'{"x":1,"name":"a\nb"}',
        b'{"x":1,"name":"a\x00b"}',
        b'{"x":1,"name":"\\x41"}',
        b'"\xff"',
    ],
)
def test_what_is_not_json_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidPayload):
        decode(payload, Point)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "0x10", "1_000", "1.", ".5", "--1"])
@pytest.mark.parametrize("template", ['{"x":%s}', '{"x":1,"unknown":%s}', '{"x":1,"unknown":[%s]}'])
def test_a_number_that_json_has_not_is_refused(number: str, template: str) -> None:
    for kind in (ANYTHING, Point):
        with pytest.raises(InvalidPayload):
            decode((template % number).encode(), kind)


@pytest.mark.parametrize("number", ["1e400", "-1e999", "1" * 5_000])
def test_a_number_that_is_too_large_to_hold_is_refused(number: str) -> None:
    for kind in (ANYTHING, Point):
        with pytest.raises(InvalidPayload):
            decode(f'{{"x":{number}}}'.encode(), kind)
    with pytest.raises(InvalidPayload):
        decode(f'{{"input":"a","temperature":{number}}}'.encode(), TaskRequest)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("template", [b"%s", b'{"x":1,"unknown":%s}', b'{"x":%s}'])
def test_deep_nesting_is_refused_and_breaks_nothing(opening: bytes, *, closed: bool, template: bytes) -> None:
    closing = (b"]" if opening == b"[" else b"1}") * LEVELS if closed else b""
    payload = template.replace(b"%s", opening * LEVELS + closing)
    for kind in (ANYTHING, Point):
        with pytest.raises(InvalidPayload):
            decode(payload, kind)
    assert decode(b'{"x":1}', Point) == Point(1)


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xe2\x28\xa1", b"\xc0\xaf", b"\xf5\x80\x80\x80", b"\xed\xa0\x80"])
@pytest.mark.parametrize("template", [b'{"x":1,"name":"%s"}', b'{"x":1,"unknown":"%s"}', b'{"x":1,"%s":2}'])
def test_bad_utf_8_is_refused_wherever_it_stands(bad: bytes, template: bytes) -> None:
    with pytest.raises(InvalidPayload):
        decode(template.replace(b"%s", bad), Point)


@pytest.mark.parametrize("escape", ["\\ud800", "\\udc00", "\\ud83d\\u0041", "\\ude00\\ud83d", "a\\ud83d"])
@pytest.mark.parametrize("template", ['{"x":1,"name":"%s"}', '{"x":1,"unknown":"%s"}', '"%s"'])
def test_a_lone_surrogate_is_refused(escape: str, template: str) -> None:
    with pytest.raises(InvalidPayload):
        decode((template % escape).encode(), Point)


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert decode(b'{"x":1,"name":"\\ud83d\\ude00"}', Point).name == "\U0001f600"


def test_a_lone_surrogate_is_never_written() -> None:
    with pytest.raises(UnicodeEncodeError):
        encode(Point(1, "\ud83d"))


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        (b"[]", ""),
        (b"null", ""),
        (b"5", ""),
        (b"{}", ""),
        (b'{"x":"1"}', "$.x"),
        (b'{"x":1.5}', "$.x"),
        (b'{"x":true}', "$.x"),
        (b'{"x":null}', "$.x"),
        (b'{"x":1,"name":2}', "$.name"),
    ],
)
def test_a_wrong_type_is_refused_and_its_place_named(payload: bytes, path: str) -> None:
    with pytest.raises(InvalidPayload, match=path.replace("$", r"\$") or None) as refused:
        decode(payload, Point)
    assert refused.value.code == "invalid-request"
    assert not refused.value.retryable


@pytest.mark.parametrize(
    ("payload", "kind", "expected"),
    [
        (b'{"x":1,"name":null}', Point, Point(1)),
        (
            b'[{"x":1,"name":null},{"x":2,"name":"b"},{"x":3,"name":null}]',
            list[Point],
            [Point(1), Point(2, "b"), Point(3)],
        ),
        (b'{"a":{"x":1,"name":null}}', dict[str, Point], {"a": Point(1)}),
        (b'[{"x":1,"name":null},"a"]', tuple[Point, str], (Point(1), "a")),
        (b'{"x":1,"name":null}', Point | None, Point(1)),
        (b'{"kind":"message","text":"a","mode":null}', TaskInput, MessageInput(text="a")),
    ],
)
def test_an_optional_field_that_is_null_is_absent_at_any_depth(payload: bytes, kind: Any, expected: object) -> None:
    assert decode(payload, kind) == expected


@pytest.mark.parametrize(
    ("payload", "kind", "expected"),
    [
        (b'{"x":27.0}', Point, Point(27)),
        (b'[{"x":1e3,"name":null}]', list[Point], [Point(1_000)]),
        (b'{"a":[1.0,2]}', dict[str, list[int]], {"a": [1, 2]}),
        (b'[2.0,"b"]', tuple[int, str], (2, "b")),
        (b'[2.0,"b"]', list[int | str | None], [2, "b"]),
    ],
)
def test_of_callers_a_whole_number_is_an_integer_however_it_is_written(
    payload: bytes, kind: Any, expected: object
) -> None:
    assert decode(payload, kind, whole_numbers=True) == expected
    with pytest.raises(InvalidPayload):
        decode(payload, kind)


@pytest.mark.parametrize("payload", [b'{"x":27.5}', b'{"x":1e400}', b'{"x":"27.0"}', b'{"x":27.0,"name":2.0}'])
def test_what_is_no_whole_number_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidPayload):
        decode(payload, Point, whole_numbers=True)


def test_a_number_stays_what_it_was_where_either_will_do() -> None:
    assert isinstance(decode(b'[2.0,"a"]', tuple[float | int, str])[0], float)
    assert isinstance(decode(b'{"a":2.0}', dict[str, Any])["a"], float)


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        (b'{"input":"a","pool":null,"metadata":{"a":null}}', "$.metadata"),
        (b'{"input":null,"pool":null}', "$.input"),
        (b'{"input":"a","pool":null,"max_turns":0}', "$.max_turns"),
    ],
)
def test_a_null_that_is_no_optional_field_is_refused_beside_one_that_is(payload: bytes, path: str) -> None:
    with pytest.raises(InvalidPayload, match=path.replace("$", r"\$")):
        decode(payload, TaskRequest)


def test_unknown_fields_are_ignored_by_readers_and_refused_in_requests() -> None:
    assert decode(b'{"x":1,"y":{"z":[1,2]}}', Point) == Point(1)
    with pytest.raises(InvalidPayload, match="max_token"):
        decode(b'{"input":"a","max_token":1}', TaskRequest)


@given(st.binary(max_size=64))
def test_rubbish_is_refused_or_understood_but_never_breaks(payload: bytes) -> None:
    with contextlib.suppress(InvalidPayload):
        decode(payload, Point)


def test_exactly_means_all_of_the_text() -> None:
    assert decode(b'{"name":"ab"}', Named).name == "ab"
    for wrong in (b"ab\\n", b"\\nab", b"ab\\r", b"abc", b"", b"xab"):
        with pytest.raises(InvalidPayload):
            decode(b'{"name":"%s"}' % wrong, Named)


def test_a_request_that_names_a_default_is_the_request_that_does_not() -> None:
    bodies = [
        b'{"input":"a"}',
        b'{"input":"a","pool":"default"}',
        b'{"priority":"normal","pool":"default","input":"a","tools":null}',
    ]
    requests = [decode(body, TaskRequest) for body in bodies]
    assert {canonical(request) for request in requests} == {b'{"input":"a"}'}
    assert len({fingerprint(request) for request in requests}) == 1
    # A worker that finds no journal computes it from the request in the message.
    assert {fingerprint(decode(encode(request), TaskRequest)) for request in requests} == {fingerprint(requests[0])}
