"""Errors that a user can cause: what was found, what was expected, what to do.

The command line turns every :class:`HamnetError` into one message without a traceback and exit code 2.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "BasisError",
    "ConfigError",
    "HamnetError",
    "ModelError",
    "ReaderError",
    "SolverError",
    "StoreError",
    "StructureError",
]


class HamnetError(Exception):
    """A fault in the input, told as *where: found; expected; remedy*.

    Parameters
    ----------
    found : what is there.
    expected : what should be there.
    remedy : what the user can do about it.
    path : file or folder in which it was found.
    place : place inside the file (byte offset, line, record, block name).
    """

    def __init__(
        self,
        found: str,
        *,
        expected: str = "",
        remedy: str = "",
        path: str | Path | None = None,
        place: str = "",
    ) -> None:
        self.found = found
        self.expected = expected
        self.remedy = remedy
        self.path = None if path is None else str(path)
        self.place = place
        where = ", ".join(part for part in (self.path, place) if part)
        text = f"{where}: {found}" if where else found
        if expected:
            text += f"; expected {expected}"
        if remedy:
            text += f". {remedy[0].upper()}{remedy[1:]}"
        super().__init__(text)

    def __reduce__(self):
        # Exceptions with keyword-only arguments do not survive a process pool without this.
        return (_rebuild, (type(self), self.found, self.expected, self.remedy, self.path, self.place))


def _rebuild(
    kind: type[HamnetError], found: str, expected: str, remedy: str, path: str | None, place: str
) -> HamnetError:
    return kind(found, expected=expected, remedy=remedy, path=path, place=place)


class StructureError(HamnetError):
    """A cell, positions or moments that cannot be those of a crystal."""


class BasisError(HamnetError):
    """Species or shells that do not fit each other."""


class ReaderError(HamnetError):
    """A file of a DFT code that is missing, damaged or of an unknown version."""


class StoreError(HamnetError):
    """A sample set that is missing, damaged, of another version, or could not be written."""


class ConfigError(HamnetError):
    """A training or command configuration that makes no sense."""


class ModelError(HamnetError):
    """A model file that is not one, or input that a model was not made for."""


class SolverError(HamnetError):
    """An eigenproblem that cannot be solved as posed."""
