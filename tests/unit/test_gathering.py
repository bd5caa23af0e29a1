"""Calls in fragments, in every style of a server: none runs with arguments that were not said, and none twice."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from inference_worker.dialects.errors import ProviderFailed
from inference_worker.dialects.gathering import Fragment, GatheredCalls

ARGUMENTS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from("ab"),
    st.one_of(st.integers(0, 3), st.sampled_from(['}"{', "\\", '{"a": 1}']), st.just({"a": [{}]})),
    max_size=2,
)
SAID = st.lists(st.tuples(st.sampled_from(["add", "now"]), ARGUMENTS), min_size=1, max_size=3)


@dataclass(frozen=True)
class Style:
    """How a server tells of calls. `blank`: it sends no text where there are no arguments."""

    ids: str = field()
    indexes: str = field()
    names: str = field()
    blank: bool = False
    ends: bool = False
    """There is an empty fragment at the end of each call."""

    @property
    def is_clear(self) -> bool:
        """Whether ids, or indexes, say which fragments are one call."""
        if self.indexes == "right":
            return self.ids != "one for all"
        return self.ids == "one each" and not self.blank

    @property
    def tells_nothing(self) -> bool:
        """Whether each fragment looks like a call of its own: then nobody can say what a call is."""
        return self.indexes == "count" and self.names == "always" and self.ids not in ("one each", "one for all")


KNOWN = st.builds(
    Style,
    ids=st.sampled_from(["one each", "first only", "one for all", "new each time", "empty", "none"]),
    indexes=st.sampled_from(["right", "zero", "none", "count"]),
    names=st.sampled_from(["first", "always"]),
    blank=st.booleans(),
    ends=st.booleans(),
)
STYLES = KNOWN.filter(lambda style: not style.tells_nothing)


@st.composite
def told(draw: st.DrawFn) -> tuple[list[tuple[str, dict[str, Any]]], Style, list[Fragment]]:
    """Calls, a style, and the fragments that come of both."""
    said, style = draw(SAID), draw(STYLES)
    fragments: list[Fragment] = []
    for number, (name, arguments) in enumerate(said):
        text = "" if style.blank and not arguments else json.dumps(arguments)
        cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
        parts = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        for at, part in enumerate([*parts, ""] if style.ends else parts):
            identifier = {
                "one each": f"c{number}",
                "first only": f"c{number}" if at == 0 else "",
                "one for all": "call",
                "new each time": f"x{len(fragments)}",
            }.get(style.ids, "")
            index = {"right": number, "zero": 0, "none": None, "count": len(fragments)}[style.indexes]
            fragments.append(Fragment(index, identifier, name if at == 0 or style.names == "always" else "", part))
    return said, style, fragments


@settings(max_examples=2_000)
@given(told())
def test_a_call_never_runs_with_arguments_that_were_not_said(
    case: tuple[list[tuple[str, dict[str, Any]]], Style, list[Fragment]],
) -> None:
    said, style, fragments = case
    gathered = GatheredCalls()
    for fragment in fragments:
        gathered.take(fragment)
    try:
        calls = gathered.requested(cut_off=False)
    except ProviderFailed as failed:
        event(f"refused: {style.ids}, {style.indexes}")
        assert (failed.code, failed.retryable) == ("provider-error", True)  # noqa: PT017 - or there is none
        assert not style.is_clear
        return
    runs = Counter(
        (call.name, json.dumps(call.arguments, sort_keys=True)) for call in calls if call.arguments is not None
    )
    wanted = Counter((name, json.dumps(arguments, sort_keys=True)) for name, arguments in said)
    assert not runs - wanted
    if style.is_clear:
        assert [(call.name, call.arguments) for call in calls] == said
