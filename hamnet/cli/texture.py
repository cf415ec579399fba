"""``hamnet texture``: moments on a supercell, for a prediction. Keys of ``--json``: docs/json.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hamnet.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hamnet.cli.texture_kinds import Texture
    from hamnet.structure import Structure
    from hamnet.textures.charge import LayerCharge
    from hamnet.textures.plane import Plane

__all__ = ["add_arguments", "run", "supercell_of"]

_SMOOTH_DEG = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from hamnet.cli.texture_kinds import KINDS, add_kind_parser

    kinds = parser.add_subparsers(
        dest="kind", metavar="KIND", required=True, help="`hamnet texture KIND --help` lists the options of one:"
    )
    for name, kind in KINDS.items():
        _add_common(add_kind_parser(kinds, name, kind))


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("structure", type=Path, help="structure file that ASE reads, DFT run folder, or sample set (.h5)")
    add("--sample", metavar="NAME", help="sample of the set STRUCTURE")
    text = "three numbers, or the nine of an integer matrix whose rows are the new lattice vectors (1 1 1)"
    add("--supercell", type=int, nargs="+", default=[1, 1, 1], metavar="N", help=text)
    text = "plane of the texture, of its layers and of the picture (%(default)s)"
    add("--plane", choices=["ab", "bc", "ca"], default="ab", help=text)
    sizes = parser.add_argument_group(
        "sizes of the moments", "They also say which species are magnetic; --size overrides --model."
    )
    text = "take magnetic species and their sizes from this model: the root mean square over its training set"
    sizes.add_argument("--model", type=Path, metavar="MODEL", help=text)
    text = "size in μ_B of a species, may be given several times; 0: not magnetic"
    sizes.add_argument("--size", action="append", default=[], metavar="Ni=1.5", help=text)
    text = "factor of each magnetic atom of STRUCTURE's cell, in its order, such as 1 -1 for an antiferromagnet"
    sizes.add_argument("--signs", type=int, nargs="+", choices=[-1, 1], metavar="±1", help=text)
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT.xyz", help="extended xyz file to write, with moments"
    )
    text = "write the moments alone too, as hamnet predict --moments takes them: .npy, or text with 3 columns"
    output.add_argument("--moments", type=Path, metavar="FILE", help=text)
    output.add_argument("--figure", type=Path, metavar="FIGURE", help="picture: .png, .pdf or .svg (OUT.png)")
    output.add_argument("--no-figure", action="store_true", help="no picture")
    output.add_argument("--layer", type=int, default=1, metavar="N", help="layer in the picture, from below (1)")
    output.add_argument("--json", action="store_true", help="print one JSON object")
    output.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )


def run(args: argparse.Namespace) -> int:
    import numpy as np

    from hamnet.cli.extxyz import write_extxyz
    from hamnet.cli.output import print_json
    from hamnet.cli.structures import load_structure
    from hamnet.cli.texture_kinds import KINDS, Scene
    from hamnet.supercell import tile_structure
    from hamnet.textures.charge import layer_charges
    from hamnet.textures.plane import plane_of
    from postprocess.plotting import check_output

    figure = _check_paths(args)
    if figure is not None:
        check_output(figure)
    small = load_structure(args.structure, sample=args.sample)[0].with_moments(None)
    matrix = supercell_of(args.supercell, "--supercell")
    crystal = tile_structure(small, matrix)
    sizes, told = _sizes(args, crystal)
    magnetic = np.flatnonzero(sizes)
    if not len(magnetic):
        raise ConfigError("no magnetic atom", expected="at least one with a size above 0", path=args.structure)
    plane = plane_of(crystal.cell, args.plane)
    texture = KINDS[args.kind].make(args, Scene(small, matrix, crystal, magnetic, plane))
    vectors = _vectors(texture, crystal, magnetic)
    signs = _signs(args, magnetic, len(small))
    moments = np.zeros((len(crystal), 3))
    moments[magnetic] = vectors * (sizes[magnetic] * signs)[:, None]
    result = crystal.with_moments(moments)
    # Of a staggered texture the charge is that of the staggered moments: of the Néel vector.
    layers = layer_charges(crystal.positions[magnetic], vectors, plane)
    warnings = _warnings(texture, layers, small)
    if not 1 <= args.layer <= len(layers):
        raise ConfigError(f"--layer {args.layer}", expected=f"1 … {len(layers)}")
    write_extxyz(args.output, result, comment=_comment(args.kind, texture.parameters))
    if args.moments is not None:
        _write_moments(args.moments, moments)
    if figure is not None:
        _draw(figure, args.layer, layers, result, magnetic, plane)
    report = {
        "kind": args.kind,
        "output": str(args.output),
        "moments": None if args.moments is None else str(args.moments),
        "figure": None if figure is None else str(figure),
        "n_atoms": len(crystal),
        "n_magnetic": len(magnetic),
        "supercell": matrix,
        "sizes": told,
        "q_frac": texture.parameters.get("q_frac"),
        "parameters": texture.parameters,
        "topological_charge": _total(layers),
        "layers": [
            {
                "height_ang": layer.height_ang,
                "n_magnetic": len(layer.atoms),
                "topological_charge": layer.charge,
                "largest_angle_deg": layer.largest_angle_deg,
            }
            for layer in layers
        ],
        "net_moment_muB": moments.sum(axis=0),
        "warnings": warnings,
    }
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if args.json:
        print_json(report)
    else:
        _print(report)
    return 0


def _check_paths(args: argparse.Namespace) -> Path | None:
    """The figure's path; refuses names that no reader would understand."""
    if args.output.suffix.lower() not in (".xyz", ".extxyz"):
        raise ConfigError(f"output {args.output.name!r}", expected="a name that ends with .xyz or .extxyz")
    if args.output.exists() and args.structure.exists() and args.output.samefile(args.structure):
        raise ConfigError("the output is the structure itself", expected="another file", path=args.output)
    if args.moments is not None and args.moments.suffix.lower() in (".xyz", ".extxyz", ".h5"):
        raise ConfigError(f"--moments {args.moments.name!r}", expected=".npy, or a text file such as .txt")
    return None if args.no_figure else args.figure or args.output.with_suffix(".png")


