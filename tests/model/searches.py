"""One search by the names of what it is about: another process can be asked for it."""

from __future__ import annotations

from tests.model.checker import Result, TooLarge, search
from tests.model.configurations import searchable
from tests.model.rules import ALL_RULES, Off


def search_named(name: str, off: Off | None) -> Result | TooLarge:
    """Search a configuration with all rules, or with one of them switched off."""
    try:
        return search(searchable(name), ALL_RULES if off is None else frozenset({off}))
    except TooLarge as error:
        return error
