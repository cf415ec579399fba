"""The superlattice example, on a small skyrmion, from the texture to the unfolded bands; and again without the work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "superlattices" / "superlattices.py"


def _run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "skyrmion", "--cells", "4", "--output", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_small_skyrmion_goes_all_the_way_and_is_not_done_twice(tmp_path):
    done = _run(tmp_path)
    assert done.returncode == 0, done.stderr
    found = {
        path.stem.split("_")[-1]: json.loads(path.read_text())["result"]
        for path in (tmp_path / "stages").glob("*_skyrmion_*.json")
    }
    assert found["texture"]["topological_charge"] == -1
    assert found["fermi"]["gap_eV"] > 0.4
    assert found["solve"]["n_states"] >= 32
    assert found["unfold"]["n_supercell_k"] == 1, "the path folds to one K"
    figures = {path.name for path in tmp_path.glob("*.png")}
    assert figures == {"skyrmion.png", "skyrmion_unfolded.png"}
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").iterdir()}
    assert "skyrmion | unfold" in _run(tmp_path).stdout
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
