"""The vectors of valves, run against this implementation and against the JSON Schemas."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from contracts.errors import InvalidName, TaskmeshError
from contracts.fields import Time
from contracts.records.valves import Valve, decode_valve
from contracts.valve_keys import parse_valve_key
from mesh.configuration.tenants_table import TenantConfiguration
from mesh.valves.limits import with_limits
from mesh.valves.watched import holds
from tests.conformance.test_vectors import cases, check_schema

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize("case", cases("valves", "keys"))
def test_a_key_means_this_or_is_passed_over(case: dict[str, Any]) -> None:
    if case["means"] is None:
        with pytest.raises(InvalidName):
            parse_valve_key(case["key"])
        return
    assert parse_valve_key(case["key"])._asdict() == case["means"]


@pytest.mark.parametrize("case", cases("valves"))
def test_a_record_is_taken_or_passed_over(case: dict[str, Any]) -> None:
    payload = json.dumps(case["record"]).encode()
    check_schema(case["schema_of"], case, payload)
    if case["valid"]:
        decode_valve(case["key"], payload)
        return
    with pytest.raises(TaskmeshError):
        decode_valve(case["key"], payload)


@pytest.mark.parametrize("case", cases("valves", "holds"))
def test_a_record_holds_until_its_end(case: dict[str, Any]) -> None:
    assert holds(msgspec.convert(case["record"], Valve), msgspec.convert(case["at"], Time)) is case["holds"]


@pytest.mark.parametrize("case", cases("valves", "limits"))
def test_limits_for_a_while_lie_over_what_is_configured(case: dict[str, Any]) -> None:
    configured = msgspec.convert(case["configured"], TenantConfiguration)
    assert with_limits(configured, case["limits"]) == msgspec.convert(case["holds"], TenantConfiguration)