def supercell_of(numbers: list[int], option: str) -> NDArray[np.int64]:
    """(3, 3) of the three or nine numbers given to an option."""
    import numpy as np

    if len(numbers) not in (3, 9):
        raise ConfigError(f"{option} with {len(numbers)} numbers", expected="three, or nine: the rows of a matrix")
    return np.diag(numbers) if len(numbers) == 3 else np.array(numbers).reshape(3, 3)


def _sizes(args: argparse.Namespace, crystal: Structure) -> tuple[NDArray[np.float64], list[dict[str, Any]]]:
    """((n_atoms,) sizes in μ_B, what to tell about each magnetic species)."""
    import numpy as np

    labels, symbols = np.array(crystal.labels), _symbols(crystal)
    sizes, sources = np.zeros(len(crystal)), np.full(len(crystal), "", dtype=object)
    if args.model is not None:
        from hamnet.models.io import load_model

        model = load_model(args.model).model
        sizes = np.asarray(model.moment_scale, dtype=np.float64)[model.basis.species_of(crystal)]
        sources[sizes > 0] = f"root mean square in the training set of {args.model}"
        if not sizes.any() and not args.size:
            raise ConfigError(
                "a model without magnetic species in this structure",
                expected="--size, or a model that takes moments",
                path=args.model,
            )
    for entry in args.size:
        name, _, text = entry.partition("=")
        chosen = (labels == name) | (symbols == name)
        value = _number(text)
        if value is None or not chosen.any():
            known = ", ".join(sorted({*labels.tolist(), *symbols.tolist()}))
            raise ConfigError(f"--size {entry}", expected=f"SPECIES=NUMBER with a size in μ_B, species {known}")
        sizes[chosen], sources[chosen] = value, "given"
    if args.model is None and not args.size:
        if args.kind != "moments":
            raise ConfigError(
                "no sizes of the moments",
                expected="--model MODEL, or --size for each magnetic species, such as "
                + " ".join(f"--size {name}=1.5" for name in sorted(set(symbols.tolist()))[-1:]),
            )
        return _own_sizes(args, crystal)
    told = []
    for label in sorted(set(labels[sizes > 0].tolist())):
        first = int(np.argmax(labels == label))
        told.append({"species": label, "size_muB": float(sizes[first]), "source": sources[first]})
    return sizes, told


def _own_sizes(args: argparse.Namespace, crystal: Structure) -> tuple[NDArray[np.float64], list[dict[str, Any]]]:
    """Of the moments of another structure: 1 for each atom that has one, since the vectors are moments themselves."""
    import numpy as np

    from hamnet.cli.texture_kinds import source_moments

    found = np.linalg.norm(source_moments(args, crystal), axis=1)
    labels, told = np.array(crystal.labels), []
    for label in sorted(set(labels[found > 0].tolist())):
        mean = float(found[(labels == label) & (found > 0)].mean())
        told.append({"species": label, "size_muB": mean, "source": f"mean of the moments of {args.source}"})
    return (found > 0).astype(np.float64), told


def _number(text: str) -> float | None:
    import math

    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _symbols(structure: Structure) -> NDArray:
    import numpy as np
    from ase.data import chemical_symbols

    return np.array(chemical_symbols)[structure.numbers]


def _vectors(texture: Texture, crystal: Structure, magnetic: NDArray) -> NDArray[np.float64]:
    """Unit vectors, or the texture's own lengths where it keeps them."""
    import numpy as np

    if texture.keep_length:
        return texture.vectors
    lengths = np.linalg.norm(texture.vectors, axis=1)
    if not lengths.all():
        atom = int(magnetic[np.argmin(lengths)])
        raise ConfigError(
            f"{np.count_nonzero(lengths == 0)} magnetic atoms where the texture is zero, the first is atom {atom} at "
            f"{np.round(crystal.positions[atom], 3).tolist()} Å",
            expected="a direction at each of them, or --keep-length for moments that vanish",
        )
    return texture.vectors / lengths[:, None]


