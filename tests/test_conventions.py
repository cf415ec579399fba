"""Every convention in docs/conventions.md names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "conventions.md"


def _rows() -> list[tuple[str, str]]:
    """(convention, test) of each row of the tables."""
    rows = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
        if line.startswith("| ") and cells[0].strip() != "convention":
            assert len(cells) == 2, f"row with {len(cells)} cells: {line}"
            rows.append((cells[0].strip(), cells[1].strip()))
    return rows


def test_every_convention_is_one_sentence_with_one_named_test():
    rows = _rows()
    assert len(rows) > 30
    for sentence, test in rows:
        assert sentence.endswith("."), sentence
        assert re.fullmatch(r"`tests/[a-z0-9_/]+\.py::test_\w+`", test), f"{sentence}: {test}"
    sentences = [sentence for sentence, _ in rows]
    assert len(set(sentences)) == len(sentences)


def test_every_named_test_exists():
    functions: dict[str, set[str]] = {}
    missing = []
    for _, test in _rows():
        path, name = test.strip("`").split("::")
        if path not in functions:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            functions[path] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if name not in functions[path]:
            missing.append(test)
    assert missing == []
