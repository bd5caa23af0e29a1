"""Values that a key of mesh.toml takes: its type with its bounds, and its default, for people."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect

from contracts.fields import SignalFilter, Tenant
from mesh.configuration.critic_table import Code
from mesh.configuration.provider_tables import Name
from mesh.configuration.storage_table import SizeText, TotalText
from mesh.configuration.tool_tables import ServerName, Variable
from meshctl.reference.markdown import alternatives, code

DEFAULT_CHARACTERS_MAX: Final = 80
"""A default that is longer does not fit into a table."""
REQUIRED: Final = "required"
UNSET: Final = "unset"
LONG: Final = "the text below"


class Word(NamedTuple):
    """A kind of text that has a pattern, and what it is called."""

    one: str
    many: str
    type: Any

    @property
    def pattern(self) -> str:
        """What all of such a text matches."""
        found = inspect.type_info(self.type)
        assert isinstance(found, inspect.StrType)  # noqa: S101 - narrows; each of WORDS is one
        return _bare(found.pattern)


WORDS: Final = (
    Word("name", "names", Name),
    Word("server name", "server names", ServerName),
    Word("variable", "variables", Variable),
    Word("tenant", "tenants", Tenant),
    Word("error code", "error codes", Code),
    Word("signal filter", "signal filters", SignalFilter),
    Word("size", "sizes", SizeText),
    Word("size or percentage", "sizes or percentages", TotalText),
)


def value_text(kind: inspect.Type, key: str) -> str:
    """What a key takes, e.g. "seconds, above 0 and at most 60"."""
    match kind:
        case inspect.UnionType(types=types):
            return "; or ".join(_union_texts([each for each in types if not isinstance(each, inspect.NoneType)], key))
        case inspect.BoolType():
            return "`true` or `false`"
        case inspect.IntType():
            return f"whole number{_range(kind)}"
        case inspect.FloatType():
            return f"{'seconds' if 'seconds' in key.split('_') else 'number'}{_range(kind)}"
        case inspect.StrType():
            return _string_text(kind)
        case inspect.LiteralType(values=values):
            return alternatives(code(f'"{value}"') for value in values)
        case inspect.ListType(item_type=item):
            return f"list of {_many(item)}{_length(kind)}"
        case inspect.DictType(key_type=inspect.StrType(pattern=None), value_type=value):
            return f"table of {_many(value)}"
        case inspect.DictType(key_type=keys, value_type=value):
            return f"table of {_many(value)} by {_many(keys)}"
        case inspect.StructType():
            return "table"
    raise TypeError(f"{key}: nobody has said how to show {kind!r}")


def number_text(number: float) -> str:
    """A number in digits, e.g. "86,400" or "0.1"."""
    return f"{int(number):,}" if number == int(number) else str(number)


def default_text(field: inspect.Field) -> str:
    """What holds if a key is not there."""
    if field.required:
        return REQUIRED
    default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if isinstance(default, msgspec.Struct):
        # What differs from the table's own defaults.
        own = type(default)()
        changed = [name for name in default.__struct_fields__ if getattr(default, name) != getattr(own, name)]
        inside = ", ".join(f"{name} = {_toml(getattr(default, name))}" for name in changed)
        return code(f"{{ {inside} }}" if inside else "{}")
    text = _toml(default)
    if len(text) > DEFAULT_CHARACTERS_MAX:
        return LONG
    return UNSET if default is None else code(text)


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case str():
            return f'"{value}"'
    return str(value)


def _union_texts(types: list[inspect.Type], key: str) -> list[str]:
    texts: list[str] = []
    for kind in types:
        if isinstance(kind, inspect.ListType) and kind.item_type in types:
            texts.append(f"a list of these{_length(kind)}")
        else:
            texts.append(value_text(kind, key))
    return texts


def _string_text(kind: inspect.StrType) -> str:
    if kind.pattern is None:
        return f"text{_length(kind, 'characters')}"
    return _word(kind).one


def _many(kind: inspect.Type) -> str:
    match kind:
        case inspect.StrType(pattern=None):
            return "texts"
        case inspect.StrType():
            return _word(kind).many
        case inspect.LiteralType(values=values):
            return alternatives(code(f'"{value}"') for value in values)
        case inspect.ListType(item_type=item):
            return f"lists of {_many(item)}"
        case inspect.StructType():
            return "tables"
    raise TypeError(f"nobody has said how to show many of {kind!r}")


def _word(kind: inspect.StrType) -> Word:
    """The word for a text with a pattern. Each has one: a pattern alone tells a reader little."""
    return next(word for word in WORDS if word.pattern == _bare(kind.pattern))


def _bare(pattern: str | None) -> str:
    r"""A pattern without the "^" and "\Z" of `contracts.codec.exactly`."""
    return (pattern or "").removeprefix("^").removesuffix(r"\Z")


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f", {number_text(kind.ge)} to {number_text(kind.le)}"
    bounds = (("above", kind.gt), ("at least", kind.ge), ("below", kind.lt), ("at most", kind.le))
    said = [f"{word} {number_text(bound)}" for word, bound in bounds if bound is not None]
    return f", {' and '.join(said)}" if said else ""


def _length(kind: inspect.StrType | inspect.ListType, of: str = "of them") -> str:
    if kind.max_length is None:
        return ""
    return (
        f", {kind.min_length} to {kind.max_length:,} {of}" if kind.min_length else f", up to {kind.max_length:,} {of}"
    )
