"""Other versions of the files, files that do not belong together, and damaged ones."""

from __future__ import annotations

import gzip
import lzma
import re
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

from hamnet.eigen import eigenvalues
from hamnet.errors import HamnetError, ReaderError
from preprocessing.readers.compressed import read_buffer
from preprocessing.readers.protocol import ReadOptions
from preprocessing.readers.siesta import SiestaReader
from preprocessing.readers.siesta_ions import read_ion
from preprocessing.readers.siesta_matrices import read_hsx
from preprocessing.readers.siesta_tables import read_eig, read_xv
from siesta_runs import copied, is_run_netcdf, read

ONE_OF_EACH = ("fe_bcc_nc_a060", "fe_collinear_c00", "fept_soc_2x1x1_c01", "fept_soc_sym_rot", "si_none_c00")
DAMAGED = ("fe.HSX", "fe.DM", "Fe.ion.nc")


@pytest.fixture(scope="module")
def small(tracked):
    folder = tracked("siesta/small")
    return lambda name: folder / name


@pytest.fixture
def step(small, tmp_path):
    """A copy of a small run, to be changed."""
    return copied(small("fe_bcc_nc_a060"), tmp_path)


def read_fresh(folder: Path, **options):
    return SiestaReader().read(folder, ReadOptions(**options))


# -- HSX of versions 1 and 2 ---------------------------------------------------------------------------------------


def image_shifts(folder: Path, n_orbitals: int) -> np.ndarray:
    """(n_images, 3) from .ORB_INDX, which lists the supercell image by image."""
    rows = re.findall(
        r"^\s*\d+\s+\d+\s+\d+\s+\S+.*\s(-?\d+)\s+(-?\d+)\s+(-?\d+)\s+\d+\s*$",
        next(folder.glob("*.ORB_INDX")).read_text(),
        re.MULTILINE,
    )
    return np.array(rows, dtype=np.int32)[::n_orbitals]


def write_new_hsx(folder: Path, version: int, *, double: bool, rydberg_ev: float = 13.60580) -> None:
    """Replace the old HSX of a run by one in the layout of SIESTA 5 (write_hsx_header_internal in io_hsx.F90)."""
    path = next(folder.glob("*.HSX"))
    old, xv = read_hsx(read_buffer(path), path), read_xv(next(folder.glob("*.XV")))
    n_orbitals, shifts = old.pattern.n_orbitals, image_shifts(folder, old.pattern.n_orbitals)
    supercell = shifts.max(axis=0) - shifts.min(axis=0) + 1
    labels = re.findall(r"^\s*\d+\s+\d+\s+(\S+)\s*$", next(folder.glob("*.fdf")).read_text(), re.MULTILINE)
    ions = [read_ion(folder, label) for label in labels[: xv.species.max() + 1]]
    fermi = read_eig(next(folder.glob("*.EIG"))).fermi_ev / rydberg_ev
    real = "<f8" if double else "<f4"
    with path.open("wb") as file:

        def record(*parts) -> None:
            data = b"".join(p if isinstance(p, bytes) else np.ascontiguousarray(p).tobytes() for p in parts)
            file.write(struct.pack("<i", len(data)) + data + struct.pack("<i", len(data)))

        def integers(*values) -> np.ndarray:
            return np.array(values, dtype="<i4")

        record(integers(version))
        record(integers(double))
        record(integers(len(xv.positions), n_orbitals, len(old.hamiltonian_ry), len(ions), *supercell))
        record(xv.cell, np.array([fermi, old.n_electrons, 0.0019]))
        last = np.cumsum(np.bincount(old.orbital_atoms))
        record(shifts.astype("<i4"), xv.positions, (xv.species + 1).astype("<i4"), last.astype("<i4"))
        record(
            *(
                part
                for ion in ions
                for part in (
                    ion.label.ljust(20).encode(),
                    np.array([ion.valence]),
                    integers(sum(2 * s.l + 1 for s in ion.shells)),
                )
            )
        )
        for ion in ions:
            record(integers(*[(s.n, s.l, s.zeta) for s in ion.shells for _ in range(2 * s.l + 1)]))
        if version == 2:
            record(integers(4, 0, 0, 0, 4, 0, 0, 0, 3), np.zeros(3))
        record(old.pattern.counts.astype("<i4"))
        ends = np.cumsum(old.pattern.counts)[:-1]
        for row in np.split(old.pattern.columns + 1, ends):
            record(row.astype("<i4"))
        for values in (*old.hamiltonian_ry, old.overlap):
            for row in np.split(values, ends):
                record(row.astype(real))


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize(("version", "double"), [(1, False), (2, True)])
def test_new_hsx_holds_the_same_operators_as_the_old_one(small, tmp_path, name, version, double):
    old = copied(small(name), tmp_path / "old", without=is_run_netcdf)
    new = copied(small(name), tmp_path / "new", without=is_run_netcdf)
    write_new_hsx(new, version, double=double)
    before, after = read_fresh(old, moments="initial"), read_fresh(new, moments="initial")
    assert after.sample.hamiltonian.pairs.equals(before.sample.hamiltonian.pairs)
    assert after.stored_hamiltonian.max_abs_difference(before.stored_hamiltonian) == 0.0
    assert after.sample.fermi_energy_ev == pytest.approx(before.sample.fermi_energy_ev, abs=1e-8)
    assert after.sample.provenance["files"]["format"] == f"HSX version {version}"
    if double:
        assert after.references[0].precision_ev < 1e-7


