"""Where tests find DFT runs.

Small runs are tracked under ``tests/data`` as archives (`tracked`). Larger sets are looked for in the folder that
the environment variable HAMNET_DATA names (`unpacked`); tests that need one are skipped, and say so, where it is not.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TRACKED = ROOT / "tests" / "data"
DATA = Path(os.environ.get("HAMNET_DATA", ROOT.parent / "shared" / "data")).resolve()


def pytest_report_header() -> str:
    if DATA.is_dir():
        return f"HAMNET_DATA: {DATA}"
    return f"HAMNET_DATA: no folder {DATA}; only tests on the runs in tests/data are run, the others are skipped"


def _unpack(archive: Path, into: Path) -> Path:
    """Unpack once; the archive holds one folder named like itself."""
    folder = into / archive.name.removesuffix(".tar.xz")
    if not folder.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(into, filter="data")
    assert folder.is_dir(), f"{archive} does not hold a folder {folder.name}"
    return folder


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``unpacked("openmx/nibr2_sym")`` is the folder with the runs of this set of HAMNET_DATA."""
    into = tmp_path_factory.mktemp("runs")

    def folder(name: str) -> Path:
        archive = DATA / f"{name}.tar.xz"
        if not archive.is_file():
            pytest.skip(f"needs the data set {name}: set HAMNET_DATA to a folder with {name}.tar.xz (looked in {DATA})")
        (into / name).parent.mkdir(exist_ok=True)
        return _unpack(archive, (into / name).parent)

    return folder


@pytest.fixture(scope="session")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``tracked("openmx/NAME")`` is the folder unpacked from ``tests/data/openmx/NAME.tar.xz``, tracked with the code.

    Tests share it: they copy what they change.
    """
    into = tmp_path_factory.mktemp("tracked")

    def folder(name: str) -> Path:
        (into / name).parent.mkdir(exist_ok=True)
        return _unpack(TRACKED / f"{name}.tar.xz", (into / name).parent)

    return folder
