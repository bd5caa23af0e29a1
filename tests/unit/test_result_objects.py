"""Names of results, and the subjects of their parts."""

from __future__ import annotations

import pytest

from contracts import result_objects
from contracts.result_objects import ResultName
from tool_runner.result_store import used_by

TASK = "01k6q5w6zt0000000000000000"
CLAIM = "01k6q5w6zt0000000000000001"
NAME = ResultName("acme", TASK, "12-3", CLAIM)


def test_a_name_is_found_in_what_it_leads_to() -> None:
    chunks = result_objects.chunks_subject("results", result_objects.chunks_id(str(NAME), 300_000))
    assert chunks == f"$O.results.C.{NAME}.300000"
    assert result_objects.parse_chunks(chunks) == (NAME, 300_000)
    told = result_objects.information_subject("results", str(NAME))
    assert result_objects.parse_information(told) == str(NAME)
    assert result_objects.parse_result_name(str(NAME)) == NAME
    assert result_objects.is_chunks_id(chunks.removeprefix("$O.results.C."))


@pytest.mark.parametrize(
    "name", ["", "acme", f"acme.{TASK}.1-0", f"Acme.{TASK}.1-0.{CLAIM}", f"{NAME}.1", f"{NAME}\n", "a.b.c.d"]
)
def test_what_is_no_name_of_a_result_is_somebody_elses(name: str) -> None:
    assert result_objects.parse_result_name(name) is None


@pytest.mark.parametrize(
    "subject",
    [
        "$O.results.C.1d0sQxLjV8dY1nHXaE9TlR",
        f"$O.results.C.{NAME}",
        f"$O.results.C.{NAME}.many",
        f"$O.results.C.acme.{TASK}",
    ],
)
def test_what_are_no_chunks_of_a_result_count_by_what_they_take(subject: str) -> None:
    assert result_objects.parse_chunks(subject) is None
    assert used_by(subject, 2) == 2 * 512 * 1024


def test_what_is_no_base64_names_nothing() -> None:
    assert result_objects.parse_information("$O.results.M.é") is None


@pytest.mark.parametrize("nuid", ["", ">", "*", "a.*", "a.>", "a b", "a..b", ".a", "a.", "a" * 65, "a\n"])
def test_what_could_be_more_than_one_subject_is_no_nuid(nuid: str) -> None:
    assert not result_objects.is_chunks_id(nuid)