def test_image_of_an_atom_outside_the_cell_is_the_one_that_is_near(unpacked, tmp_path):
    """SIESTA numbers images up to a period of its supercell; the vectors in the old HSX tell what it means."""
    folder = unpacked("siesta/fept_soc_sym") / "wrap"
    new = copied(folder, tmp_path)
    write_new_hsx(new, 1, double=True)
    before, after = read(folder), read_fresh(new)
    assert after.stored_hamiltonian.pairs.equals(before.stored_hamiltonian.pairs)
    assert after.stored_hamiltonian.max_abs_difference(before.stored_hamiltonian) == 0.0


def test_new_hsx_of_these_tests_is_one_for_sisl_too(step):
    sisl = pytest.importorskip("sisl")
    write_new_hsx(step, 1, double=True)
    path = next(step.glob("*.HSX"))
    file = sisl.get_sile(path)
    assert file.version == 1
    assert file.read_lattice().cell == pytest.approx(read_fresh(step).sample.structure.cell, abs=1e-5)
    theirs = file.read_hamiltonian(geometry=sisl.get_sile(step / "fe.fdf").read_geometry(output=True))
    run = read_fresh(step)
    k = run.references[0].k_frac[7]
    levels = theirs.eigh(k) * 13.60580 / 13.605693122994 + run.sample.fermi_energy_ev
    assert levels == pytest.approx(run.references[0].energies_ev[7, 0], abs=3e-4)


def test_codata_units_are_told_by_the_fermi_energy_in_both_units(step):
    write_new_hsx(step, 1, double=True, rydberg_ev=13.605693122994)
    run = read_fresh(step)
    assert "13.6056931" in run.sample.provenance["choices"]["units"]["value"]
    assert run.sample.structure.cell[0, 0] == pytest.approx(2.87 * 0.529177210903 / 0.529177, abs=1e-8)


# -- NetCDF --------------------------------------------------------------------------------------------------------


def test_netcdf_and_hsx_hold_the_same_hamiltonian(small, tmp_path):
    double = read(small("si_none_c00"))
    single = read_fresh(copied(small("si_none_c00"), tmp_path, without=is_run_netcdf))
    assert double.sample.provenance["files"]["format"] == "NetCDF"
    assert double.sample.hamiltonian.pairs.equals(single.sample.hamiltonian.pairs)
    assert 0 < double.stored_hamiltonian.max_abs_difference(single.stored_hamiltonian) < 5e-7
    assert single.sample.density is None  # only the .nc of this run holds one


