"""docs/reference/settings.md: every variable, rendered from `Settings` and the declarations beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mesh.configuration.settings import BOUNDS, CHOICES, variable_fields
from mesh.telemetry.variables import STANDARD_VARIABLES
from meshctl.flags import setting_flags
from meshctl.reference.markdown import GENERATED, alternatives, block, code, page, paragraphs, table
from meshctl.reference.values import number_text
from meshctl.variables import EVERY_PROCESS, OWN_VARIABLES

_TITLES: Final = ("variable", "value", "default", "meaning")
_UNITS: Final = frozenset({"seconds", "hours", "days", "percent"})
_VALUES: Final = {
    "bool": "`1` or `0`",
    "Path": "path",
    "Address": "`<host>:<port>`; port 0 takes a free one",
    "str": "text",
    "tuple[str, ...]": "texts, by commas",
}

_EXAMPLE: Final = """\
$ MESH_WORKERS=1000 meshctl up
meshctl: MESH_WORKERS=1000: must be between 0 and 256
$ meshctl up --workers 1000
meshctl: MESH_WORKERS=1000: must be between 0 and 256
"""
_INTRODUCTION: Final = """\
Variable and flag are the same setting. The flag outranks the variable. Each process reads its settings once, at its
start. A wrong one stops the start with one line that names it.

Models, pools, tools and webhooks are in a file: [mesh.toml](mesh-toml.md)."""
_SETTINGS: Final = "`meshctl up` takes all of them as flags. The other commands take those that they use."
_MESHCTL: Final = "Commands that ask a running mesh find it by `MESH_HOME`. The two URLs name another one."
_EVERY_PROCESS: Final = "None has a flag: it comes with an installation."
_TELEMETRY: Final = """\
The names and meanings are OpenTelemetry's. One of the three endpoints switches telemetry on; `MESH_OPS_ADDRESS`
switches metrics alone on, for Prometheus. Without any of them it costs nothing. The standard's further variables for
batches, limits and OTLP over HTTP hold, too."""


def render() -> str:
    """The page."""
    return page(
        GENERATED,
        "# Settings",
        block("console", _EXAMPLE),
        paragraphs(_INTRODUCTION),
        "## Variables of the mesh",
        _SETTINGS,
        table(("variable", "flag", "value", "default", "meaning"), _setting_rows()),
        "## Variables of meshctl alone",
        _MESHCTL,
        table(_TITLES, ((code(each.name), each.value, each.default, each.description) for each in OWN_VARIABLES)),
        "## Variables of every process",
        _EVERY_PROCESS,
        table(_TITLES, ((code(each.name), each.value, each.default, each.description) for each in EVERY_PROCESS)),
        "## Traces and metrics",
        paragraphs(_TELEMETRY),
        table(
            _TITLES,
            ((code(each.name), each.value, _default(each.default), each.description) for each in STANDARD_VARIABLES),
        ),
    )


def _setting_rows() -> Iterator[tuple[str, ...]]:
    kinds = {field.name: str(field.type).removesuffix(" | None") for field in variable_fields()}
    for flag in setting_flags():
        yield (
            code(flag.variable),
            code(flag.flag),
            _value(flag.name, kinds[flag.name]),
            _default(flag.default),
            flag.description,
        )


def _value(name: str, kind: str) -> str:
    if name in CHOICES:
        return alternatives(code(word) for word in CHOICES[name])
    unit = name.rpartition("_")[2]
    if name not in BOUNDS:
        return "URL" if unit == "url" else _VALUES[kind]
    low, high = BOUNDS[name]
    return f"{unit if unit in _UNITS else 'whole number'}, {number_text(low)} to {number_text(high)}"


def _default(text: str) -> str:
    return text if text in ("unset", "none") else code(text)
