"""What verbs print: one JSON object, or tables in which a missing number shows as a dash."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["number", "print_json", "print_table", "progress_bar"]

_LEAST_WORDS = 24
"""Characters below which a column of words is not folded; a narrower terminal breaks the lines itself."""


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
    """A table on stdout; the first `left` columns hold words, the others numbers, which are never broken."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    rows, needed = [tuple(row) for row in rows], 2
    for place, column in enumerate(columns):
        cells = [column, *(row[place] for row in rows)]
        longest = max(len(line) for cell in cells for line in cell.split("\n"))
        # rich would cut a number that does not fit, and a cut number is a wrong one.
        least = longest if place >= left else min(longest, _LEAST_WORDS)
        needed += least + 3
        table.add_column(column, justify="left" if place < left else "right", overflow="fold", min_width=least)
    for row in rows:
        table.add_row(*row)
    # Into a pipe or file no line is cut to the width of a terminal that is not there.
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 200)
    console.width = max(console.width, needed)
    console.print(table)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal; yields the function that moves it, called with (done, all)."""
    from rich.console import Console
    from rich.progress import Progress

    # Into a file the bar would leave only empty lines.
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
