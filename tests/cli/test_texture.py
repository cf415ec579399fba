"""``hamnet texture``: from a small cell to a file that ``hamnet predict`` reads."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read, write

from hamnet.cli import main as frame
from hamnet.cli.main import main
from hamnet.cli.structures import load_structure
from hamnet.models.io import load_model
from hamnet.store import SampleSet

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "nibr2" / "model" / "model.safetensors"
PAGE = ROOT / "docs" / "json.md"


@pytest.fixture
def hamnet(tmp_path, monkeypatch, capsys):
    """``hamnet("verb", …)`` in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def run(tracked) -> Path:
    """A DFT run of the primitive cell of NiBr2."""
    return tracked("openmx/nibr2_1x1_nc")


@pytest.fixture
def iron(tmp_path) -> Path:
    path = tmp_path / "iron.cif"
    write(path, bulk("Fe", "bcc", a=2.87, cubic=True))
    return path


def _moments(path: str | Path) -> np.ndarray:
    moments = load_structure(Path(path))[0].moments
    assert moments is not None
    return moments


def test_texture_of_a_small_cell_is_predicted_with_the_shipped_model(hamnet, run):
    words = ("--supercell", 3, 1, 1, "--q", "1/3", 0, 0, "--axis", "cycloid", "--model", MODEL)
    code, out, _ = hamnet("texture", "spiral", run, *words, "-o", "spiral.xyz", "--moments", "m.npy", "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["n_atoms"], result["n_magnetic"], result["q_frac"]) == (9, 3, [pytest.approx(1 / 3), 0, 0])
    assert result["parameters"]["period_ang"] > 0
    scale = load_model(MODEL).model.moment_scale[0]
    assert result["sizes"] == [
        {
            "species": "Ni",
            "size_muB": pytest.approx(scale),
            "source": f"root mean square in the training set of {MODEL}",
        }
    ]
    moments = _moments("spiral.xyz")
    np.testing.assert_array_equal(moments, np.load("m.npy"))
    np.testing.assert_allclose(sorted(np.linalg.norm(moments, axis=1)), [0] * 6 + [scale] * 3, rtol=1e-12)
    assert Path("spiral.png").stat().st_size > 0
    code, _, err = hamnet("predict", MODEL, "spiral.xyz", "--overlap", run, "-o", "spiral.h5")
    assert (code, "warning" in err) == (0, False)
    with SampleSet("spiral.h5") as samples:
        sample = samples[0]
    np.testing.assert_allclose(sample.structure.moments, moments, atol=1e-12)
    assert sample.overlap is not None
    # The exchange part of H follows the moments: it is there, and it is none of the collinear state.
    (x, y, z) = (np.concatenate([block[:, c].real.ravel() for block in sample.hamiltonian.blocks]) for c in (1, 2, 3))
    assert min(np.abs(x).max(), np.abs(y).max(), np.abs(z).max()) > 0.01


@pytest.mark.parametrize("suffix", ["npy", "txt"])
def test_files_keep_every_digit_of_cell_positions_and_moments(hamnet, run, suffix):
    words = ("--supercell", 2, 1, 0, -1, 2, 0, 0, 0, 1, "--seed", 1, "--size", "Ni=1.3")
    assert hamnet("texture", "random", run, *words, "-o", "a.xyz", "--moments", f"m.{suffix}", "--no-figure")[0] == 0
    assert not Path("a.png").exists()
    small, again = load_structure(run)[0], load_structure(Path("a.xyz"))[0]
    assert len(again) == 5 * len(small)
    np.testing.assert_array_equal(again.cell, np.array([[2, 1, 0], [-1, 2, 0], [0, 0, 1]]) @ small.cell)
    assert set(again.positions.ravel().tolist()) >= set(small.positions.ravel().tolist())
    np.testing.assert_array_equal(load_structure(Path("a.xyz"), moments=Path(f"m.{suffix}"))[0].moments, again.moments)
    # The same seed gives the same bits, another one others.
    assert hamnet("texture", "random", run, *words, "-o", "b.xyz", "--no-figure")[0] == 0
    np.testing.assert_array_equal(_moments("b.xyz"), again.moments)
    assert hamnet("texture", "random", run, *words[:-3], 2, *words[-2:], "-o", "b.xyz", "--no-figure")[0] == 0
    assert np.abs(_moments("b.xyz") - again.moments).max() > 0.1
    assert "random; seed 1" in str(read("a.xyz").info["texture"])


def test_skyrmion_lattices_tell_their_charge_layer_by_layer(hamnet, iron):
    words = ("--supercell", 24, 24, 2, "--radius", 14, "--width", 5, "--size", "Fe=2.2")
    for extra, charge in (((), -1), (("--vorticity", -1), 1), (("--polarity", 1), 1), (("--axis", 1, 0, 0), -1)):
        code, out, err = hamnet("texture", "skyrmions", iron, *words, *extra, "-o", "s.xyz", "--no-figure", "--json")
        result = json.loads(out)
        assert (code, err) == (0, "")
        assert [layer["topological_charge"] for layer in result["layers"]] == [charge] * 4
        assert result["topological_charge"] == 4 * charge
        assert sum(layer["n_magnetic"] for layer in result["layers"]) == result["n_atoms"] == 2304
    _, out, _ = hamnet("texture", "skyrmions", iron, *words, "-o", "s.xyz", "--layer", 3)
    assert "topological charge −4 in 4 layers" in out
    _, out, _ = hamnet(
        "texture", "skyrmions", iron, "--supercell", 24, 24, 1, "--radius", 6, "--width", 3, "--size", "Fe=2.2",
        "--repeat", 2, 1, "--centre", "1/4", "1/4", "--centre", "3/4", "3/4", "-o", "s.xyz", "--no-figure", "--json",
    )  # fmt: skip
    result = json.loads(out)
    assert (result["parameters"]["count"], result["topological_charge"]) == (4, -8)


def test_staggered_skyrmions_have_the_charge_of_the_neel_vector(hamnet, iron):
    words = ("--supercell", 20, 20, 1, "--radius", 12, "--width", 5, "--size", "Fe=2", "--signs", 1, -1)
    code, out, _ = hamnet("texture", "skyrmions", iron, *words, "-o", "s.xyz", "--no-figure", "--json")
    result = json.loads(out)
    assert (code, result["topological_charge"]) == (0, -2)
    np.testing.assert_allclose(np.linalg.norm(_moments("s.xyz"), axis=1), 2)
    assert np.abs(result["net_moment_muB"]).max() < 50
    code, _, err = hamnet("texture", "skyrmions", iron, *words[:-1], "-o", "s.xyz")
    assert (code, "1 signs; expected 2, one for each magnetic atom of the cell" in err) == (2, True)


def test_walls_vortices_cone_and_ferromagnet_are_written(hamnet, iron):
    size = ("--size", "Fe=2", "--json", "--no-figure", "-o", "t.xyz")
    _, out, err = hamnet("texture", "walls", iron, "--supercell", 30, 1, 1, "--width", 4, "--type", "neel", *size)
    assert (json.loads(out)["topological_charge"], err) == (0, "")
    moments = _moments("t.xyz")
    np.testing.assert_allclose(moments[:, 1], 0, atol=1e-12)
    assert moments[:, 2].max() == pytest.approx(2, abs=1e-2)
    assert moments[:, 2].min() == pytest.approx(-2, abs=1e-2)
    words = ("vortices", iron, "--supercell", 24, 24, 1, "--core", 5)
    _, out, err = hamnet("texture", *words, "--anti-polarity", -1, *size)
    assert (json.loads(out)["topological_charge"], err) == (4, "")
    _, out, err = hamnet("texture", *words, "--single", *size)
    assert "a single vortex is not periodic" in err
    assert json.loads(out)["warnings"]
    _, out, _ = hamnet("texture", "cone", iron, "--axis", 1, 0, 0, "--angle", 20, "--seed", 3, *size)
    moments = _moments("t.xyz")
    assert (moments[:, 0] >= 2 * np.cos(np.radians(20)) - 1e-12).all()
    _, out, _ = hamnet("texture", "ferromagnet", iron, "--direction", 0, -3, 0, *size)
    np.testing.assert_allclose(_moments("t.xyz"), [[0, -2, 0]] * 2)


def test_formula_gives_directions_or_sizes_and_tells_of_jumps_at_the_boundary(hamnet, iron):
    common = ("--supercell", 10, 1, 1, "--size", "Fe=2", "-o", "f.xyz", "--no-figure")
    code, _, err = hamnet("texture", "formula", iron, "--components", "cos(2*pi*u), sin(2*pi*u), 1", *common)
    assert (code, err) == (0, "")
    structure = load_structure(Path("f.xyz"))[0]
    u = structure.fractional_positions[:, 0]
    expected = np.sqrt(2) * np.stack([np.cos(2 * np.pi * u), np.sin(2 * np.pi * u), np.ones_like(u)], axis=1)
    np.testing.assert_allclose(structure.moments, expected, atol=1e-9)
    text = "0, 0, sin(2*pi*u)"
    code, _, err = hamnet("texture", "formula", iron, "--components", text, *common)
    assert (code, "where the texture is zero, the first is atom 0 at [0.0, 0.0, 0.0] Å" in err) == (2, True)
    code, _, err = hamnet("texture", "formula", iron, "--components", text, "--keep-length", *common)
    assert (code, err) == (0, "")
    np.testing.assert_allclose(_moments("f.xyz")[:, 2], 2 * np.sin(2 * np.pi * u), atol=1e-9)
    code, _, err = hamnet("texture", "formula", iron, "--components", "cos(x/6), sin(x/6), 0", *common)
    assert code == 0
    assert "turns the moments by 86° over the boundary along a" in err
    code, _, err = hamnet("texture", "formula", iron, "--components", "__import__('os'), 0, 1", *common)
    assert (code, "\"__import__('os')\" in the formula" in err) == (2, True)


def _ovf(path: str, values: np.ndarray, step_nm: float) -> None:
    """A mumax3-like file, binary 4, of values (nx, ny, nz, 3)."""
    nodes = values.shape[:3]
    lines = ["# OOMMF OVF 2.0", "# Segment count: 1", "# Begin: Segment", "# Begin: Header", "# Title: m"]
    lines += ["# meshtype: rectangular", "# meshunit: nm", "# valuedim: 3"]
    for axis, n in zip("xyz", nodes, strict=True):
        lines += [f"# {axis}nodes: {n}", f"# {axis}stepsize: {step_nm}", f"# {axis}base: {step_nm / 2}"]
        lines += [f"# {axis}min: 0", f"# {axis}max: {n * step_nm}"]
    head = "\n".join([*lines, "# End: Header", "# Begin: Data Binary 4", ""]).encode()
    data = np.concatenate([[1234567.0], values.transpose(2, 1, 0, 3).ravel()]).astype("<f4").tobytes()
    Path(path).write_bytes(head + data + b"\n# End: Data Binary 4\n# End: Segment\n")


def test_micromagnetic_field_is_laid_over_the_supercell_and_keeps_its_skyrmion(hamnet, iron):
    n, step = 60, 24 * 0.287 / 60
    x = (np.arange(n) + 0.5) * step * 10 - 12 * 2.87
    r, azimuth = np.hypot(*np.meshgrid(x, x, indexing="ij")), np.arctan2(*np.meshgrid(x, x, indexing="ij")[::-1])
    theta = 2 * np.arctan(np.sinh(14 / 5) / np.sinh(np.maximum(r, 1e-9) / 5))
    values = np.stack([np.sin(theta) * np.cos(azimuth), np.sin(theta) * np.sin(azimuth), np.cos(theta)], axis=-1)
    _ovf("m.ovf", values[:, :, None], step)
    common = ("--field", "m.ovf", "--supercell", 24, 24, 1, "--size", "Fe=2", "-o", "o.xyz", "--no-figure", "--json")
    hamnet("texture", "skyrmions", iron, *common[2:-4], "--radius", 14, "--width", 5, "-o", "s.xyz", "--no-figure")
    for extra, allowed in (((), 0.05), (("--place", "length"), 0.05), (("--nearest",), 0.4)):
        code, out, err = hamnet("texture", "ovf", iron, *common, *extra)
        result = json.loads(out)
        assert (code, err) == (0, "")
        assert result["topological_charge"] == -2
        assert result["parameters"]["interpolation"] == ("nearest" if extra == ("--nearest",) else "linear")
        assert np.abs(_moments("o.xyz") - _moments("s.xyz")).max() < allowed * 2
    larger = ("--field", "m.ovf", "--supercell", 30, 24, 1, "--size", "Fe=2", "-o", "o.xyz", "--no-figure")
    code, _, err = hamnet("texture", "ovf", iron, *larger)
    assert (code, "the field is stretched over the supercell (68.88 Å on 86.1 Å" in err) == (0, True)
    code, _, err = hamnet("texture", "ovf", iron, *larger, "--place", "length")
    assert (code, "lattice vectors that are periods of the mesh" in err) == (2, True)


def test_atoms_of_a_spirit_file_get_their_own_vectors(hamnet, iron):
    values = np.random.default_rng(0).normal(size=(2 * 3, 2, 1, 3)).astype(np.float32)
    _ovf("spins.ovf", values, 0.287)
    code, out, _ = hamnet(
        "texture", "ovf", iron, "--field", "spins.ovf", "--place", "sites", "--keep-length",
        "--supercell", 3, 2, 1, "--size", "Fe=1", "-o", "o.xyz", "--no-figure", "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["parameters"]["interpolation"] == "none"
    structure = load_structure(Path("o.xyz"))[0]
    assert structure.moments is not None
    for position, moment in zip(structure.positions / 2.87, structure.moments, strict=True):
        site = int(position[2] > 0.25)
        a, b, c = np.rint(position - 0.5 * site).astype(int)
        np.testing.assert_allclose(moment, values[site + 2 * a, b, c], rtol=1e-6)


def test_moments_of_a_smaller_cell_are_repeated_and_rescaled_if_sizes_are_given(hamnet, iron):
    words = ("--supercell", 4, 2, 1, "--seed", 5, "--size", "Fe=2", "-o", "small.xyz", "--no-figure")
    assert hamnet("texture", "random", iron, *words)[0] == 0
    common = ("texture", "moments", iron, "--source", "small.xyz", "--no-figure", "-o", "m.xyz")
    assert hamnet(*common, "--supercell", 4, 2, 1)[0] == 0
    np.testing.assert_array_equal(_moments("m.xyz"), _moments("small.xyz"))
    code, out, _ = hamnet(*common, "--supercell", 8, 4, 1, "--json")
    assert json.loads(out)["sizes"] == [
        {"species": "Fe", "size_muB": pytest.approx(2), "source": "mean of the moments of small.xyz"}
    ]
    small, large = load_structure(Path("small.xyz"))[0], load_structure(Path("m.xyz"))[0]
    assert small.moments is not None
    assert large.moments is not None
    for atom in (0, 7, 15):
        copies = (large.positions - small.positions[atom]) @ np.linalg.inv(small.cell)
        same = np.abs(copies - np.rint(copies)).max(axis=1) < 1e-6
        assert same.sum() == 4
        np.testing.assert_allclose(large.moments[same], np.tile(small.moments[atom], (4, 1)), atol=1e-12)
    assert hamnet(*common, "--supercell", 4, 2, 1, "--size", "Fe=1")[0] == 0
    np.testing.assert_allclose(_moments("m.xyz"), small.moments / 2, atol=1e-12)
    code, _, err = hamnet(*common, "--supercell", 3, 2, 1)
    assert (code, "small.xyz: a cell whose lattice vectors miss" in err) == (2, True)
    code, _, err = hamnet("texture", "moments", iron, "--source", iron, "-o", "m.xyz")
    assert (code, "a structure without moments" in err) == (2, True)


SPIRAL = ("spiral", "--q", "0.13", 0, 0, "--supercell", 8, 1, 1, "--size", "Fe=2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (SPIRAL, "q = 1/8 0 0 in the supercell 8 1 1"),
        (("spiral", "--q", "-1/3", 0, 0, "--size", "Fe=2"), "q = -1/3 0 0 in the supercell 3 1 1"),
        (("random", "--seed", 1), "no sizes of the moments; expected --model MODEL, or --size"),
        (("random", "--seed", 1, "--size", "Co=1"), "--size Co=1; expected SPECIES=NUMBER"),
        (("random", "--seed", 1, "--size", "Fe=-1"), "--size Fe=-1; expected SPECIES=NUMBER"),
        (("random", "--seed", 1, "--size", "Fe=0"), "no magnetic atom"),
        (("random", "--seed", -1, "--size", "Fe=1"), "--seed -1; expected 0 or more"),
        (("random", "--seed", 1, "--size", "Fe=1", "--supercell", 2, 2), "--supercell with 2 numbers"),
        (("random", "--seed", 1, "--size", "Fe=1", "--supercell", 2, 0, 1), "determinant 0"),
        (("random", "--seed", 1, "--size", "Fe=1", "--layer", 3), "--layer 3; expected 1 … 2"),
        (("random", "--seed", 1, "--size", "Fe=1", "--figure", "f.gif"), "figure 'f.gif'"),
        (("walls", "--width", 3, "--count", 3, "--size", "Fe=1", "--supercell", 9, 1, 1), "such as 2 or 4"),
        (("walls", "--width", 9, "--size", "Fe=1", "--supercell", 9, 1, 1), "a period of at least 56.55 Å"),
        (("skyrmions", "--radius", 9, "--width", 2, "--size", "Fe=1", "--supercell", 5, 5, 1), "below 7.175 Å"),
        (("spiral", "--q", 0, 0, 0, "--axis", "screw", "--size", "Fe=1"), "wave vector [0.0, 0.0, 0.0]"),
        (("ovf", "--field", "none.ovf", "--size", "Fe=1"), "none.ovf: cannot be read"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_makes_no_sense_is_refused_and_nothing_is_written(hamnet, iron, words, message):
    kind, *rest = words
    code, _, err = hamnet("texture", kind, iron, *rest, "-o", "t.xyz")
    assert code == 2
    assert message in err
    assert not list(Path().glob("t.*"))


def test_names_of_files_that_nothing_could_read_are_refused(hamnet, iron):
    words = ("texture", "random", iron, "--seed", 1, "--size", "Fe=1")
    for extra, message in (
        (("-o", "t.cif"), "expected a name that ends with .xyz or .extxyz"),
        (("-o", "t.xyz", "--moments", "m.h5"), "expected .npy, or a text file"),
    ):
        code, _, err = hamnet(*words, *extra)
        assert (code, message in err) == (2, True)
    assert hamnet(*words, "-o", "t.xyz", "--no-figure")[0] == 0
    code, _, err = hamnet("texture", "random", "t.xyz", *words[3:], "-o", "t.xyz")
    assert (code, "the output is the structure itself" in err) == (2, True)


def test_wave_vectors_of_a_cell_that_is_not_primitive_are_pointed_out(hamnet, iron):
    words = ("--q", "1/2", 0, 0, "--supercell", 2, 1, 1, "--size", "Fe=1", "-o", "t.xyz", "--no-figure")
    _, _, err = hamnet("texture", "spiral", iron, *words)
    assert "holds 2 primitive cells" in err


def test_figure_of_a_layer_shows_the_moments_in_their_plane(hamnet, iron):
    from postprocess.spin_texture import texture_figure

    points, vectors = np.array([[0.0, 0], [2, 0]]), np.array([[4.0, 0], [0, 2]])
    moments = np.array([[0.6, 0.8, 0], [0, 0, -1.0]])
    figure = texture_figure(points, moments, vectors, axes_names=("x", "y", "z"), title="two")
    axes = figure.axes[0]
    assert axes.get_aspect() == 1
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$x$ (Å)", "$y$ (Å)")
    image = axes.images[0]
    assert image.get_clim() == (-1, 1)
    colours = np.asarray(image.get_array())
    np.testing.assert_allclose(np.unique(colours), [-1, 0])
    assert (colours == 0).mean() == pytest.approx(0.5, abs=0.05)
    arrows = next(c for c in axes.collections if hasattr(c, "U"))
    np.testing.assert_allclose(np.unique(arrows.U), [0.6])  # the moment along the normal has no arrow
    np.testing.assert_allclose(np.unique(arrows.V), [0.8])
    from hamnet.errors import ConfigError

    with pytest.raises(ConfigError, match="without moments"):
        texture_figure(points, 0 * moments, vectors)


def test_every_kind_explains_each_of_its_options(capsys):
    parser = frame._parser("texture")
    verb = next(a for a in parser._actions if a.dest == "verb").choices["texture"]  # type: ignore[union-attr,index]
    kinds = next(a for a in verb._actions if isinstance(a, argparse._SubParsersAction))
    assert len(kinds.choices) == 10
    for name, kind in kinds.choices.items():
        assert [a.dest for a in kind._actions if not a.help] == []
        with pytest.raises(SystemExit) as stop:
            main(["texture", name, "--help"])
        assert stop.value.code == 0
        assert f"usage: hamnet texture {name}" in capsys.readouterr().out


def test_page_on_json_names_the_keys_of_texture_and_no_others(hamnet, iron):
    words = ("--supercell", 2, 1, 1, "--q", "1/2", 0, 0, "--size", "Fe=1", "-o", "t.xyz", "--no-figure", "--json")
    result = json.loads(hamnet("texture", "spiral", iron, *words)[1])
    section = PAGE.read_text(encoding="utf-8").split("## hamnet texture\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert documented == set(result)
    for nested in ("layers", "sizes"):
        assert [key for key in result[nested][0] if f"`{key}`" not in section] == []
