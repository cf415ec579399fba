"""SIESTA input files in fdf: keys, blocks and included files.

Keys are compared without case and without ``-``, ``_`` and ``.``; the first occurrence counts, as in SIESTA. Lines may
carry comments from ``#``, ``;`` or ``!`` on. Understood: ``%include file``, ``%block key < file`` and ``key < file``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from hamnet.errors import ReaderError

from .compressed import companion, read_text

__all__ = ["Fdf", "read_fdf"]

_COMMENT = re.compile(r"[#;!].*")
_MAX_DEPTH = 20
_TRUE = {"", "true", ".true.", "t", "yes", "y"}
_FALSE = {"false", ".false.", "f", "no", "n"}
_LENGTHS_BOHR_OR_ANG = {"bohr": ("bohr", 1.0), "ang": ("ang", 1.0), "nm": ("ang", 10.0)}


def _key(word: str) -> str:
    return re.sub(r"[-_.]", "", word).lower()


@dataclass(slots=True)
class Fdf:
    """Keys and blocks of one input, included files in place.

    Attributes
    ----------
    path : the file that was named.
    values : {normalised key: rest of its line}.
    blocks : {normalised key: lines without comments}.
    """

    path: Path
    values: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def text(self, *keys: str, default: str = "") -> str:
        """The value of the first of `keys` (synonyms) that is there."""
        return next((self.values[_key(k)] for k in keys if _key(k) in self.values), default)

    @property
    def label(self) -> str:
        """SystemLabel, the stem of all output files."""
        words = self.text("SystemLabel").split()
        return words[0] if words else "siesta"

    def block(self, *keys: str) -> tuple[str, ...] | None:
        """The lines of the first of these blocks that is there, or None."""
        return next((self.blocks[_key(k)] for k in keys if _key(k) in self.blocks), None)

    def number(self, *keys: str, default: float) -> float:
        """The leading number of a value; a unit behind it is not looked at."""
        text = self.text(*keys)
        try:
            return float(text.split()[0].lower().replace("d", "e")) if text else default
        except ValueError as error:
            raise ReaderError(f"{keys[0]} {text}", expected="a number", path=self.path) from error

    def logical(self, *keys: str, default: bool) -> bool:
        """A Boolean; a key without value is true."""
        for key in keys:
            if _key(key) in self.values:
                words = self.values[_key(key)].lower().split()
                word = words[0] if words else ""
                if word not in _TRUE | _FALSE:
                    raise ReaderError(f"{key} {word}", expected="true or false", path=self.path)
                return word in _TRUE
        return default

    def length_bohr(self, key: str, bohr_ang: float) -> float | None:
        """A length with its unit, in Bohr; None if the key is not there."""
        words = self.text(key).split()
        if not words:
            return None
        unit, factor = _LENGTHS_BOHR_OR_ANG.get(words[1].lower() if len(words) > 1 else "bohr", ("", 0.0))
        if not unit:
            raise ReaderError(f"{key} {' '.join(words)}", expected="a length in Ang, Bohr or nm", path=self.path)
        return self.number(key, default=0.0) * factor / (bohr_ang if unit == "ang" else 1.0)


def read_fdf(path: Path) -> Fdf:
    """Parse an input and the files that it includes, looked for in its folder.

    Raises :class:`ReaderError` for an included file that is missing, a block without end, or inclusion without end.
    """
    fdf = Fdf(path)
    _parse(fdf, path, 0)
    return fdf


def _find(fdf: Fdf, name: str, place: str) -> Path:
    folder = (fdf.path.parent / name).parent
    found = companion(folder, Path(name).name)
    if found is None:
        raise ReaderError(
            f"no included file {name}",
            expected="the whole input of the run",
            remedy=f"put {name} beside the input, where the run had it",
            path=fdf.path,
            place=place,
        )
    return found


def _lines(path: Path) -> list[str]:
    return [_COMMENT.sub("", line).strip() for line in read_text(path).splitlines()]


def _parse(fdf: Fdf, path: Path, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ReaderError(f"more than {_MAX_DEPTH} nested %include", expected="files that end", path=path)
    lines = _lines(path)
    number = 0
    while number < len(lines):
        line, place = lines[number], f"line {number + 1}"
        number += 1
        if not line:
            continue
        words = line.split()
        head = words[0].lower()
        if head == "%include" and len(words) > 1:
            _parse(fdf, _find(fdf, words[1], place), depth + 1)
        elif head == "%block" and len(words) > 1:
            key = _key(words[1])
            if "<" in words and len(words) > words.index("<") + 1:
                block = _foreign_block(fdf, key, words[words.index("<") + 1], place, depth)
            else:
                start = number
                while number < len(lines) and not lines[number].lower().startswith("%endblock"):
                    number += 1
                if number == len(lines):
                    raise ReaderError(
                        f"block {words[1]} without end",
                        expected=f"%endblock {words[1]}",
                        remedy="the file is truncated",
                        path=path,
                        place=place,
                    )
                block = tuple(text for text in lines[start:number] if text)
                number += 1
            fdf.blocks.setdefault(key, block)
        elif "<" in words and len(words) > words.index("<") + 1:
            cut = words.index("<")
            other = Fdf(fdf.path)
            _parse(other, _find(fdf, words[cut + 1], place), depth + 1)
            for key in map(_key, words[:cut]):
                if key in other.values:
                    fdf.values.setdefault(key, other.values[key])
        elif not head.startswith("%"):
            key, *rest = re.split(r"[\s=:,]+", line, maxsplit=1)
            fdf.values.setdefault(_key(key), rest[0].strip() if rest else "")


def _foreign_block(fdf: Fdf, key: str, name: str, place: str, depth: int) -> tuple[str, ...]:
    """A block kept in another file: under its own name there, or the file is the block."""
    path = _find(fdf, name, place)
    lines = [line for line in _lines(path) if line]
    if any(line.lower().startswith("%block") for line in lines):
        other = Fdf(fdf.path)
        _parse(other, path, depth + 1)
        if key in other.blocks:
            return other.blocks[key]
    return tuple(lines)
