"""Links, files, make targets and commands that the documentation names exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hamnet.cli import main as frame

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def _commands(page: Path) -> list[str]:
    """Lines of console blocks, continued lines joined, comments left out."""
    lines = []
    for block in re.findall(r"```(?:bash|console|sh)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        lines += [line.removeprefix("$ ").strip() for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_link_within_the_project_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<(?:img|a)[^>]+(?:src|href)="([^"]+)"', text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in _anchors(there)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_command_in_a_page_is_one_that_hamnet_or_make_understands(page, capsys):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for command in _commands(page):
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            assert {w for w in words[1:] if "=" not in w} <= targets, command
        if words[0] == "hamnet":
            assert words[1] in frame._VERBS or words[1].startswith("--"), command
            if words[1] in frame._VERBS and "--help" not in words:
                try:
                    frame._parser(words[1]).parse_args(words[1:])
                except SystemExit:
                    pytest.fail(f"{command}\n{capsys.readouterr().err}")


def test_the_python_example_of_the_readme_runs_on_a_real_run(tracked, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert frame.main(["preprocess", str(tracked("openmx/nibr2_1x1_nc")), "-o", "nibr2.h5", "--jobs", "1"]) == 0
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["energies"].shape == (2, 1, 58)
    assert names["h"].shape == (1, 1, 58, 58)


def test_pages_of_the_docs_folder_are_listed_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [_name(p) for p in PAGES if p.parent.name == "docs" and f"({_name(p)})" not in readme] == []


def test_no_tracked_text_names_a_path_of_one_machine():
    suffixes = {".py", ".md", ".toml", ".txt", ".cff", ""}
    skipped = {".git", ".venv", "out", "runs"}
    wrong = []
    for path in ROOT.rglob("*"):
        if path.suffix in suffixes and path.is_file() and not skipped & set(path.relative_to(ROOT).parts):
            text = path.read_bytes().decode("utf-8", errors="replace")
            if re.search(r"/(?:home|root|Users)/\w", text) and path != Path(__file__):
                wrong.append(_name(path))
    assert wrong == []
