"""A line of the doctor's."""

from __future__ import annotations

from typing import Literal, NamedTuple

Status = Literal["ok", "warn", "fail"]


class Check(NamedTuple):
    """A line of the doctor's. `remedy` says what to do, and is empty where nothing is to be done."""

    check: str
    status: Status
    detail: str
    remedy: str = ""