def test_hamiltonian_that_was_never_written_is_taken_from_hsx(small, tmp_path):
    folder = copied(small("si_none_c00"), tmp_path)
    with h5py.File(folder / "si.nc", "a") as file:
        file["SPARSE/H"][...] = 9.969209968386869e36  # NetCDF's fill value
    run = read_fresh(folder)
    assert run.sample.provenance["checksum"]["file"] == "si.HSX"
    (folder / "si.HSX").unlink()
    with pytest.raises(ReaderError, match=r"holds none.*SaveHS T"):
        read_fresh(folder)


def test_two_files_with_different_hamiltonians_are_refused(small, tmp_path):
    folder = copied(small("si_none_c00"), tmp_path)
    with h5py.File(folder / "si.nc", "a") as file:
        file["SPARSE/H"][0, 100] += 1e-3
    with pytest.raises(ReaderError, match="different Hamiltonians"):
        read_fresh(folder)


def test_species_are_read_alike_from_ion_nc_ion_xml_and_the_nc_of_the_run(small, tmp_path):
    netcdf = read(small("si_none_c00")).sample.basis
    for kind in (".ion.nc", (".ion.nc", ".ion.xml")):
        folder = copied(small("si_none_c00"), tmp_path / str(len(kind)), without=lambda n, k=kind: n.endswith(k))
        assert read_fresh(folder).sample.basis == netcdf


# -- geometry and order ----------------------------------------------------------------------------------------------


def test_left_handed_cell_is_read_with_two_vectors_exchanged(small, tmp_path):
    folder = copied(small("fept_soc_sym_base"), tmp_path)
    lines = (folder / "fept.XV").read_text().splitlines()
    lines[0], lines[1] = lines[1], lines[0]
    (folder / "fept.XV").write_text("\n".join(lines) + "\n")
    (folder / "fept.bands").unlink()
    run, right = read_fresh(folder), read(small("fept_soc_sym_base"))
    assert np.linalg.det(run.sample.structure.cell) > 0
    reference = run.references[0]
    ours = eigenvalues(run.stored_hamiltonian, run.sample.overlap, reference.k_frac)
    assert np.abs(ours - reference.energies_ev).max() < 2e-5
    assert run.stored_hamiltonian.max_abs_difference(right.stored_hamiltonian) == 0.0


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_compressed_files_read_alike(small, step, suffix, pack):
    for path in list(step.iterdir()):
        path.with_name(path.name + suffix).write_bytes(pack(path.read_bytes()))
        path.unlink()
    plain, packed = read(small("fe_bcc_nc_a060")), read_fresh(step)
    assert packed.stored_hamiltonian.max_abs_difference(plain.stored_hamiltonian) == 0.0
    assert packed.sample.provenance["checksum"]["value"] == plain.sample.provenance["checksum"]["value"]


def test_run_is_recognised_by_its_folder_its_input_or_its_hsx(step, tmp_path):
    reader = SiestaReader()
    assert reader.recognises(step)
    assert reader.recognises(step / "fe.HSX")
    assert reader.recognises(step / "fe.fdf")
    assert not reader.recognises(step / "fe.out")
    assert not reader.recognises(tmp_path / "nothing")
    assert not reader.recognises(tmp_path)
    for path in (step / "fe.fdf", step / "fe.HSX"):
        assert read_fresh(path).sample.n_electrons == 16


# -- what is missing or does not belong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("fe.HSX", "no fe.HSX.*SaveHS T"),
        ("fe.XV", "no fe.XV"),
        ("fe.out", r"no fe.out.*siesta < fe.fdf > fe.out"),
        ("fe.fdf", "no .fdf"),
        ("Fe.ion.nc", "no Fe.ion.nc or Fe.ion.xml"),
    ],
)
def test_missing_file_is_named_with_what_writes_it(step, name, told):
    (step / name).unlink()
    with pytest.raises(ReaderError, match=told):
        read_fresh(step)


def test_missing_density_matrix_is_named_only_where_moments_need_it(small, tmp_path):
    folder = copied(small("fe_collinear_c00"), tmp_path)
    (folder / "fe.DM").unlink()
    with pytest.raises(ReaderError, match=r"no fe.DM.*Write.DM.End.Of.Cycle T"):
        read_fresh(folder)
    assert read_fresh(folder, moments="initial").sample.density is None


