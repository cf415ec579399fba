"""Where verbs get samples from: a sample set, or a DFT run as its code left it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hamnet.errors import ConfigError, HamnetError, StoreError

if TYPE_CHECKING:
    from hamnet.blocks import BlockOperator
    from hamnet.sample import Sample
    from preprocessing.readers.protocol import BandReference

__all__ = ["Source", "hamiltonian_of", "load_sample", "load_source", "sample_places"]

_SET_SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A sample, and the eigenvalues that the DFT code printed, if it is a run."""

    path: Path
    sample: Sample
    references: tuple[BandReference, ...] = ()


def load_source(
    path: str | Path, name: str | None = None, *, stored: bool = False, operators: Iterable[str] = ()
) -> Source:
    """A sample of a set (``.h5``), or a DFT run.

    Parameters
    ----------
    name : of the sample; needed where a set holds several.
    stored : of a run, the Hamiltonian as the code stored it, penalties of a constraint included: the one with the
        code's own bands. Else the penalty is subtracted.
    operators : of a run, what to read besides H and S: density, position, momentum.

    Raises :class:`HamnetError` for what is missing or unreadable, with the nearest names for an unknown one.
    """
    path = Path(path)
    if path.suffix.lower() in _SET_SUFFIXES and not path.is_dir():
        if stored:
            raise ConfigError(
                "--stored for a sample set", expected="a DFT run folder: sets hold one Hamiltonian", path=path
            )
        return Source(path, _from_set(path, name))
    if not path.exists():
        raise HamnetError("no such file or folder", expected="a sample set (.h5) or a DFT run folder", path=path)
    from preprocessing.readers import read_run
    from preprocessing.readers.protocol import ReadOptions

    run = read_run(path, ReadOptions(operators=frozenset(operators)))  # type: ignore[arg-type]
    if name is not None and name != run.sample.name:
        raise ConfigError(f"sample {name!r} of a run", expected=f"{run.sample.name!r}, or no name", path=path)
    sample = replace(run.sample, hamiltonian=run.stored_hamiltonian) if stored else run.sample
    return Source(path, sample, run.references)


def load_sample(
    path: str | Path, name: str | None = None, *, stored: bool = False, operators: Iterable[str] = ()
) -> Sample:
    """The sample of :func:`load_source`."""
    return load_source(path, name, stored=stored, operators=operators).sample


def sample_places(sources: Iterable[Path], pattern: str = "*") -> list[tuple[Path, str | None]]:
    """(path, name in a set or None for a run) of all samples in sets, DFT runs and folders of these.

    pattern : which samples of sets, as ``r0*``. Raises :class:`ConfigError` for a set in which none fits.
    """
    from fnmatch import fnmatchcase

    from hamnet.store import SampleSet
    from preprocessing.readers import find_runs

    places: list[tuple[Path, str | None]] = []
    for path in sources:
        if not path.is_file() or path.suffix.lower() not in _SET_SUFFIXES:
            places += [(run, None) for run in find_runs([path])]
            continue
        with SampleSet(path) as samples:
            chosen = [name for name in samples.names if fnmatchcase(name, pattern)]
        if not chosen:
            raise ConfigError(f"no sample fits {pattern!r}", expected="at least one", path=path)
        places += [(path, name) for name in chosen]
    return places


def _from_set(path: Path, name: str | None) -> Sample:
    from hamnet.store import SampleSet

    with SampleSet(path) as samples:
        names = samples.names
        if name is None and len(names) != 1:
            raise StoreError(
                f"{len(names)} samples",
                expected="one, or the name of one",
                remedy=f"choose with --sample: {_some(names)}" if names else "",
                path=path,
            )
        if name is not None and name not in names:
            near = difflib.get_close_matches(name, names, n=5, cutoff=0.4) or list(names)
            raise StoreError(f"no sample {name!r}", expected=f"one of the {len(names)}, e.g. {_some(near)}", path=path)
        return samples[name or 0]


def _some(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def hamiltonian_of(source: Source) -> BlockOperator:
    """The Hamiltonian; raises :class:`HamnetError` where there is none."""
    if source.sample.hamiltonian is None:
        raise HamnetError(
            f"{source.sample.name} has no Hamiltonian",
            expected="a sample with H",
            remedy="predict it first with `hamnet predict`",
            path=source.path,
        )
    return source.sample.hamiltonian
