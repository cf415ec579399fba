"""Which files belong to a SIESTA run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hamnet.errors import ReaderError

from .compressed import companion, files_ending, logical_name, read_text
from .siesta_fdf import Fdf, read_fdf

__all__ = ["RunFiles", "find_run_files", "looks_like_siesta"]

_WRITES = {
    "HSX": "SaveHS T",
    "nc": "CDF.Save T",
    "DM": "Write.DM.End.Of.Cycle T",
    "EIG": "WriteEigenvalues is not needed; SIESTA writes .EIG at the end of every run that diagonalises",
    "XV": "SIESTA writes .XV in every run; copy it from the folder where it ran",
}


@dataclass(frozen=True, slots=True)
class RunFiles:
    """folder, SystemLabel, parsed input and the main output."""

    folder: Path
    label: str
    fdf: Fdf
    output: Path

    def find(self, suffix: str) -> Path | None:
        """``label.suffix``, plain or compressed, or None."""
        return companion(self.folder, f"{self.label}.{suffix}")

    def need(self, suffix: str, purpose: str) -> Path:
        """The same; :class:`ReaderError` names the file and the fdf option that writes it."""
        found = self.find(suffix)
        if found is None:
            raise missing(self.folder, f"{self.label}.{suffix}", purpose)
        return found


def missing(folder: Path, name: str, purpose: str) -> ReaderError:
    """The error for an output file that is not there."""
    option = _WRITES.get(name.rsplit(".", 1)[-1], "")
    remedy = f"run SIESTA with `{option}` in the fdf" if option.endswith(" T") else option
    return ReaderError(f"no {name}", expected=purpose, remedy=remedy, path=folder)


def looks_like_siesta(path: Path) -> bool:
    """Whether the folder or file is a SIESTA run, by names only."""
    try:
        if path.is_dir():
            return bool(files_ending(path, ".HSX") or files_ending(path, ".fdf"))
        return path.is_file() and logical_name(path).endswith((".HSX", ".fdf"))
    except OSError:  # a folder without permission is nobody's run
        return False


def find_run_files(path: Path) -> RunFiles:
    """The files of the run in a folder, or of the run whose ``.fdf`` or ``.HSX`` is named.

    Raises :class:`ReaderError` where there is no input or no output, or more than one that could be meant.
    """
    folder = path if path.is_dir() else path.parent
    fdf = _input(path, folder)
    return RunFiles(folder, fdf.label, fdf, _main_output(folder, fdf))


def _input(path: Path, folder: Path) -> Fdf:
    if path.is_file() and logical_name(path).endswith(".fdf"):
        return read_fdf(path)
    inputs = [p for p in files_ending(folder, ".fdf") if logical_name(p) != "out.fdf"]  # out.fdf: SIESTA's own echo
    if not inputs:
        raise ReaderError(
            "no .fdf", expected="the input of the run beside its output", remedy="copy it there", path=folder
        )
    parsed = [read_fdf(p) for p in inputs]
    if path.is_file():
        parsed = [f for f in parsed if f.label == logical_name(path).removesuffix(".HSX")]
    if len(parsed) > 1:
        # Parts that others include have no label; of the inputs, only one was run here.
        labelled = [f for f in parsed if f.text("SystemLabel")] or parsed
        parsed = [f for f in labelled if _has_matrix(folder, f)] or labelled
    if len(parsed) != 1:
        names = ", ".join(p.name for p in inputs)
        raise ReaderError(
            f"inputs {names}",
            expected="one input for the run",
            remedy="name the .fdf of the run instead of the folder",
            path=folder,
        )
    return parsed[0]


def _has_matrix(folder: Path, fdf: Fdf) -> bool:
    return any(companion(folder, f"{fdf.label}.{suffix}") for suffix in ("HSX", "nc"))


def _main_output(folder: Path, fdf: Fdf) -> Path:
    label = fdf.label
    for stem in (label, logical_name(fdf.path).removesuffix(".fdf")):
        found = companion(folder, f"{stem}.out")
        if found is not None:
            return found
    others = [p for p in files_ending(folder, ".out") if "siesta" in read_text(p)[:4000].lower()]
    if len(others) == 1:
        return others[0]
    raise ReaderError(
        f"several outputs {', '.join(p.name for p in others)}" if others else f"no {label}.out",
        expected=f"what SIESTA prints, as {label}.out",
        remedy=f"keep what it prints: `siesta < {fdf.path.name} > {label}.out`",
        path=folder,
    )