def test_optional_files_may_be_missing(step):
    for name in ("fe.EIG", "fe.KP", "fe.bands", "fe.FA", "fe.ORB_INDX", "fe.DM"):
        (step / name).unlink()
    run = read_fresh(step)
    assert run.references == ()
    assert run.sample.fermi_energy_ev == pytest.approx(read_fresh_fermi(step), abs=1e-6)
    assert run.sample.forces_ev_per_ang is None
    assert np.abs(run.sample.computed_moments - run.printed_moments).max() == 0.0


def read_fresh_fermi(folder: Path) -> float:
    return float(re.findall(r"Fermi =\s+(\S+)", (folder / "fe.out").read_text())[-1])


def test_hamiltonian_of_another_geometry_is_refused(small, tmp_path):
    folder = copied(small("fept_soc_sym_base"), tmp_path)
    (folder / "fept.XV").write_bytes((small("fept_soc_sym_rot") / "fept.XV").read_bytes())
    with pytest.raises(ReaderError, match="miss the lattice"):
        read_fresh(folder)


def test_density_of_another_run_is_refused(step, small):
    (step / "fe.DM").write_bytes((small("fe_collinear_c00") / "fe.DM").read_bytes())
    with pytest.raises(ReaderError, match="30 orbitals and 2 spin components"):
        read_fresh(step)


def test_charged_run_needs_its_net_charge(step):
    with (step / "fe.fdf").open("a") as file:
        file.write("NetCharge 1.0\n")
    with pytest.raises(ReaderError, match=r"16 electrons.*15"):
        read_fresh(step)


def test_ghost_atoms_are_refused_by_name(step):
    text = (step / "fe.fdf").read_text().replace("1 26 Fe", "1 -26 Fe")
    (step / "fe.fdf").write_text(text)
    with pytest.raises(ReaderError, match="ghost"):
        read_fresh(step)


def test_gamma_only_matrix_is_refused_with_the_option_that_helps(step):
    data = bytearray((step / "fe.HSX").read_bytes())
    data[28:32] = struct.pack("<i", 1)
    (step / "fe.HSX").write_bytes(data)
    with pytest.raises(ReaderError, match="ForceAuxCell T"):
        read_fresh(step)


def test_unknown_number_of_spin_columns_is_refused(step):
    data = bytearray((step / "fe.HSX").read_bytes())
    data[12:16] = struct.pack("<i", 3)
    (step / "fe.HSX").write_bytes(data)
    with pytest.raises(ReaderError, match="3 spin components"):
        read_fresh(step)


def test_big_endian_file_is_named(step):
    path = step / "fe.HSX"
    path.write_bytes(np.frombuffer(path.read_bytes(), "<u4").byteswap().tobytes())
    with pytest.raises(ReaderError, match="big-endian"):
        read_fresh(step)


@pytest.mark.parametrize("name", ["fe.HSX", "fe.DM", "fe.EIG", "fe.KP", "fe.bands", "fe.XV", "fe.FA", "Fe.ion.nc"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.9])
def test_truncated_file_is_a_reader_error(step, name, part):
    path = step / name
    if name == "Fe.ion.nc":
        part /= 2  # what is read of it stands in the first half
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(ReaderError) as error:
        read_fresh(step)
    assert name.split(".", 1)[1] in str(error.value)


def test_damage_anywhere_is_told_and_never_a_traceback(step):
    generator = np.random.default_rng(7)
    whole = {name: (step / name).read_bytes() for name in (*DAMAGED, "fe.EIG", "fe.XV", "fe.fdf", "fe.out")}
    for name, data in whole.items():
        for _ in range(12):
            damaged = bytearray(data)
            for _ in range(3):
                at = int(generator.integers(0, min(len(data), int(generator.choice([64, 2000, len(data)]))) - 4))
                damaged[at : at + 4] = generator.bytes(4)
            (step / name).write_bytes(damaged)
            try:
                read_fresh(step)
            except HamnetError:
                continue
        (step / name).write_bytes(data)
