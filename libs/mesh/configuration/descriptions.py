"""The docstrings under the fields of settings and tables: the one place where each is described.

Python keeps no docstring of a field, so the sources are read. For help texts and reference pages; no service needs it.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import sys


def field_descriptions(kind: type) -> dict[str, str]:
    """Field name → its description, each in one line. A field that says nothing has that of the class it extends."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        found |= _own_descriptions(each)
    return found


def _own_descriptions(kind: type) -> dict[str, str]:
    """The docstrings under the fields that a class itself declares; none of a class that is not written in Python."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[kind.__module__]))
    except (OSError, TypeError):
        return {}
    found: dict[str, str] = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name != kind.__name__:
            continue
        for field, after in itertools.pairwise(node.body):
            match field, after:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = " ".join(text.split())
    return found
