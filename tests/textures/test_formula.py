"""Formulas of textures: their values, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from hamnet.errors import ConfigError
from hamnet.textures.formula import evaluate, parse_formula
from textured_layers import crystal_of


def test_formula_has_the_values_of_its_functions():
    crystal = crystal_of("honeycomb")
    text = "cos(2*pi*u)*exp(-x**2/10), where(v > 0.5, -1, hypot(y, z) % 2), arctan2(w, 1) + abs(-u)"
    values = evaluate(parse_formula(text), crystal, crystal.positions)
    x, y, z = crystal.positions.T
    u, v, w = crystal.fractional_positions.T
    expected = [
        np.cos(2 * np.pi * u) * np.exp(-(x**2) / 10),
        np.where(v > 0.5, -1, np.hypot(y, z) % 2),
        np.arctan2(w, 1) + np.abs(u),
    ]
    np.testing.assert_allclose(values, np.stack(expected, axis=1), atol=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true'), 0, 1",
        "open, 0, 1",
        "x.__class__, 0, 1",
        "eval('1'), 0, 1",
        "(lambda: 1)(), 0, 1",
        "[x for x in (1,)][0], 0, 1",
        "sin(x, out=y), 0, 1",
        "sin(x, y), 0, 1",
        "'text', 0, 1",
        "True, 0, 1",
        "x if y else z, 0, 1",
        "x < y < z, 0, 1",
        "x := 1, 0, 1",
        "r, 0, 1",
        "x, 0",
        "x",
        "x,, y",
        "import os",
        "-" * 500 + "1, 0, 1",
        "(" * 300 + "1" + ")" * 300 + ", 0, 1",
        "1" + "0" * 400 + ", 0, 1",
        "x + " * 1000 + "x, 0, 1",
        "x\0, 0, 1",
    ],
)
def test_formula_with_anything_but_arithmetic_is_refused(text):
    with pytest.raises(ConfigError, match=r"formula|nested"):
        parse_formula(text)


@pytest.mark.parametrize("text", ["1/(x - x), 0, 1", "sqrt(-1 - x**2), 0, 1", "9**9**9**9, 0, 1", "0, log(0*x), 1"])
def test_formula_with_values_that_are_not_finite_is_refused(text):
    crystal = crystal_of()
    with pytest.raises(ConfigError, match="finite numbers"):
        evaluate(parse_formula(text), crystal, crystal.positions)