def _signs(args: argparse.Namespace, magnetic: NDArray, n_small: int) -> NDArray[np.float64]:
    """(n_magnetic,) ±1 of each magnetic atom, from those of one cell."""
    import numpy as np

    if args.signs is None:
        return np.ones(len(magnetic))
    sites = np.unique(magnetic % n_small)
    if len(sites) != len(args.signs):
        raise ConfigError(f"{len(args.signs)} signs", expected=f"{len(sites)}, one for each magnetic atom of the cell")
    return np.array(args.signs, dtype=np.float64)[np.searchsorted(sites, magnetic % n_small)]


def _warnings(texture: Texture, layers: list[LayerCharge], small: Structure) -> list[str]:
    warnings = list(texture.warnings)
    wrong = [layer for layer in layers if layer.charge is not None and texture.charge is not None]
    wrong = [layer for layer in wrong if abs((layer.charge or 0) - (texture.charge or 0)) > 0.01]
    if wrong:
        warnings.append(
            f"{len(wrong)} of {len(layers)} layers have another topological charge than the continuous texture "
            f"({texture.charge}): it is too fine for this lattice"
        )
    names = {}
    for number, label in zip(small.numbers.tolist(), small.labels, strict=True):
        names.setdefault(number, set()).add(label)
    if any(len(found) > 1 for found in names.values()):
        warnings.append(
            "two species of one element: extended xyz keeps the element alone, so that a model with both will not "
            "know which is which"
        )
    return warnings


def _total(layers: list[LayerCharge]) -> float | None:
    charges = [layer.charge for layer in layers if layer.charge is not None]
    return float(sum(charges)) if len(charges) == len(layers) else None


def _comment(kind: str, parameters: dict[str, Any]) -> str:
    return "; ".join([kind, *(f"{key} {value}" for key, value in parameters.items() if value is not None)])


def _write_moments(path: Path, moments: NDArray) -> None:
    import numpy as np

    from postprocess.files import replacing

    with replacing(path) as temporary:
        if path.suffix.lower() == ".npy":
            np.save(temporary, moments)
        else:
            np.savetxt(temporary, moments, fmt="%.17g")


def _draw(
    path: Path, number: int, layers: list[LayerCharge], crystal: Structure, magnetic: NDArray, plane: Plane
) -> None:
    from postprocess.plotting import save_figure
    from postprocess.spin_texture import texture_figure

    layer, atoms = layers[number - 1], magnetic[layers[number - 1].atoms]
    assert crystal.moments is not None
    title = "" if layer.charge is None else f"$Q$ = {_charge(layer.charge)}"
    if len(layers) > 1:
        title = f"layer {number} of {len(layers)}" + (f", {title}" if title else "")
    figure = texture_figure(
        plane.points(crystal.positions[atoms]),
        crystal.moments[atoms] @ plane.frame.T,
        plane.vectors,
        axes_names=_axes_names(plane),
        title=title,
    )
    save_figure(figure, path)


def _axes_names(plane: Plane) -> tuple[str, str, str]:
    """x, −y and the like where the frame is that of the Cartesian axes, else names of the plane's own."""
    import numpy as np

    if not np.allclose(np.abs(plane.frame).max(axis=1), 1, atol=1e-6):
        return ("x'", "y'", "n")
    names = [("-" if row.sum() < 0 else "") + "xyz"[int(np.argmax(np.abs(row)))] for row in plane.frame]
    return (names[0], names[1], names[2])


def _charge(value: float) -> str:
    whole = round(value)
    return f"{whole:d}".replace("-", "−") if abs(value - whole) < 1e-6 else f"{value:.3f}"


def _print(report: dict[str, Any]) -> None:
    from hamnet.textures.commensurate import supercell_text

    print(
        f"{report['output']}: {report['kind']}, {report['n_atoms']} atoms, {report['n_magnetic']} of them magnetic, "
        f"supercell {supercell_text(report['supercell'])}"
    )
    for size in report["sizes"]:
        print(f"{size['species']}: {size['size_muB']:.4g} μ_B ({size['source']})")
    if report["q_frac"]:
        q = report["parameters"]
        period = "" if q["period_ang"] is None else f", period {q['period_ang']:.4g} Å"
        print(f"q = {' '.join(f'{x:.6g}' for x in report['q_frac'])}{period}")
    layers, total = report["layers"], report["topological_charge"]
    angles = [layer["largest_angle_deg"] for layer in layers if layer["largest_angle_deg"] is not None]
    charge = "not defined" if total is None else _charge(total)
    turn = f"; moments of neighbours differ by at most {max(angles):.0f}°" if angles else ""
    if angles and max(angles) > _SMOOTH_DEG and total is not None:
        turn += ": too much for the charge of a continuous texture"
    print(f"topological charge {charge} in {len(layers)} layer{'s' if len(layers) > 1 else ''}{turn}")
    written = [report[key] for key in ("moments", "figure") if report[key]]
    if written:
        print(f"also written: {', '.join(written)}")
