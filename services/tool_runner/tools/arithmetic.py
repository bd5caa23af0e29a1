"""The tools `add` and `calculator`: arithmetic within bounds, and never `eval`."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from tool_runner.tools.tool import Call, ToolRefused, built_in

EXPRESSION_CHARACTERS_MAX = 1_000
DEPTH_MAX = 64
"""How deep an expression may be nested. Parentheses alone are no depth; Python's parser stops at 200 of those."""
INTEGER_BITS_MAX = 4_096
"""The largest whole number: about 1,200 digits."""
EXACT_IN_JSON_MAX = 2**53
"""Whole numbers beyond it are given as text: most readers of JSON would round them."""

Number = int | float

_OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}
_FUNCTIONS: dict[str, tuple[Callable[..., Number], int, int]] = {
    "abs": (abs, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "cos": (math.cos, 1, 1),
    "exp": (math.exp, 1, 1),
    "floor": (math.floor, 1, 1),
    "log": (math.log, 1, 2),
    "log10": (math.log10, 1, 1),
    "log2": (math.log2, 1, 1),
    "max": (max, 2, 32),
    "min": (min, 2, 32),
    "round": (round, 1, 2),
    "sin": (math.sin, 1, 1),
    "sqrt": (math.sqrt, 1, 1),
    "tan": (math.tan, 1, 1),
}
"""Name → function, and how many arguments it takes at least and at most."""


class AddArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Two numbers."""

    a: int | float
    b: int | float


class CalculatorArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An expression such as `(2 + 3) * sqrt(16) / 10 ** 2`."""

    expression: Annotated[str, Meta(min_length=1, max_length=EXPRESSION_CHARACTERS_MAX)]


async def add(arguments: AddArguments, call: Call) -> Number:
    """The sum of two numbers; of whole numbers exactly."""
    try:
        total = arguments.a + arguments.b
    except OverflowError:
        total = math.inf
    if not math.isfinite(total):
        raise ToolRefused("the sum is too large for a number")
    return total


async def calculate(arguments: CalculatorArguments, call: Call) -> Number | str:
    """The value of an expression; a whole number that JSON's readers would round as text."""
    value = evaluate(arguments.expression)
    return str(value) if isinstance(value, int) and abs(value) > EXACT_IN_JSON_MAX else value


def evaluate(expression: str) -> Number:
    """The value of an arithmetic expression. Raises `ToolRefused`."""
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ToolRefused("not an arithmetic expression") from None
    if _depth(tree.body) > DEPTH_MAX:
        raise ToolRefused(f"nested deeper than {DEPTH_MAX}")
    try:
        return _value(tree.body)
    except ZeroDivisionError:
        raise ToolRefused("division by zero") from None
    except (ValueError, OverflowError, TypeError) as error:
        raise ToolRefused(f"has no value: {error}") from None


def _depth(root: ast.AST) -> int:
    """How deep a tree is nested, without recursion: it may be far deeper than Python goes."""
    depth = 0
    level: list[ast.AST] = [root]
    while level := [each for node in level for each in ast.iter_child_nodes(node) if isinstance(each, ast.expr)]:
        depth += 1
    return depth


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(number)
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as sign, operand=operand):
            value = _value(operand)
            return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(op=ast.Pow(), left=left, right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(op=kind, left=left, right=right) if type(kind) in _OPERATORS:
            return _bounded(_OPERATORS[type(kind)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id=name), args=given, keywords=[]) if name in _FUNCTIONS:
            return _call(name, [_value(each) for each in given])
        case _:
            raise ToolRefused(f"{ast.unparse(node)[:100]!r} is no arithmetic")


def _call(name: str, values: list[Number]) -> Number:
    function, least, most = _FUNCTIONS[name]
    if not least <= len(values) <= most:
        raise ToolRefused(f"{name} does not take {len(values)} arguments")
    if name == "round" and len(values) > 1 and abs(values[1]) > INTEGER_BITS_MAX:
        raise ToolRefused("rounds to too many digits")
    return _bounded(function(*values))


def _power(base: Number, exponent: Number) -> Number:
    whole = isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1
    # Known before it is computed: 9 ** 9 ** 9 would take all memory there is.
    if whole and abs(exponent) * int(base).bit_length() > INTEGER_BITS_MAX * 2:
        raise ToolRefused("the power is too large")
    result: Number | complex = base**exponent
    if isinstance(result, complex):
        raise ToolRefused("a root of a negative number")
    return _bounded(result)


def _bounded(value: Number) -> Number:
    if isinstance(value, int):
        if value.bit_length() > INTEGER_BITS_MAX:
            raise ToolRefused("the number is too large")
    elif not math.isfinite(value):
        raise ToolRefused("the number is too large")
    return value


ADD = built_in("add", "Adds two numbers.", AddArguments, add, timeout_seconds=5)
CALCULATOR = built_in(
    "calculator",
    "Evaluates an arithmetic expression: numbers, + - * / // % **, parentheses, pi, e, tau, and the functions "
    f"{', '.join(_FUNCTIONS)}. Angles are in radians. A whole number above 2**53 comes as text.",
    CalculatorArguments,
    calculate,
    timeout_seconds=5,
)
