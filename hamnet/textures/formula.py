"""Textures from a formula: three expressions of the position, read by a white-list and never executed as code."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hamnet.errors import ConfigError
from hamnet.structure import Structure

__all__ = ["CONSTANTS", "FUNCTIONS", "VARIABLES", "Formula", "evaluate", "parse_formula"]

VARIABLES = ("x", "y", "z", "u", "v", "w")
"""Cartesian position in Å, and fractions of the lattice vectors of the supercell."""

CONSTANTS = {"pi": np.pi}

FUNCTIONS: Mapping[str, tuple[Callable, int]] = {
    name: (getattr(np, name), 1)
    for name in ("sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "exp", "log", "sqrt", "abs")
} | {
    name: (getattr(np, name), 2) for name in ("arctan2", "hypot", "minimum", "maximum")
} | {"floor": (np.floor, 1), "sign": (np.sign, 1), "where": (np.where, 3)}  # fmt: skip
"""Name: function and number of its arguments."""

_BINARY = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide, ast.Pow: np.power}
_BINARY |= {ast.Mod: np.mod}
_UNARY = {ast.USub: np.negative, ast.UAdd: np.positive}
_COMPARE = {ast.Lt: np.less, ast.LtE: np.less_equal, ast.Gt: np.greater, ast.GtE: np.greater_equal}
_LONGEST, _DEEPEST, _LARGEST = 2000, 60, 1e300

Formula = tuple[ast.expr, ast.expr, ast.expr]


def parse_formula(text: str) -> Formula:
    """Three expressions, divided by commas, of the variables x, y, z (Å) and u, v, w (fractions of the supercell).

    Numbers, + − * / ** %, comparisons (for ``where``), `CONSTANTS` and `FUNCTIONS` are allowed, and nothing else.
    Raises :class:`ConfigError` with the part that is not.
    """
    if len(text) > _LONGEST:
        raise ConfigError(f"a formula of {len(text)} characters", expected=f"at most {_LONGEST}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"formula {text!r}: {error}", expected="three expressions divided by commas") from error
    if not isinstance(tree, ast.Tuple) or len(tree.elts) != 3:
        count = len(tree.elts) if isinstance(tree, ast.Tuple) else 1
        raise ConfigError(f"formula {text!r} with {count} components", expected="three, divided by commas")
    for part in tree.elts:
        _check(part, text, _DEEPEST)
    return tree.elts[0], tree.elts[1], tree.elts[2]


def _check(node: ast.expr, text: str, depth: int) -> None:
    """Raise unless the expression consists of what is allowed, nested at most `depth` times."""
    if depth == 0:
        raise ConfigError(f"a formula nested more than {_DEEPEST} times", expected="a simpler one")
    match node:
        case ast.Constant(value=int() | float() as value) if type(value) is not bool and abs(value) < _LARGEST:
            return
        case ast.Name(id=name) if name in VARIABLES or name in CONSTANTS:
            return
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            parts = [left, right]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            parts = [operand]
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            parts = [left, right]
        case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]) if name in FUNCTIONS:
            if len(parts) != FUNCTIONS[name][1]:
                raise ConfigError(
                    f"{name} of {len(parts)} arguments in the formula {text!r}", expected=f"{FUNCTIONS[name][1]}"
                )
        case _:
            names = ", ".join((*VARIABLES, *CONSTANTS, *FUNCTIONS))
            raise ConfigError(
                f"{ast.unparse(node)!r} in the formula {text!r}",
                expected=f"numbers, + - * / ** %, one < or > at a time, {names}",
            )
    for part in parts:
        _check(part, text, depth - 1)


def evaluate(formula: Formula, structure: Structure, positions: ArrayLike) -> NDArray[np.float64]:
    """(n, 3) values at positions (n, 3) Å; fractions are those of the cell of `structure`.

    Raises :class:`ConfigError` where a value is not finite.
    """
    positions = np.asarray(positions, dtype=np.float64)
    fractions = positions @ np.linalg.inv(structure.cell)
    values = dict(zip(VARIABLES, (*positions.T, *fractions.T), strict=True)) | CONSTANTS
    with np.errstate(all="ignore"):  # what is not finite is told below
        columns = [np.broadcast_to(_value(part, values), (len(positions),)) for part in formula]
    result = np.stack(columns, axis=1).astype(np.float64)
    if not np.isfinite(result).all():
        atom, component = np.argwhere(~np.isfinite(result))[0]
        raise ConfigError(
            f"the component {ast.unparse(formula[component])!r} is {result[atom, component]} at "
            f"{np.round(positions[atom], 4).tolist()} Å",
            expected="finite numbers at every magnetic atom",
        )
    return result


def _value(node: ast.expr, values: Mapping[str, ArrayLike]) -> NDArray | np.floating:
    match node:
        case ast.Constant(value=value):
            return np.float64(value)  # type: ignore[arg-type]
        case ast.Name(id=name):
            return np.asarray(values[name], dtype=np.float64)
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_value(left, values), _value(right, values))
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_value(operand, values))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _COMPARE[type(op)](_value(left, values), _value(right, values))
        case ast.Call(func=ast.Name(id=name), args=args):
            return FUNCTIONS[name][0](*(_value(part, values) for part in args))
    raise AssertionError(f"{ast.unparse(node)} was not checked")
