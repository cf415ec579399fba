"""What verbs print: one JSON object, or tables in which a missing number shows as a dash."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["number", "print_json", "print_table"]


def print_json(result: dict[str, Any]) -> None:
    """One object on stdout; numbers that are not finite become null, which JSON can hold."""
    print(json.dumps(_plain(result), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # numpy and torch, without importing them
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float | None, spec: str = ".3g") -> str:
    """The number as text, or a dash where there is none."""
    return "–" if value is None else format(value, spec)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", left: int = 1) -> None:
    """A table on stdout; the first `left` columns hold words, the others numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # Into a pipe or file no line is cut to the width of a terminal that is not there.
    Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
