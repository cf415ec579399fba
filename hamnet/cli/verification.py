"""What ``hamnet predict --verify`` does: moments computed back from the predicted H, held against those given."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hamnet.predict.committee import Committee

__all__ = ["MESH_DENSITY_ANG", "print_verification", "verify_prediction"]

MESH_DENSITY_ANG = 4.0
"""k points per 1/Å of each reciprocal vector: moments of Fe and FePt are then converged to 0.01 μ_B at 300 K."""
_MOST_LISTED = 10


def verify_prediction(path: Path, committee: Committee, mesh: list[int] | None) -> dict[str, Any]:
    """The moments of the only sample of a predicted set; keys as documented in ``docs/json.md``."""
    import numpy as np

    from hamnet.cli.spectrum import dense_mesh
    from hamnet.predict.uncertainty import residual_of
    from hamnet.store import SampleSet
    from hamnet.verify import unusual_atoms
    from postprocess.bands import dense_cost
    from postprocess.kmesh import k_mesh

    with SampleSet(path) as samples:
        sample = samples[0]
    hamiltonian = sample.operator("hamiltonian")
    points = dense_mesh(sample, MESH_DENSITY_ANG) if mesh is None else k_mesh(mesh)
    cost = dense_cost(hamiltonian, len(points))
    if cost.seconds > 2:
        print(f"hamnet: moments of the predicted H: {cost}", file=sys.stderr)
    residual = residual_of(committee, sample, hamiltonian, points.k_frac)
    unusual = np.flatnonzero(unusual_atoms(residual, committee.normal)).tolist() if committee.normal else None
    normal = {
        label: {"size_min_muB": n.size_mub[0], "size_max_muB": n.size_mub[1], "angle_max_deg": n.angle_deg}
        for label, n in committee.normal.items()
    }
    return {"mesh": list(points.size), **residual.to_dict(), "normal": normal or None, "unusual_atoms": unusual}


def print_verification(result: dict[str, Any]) -> None:
    """A table by species, and the atoms that stand out."""
    from hamnet.cli.output import number, print_table

    normal = result["normal"] or {}
    rows = []
    for s in result["species"]:
        known = normal.get(s["label"])
        usual = "–" if known is None else f"{known['size_min_muB']:.3f} … {known['size_max_muB']:.3f}"
        rows.append(
            [
                s["label"],
                f"{s['n_compared']} of {s['n_atoms']}",
                number(s["computed_size_mean_muB"]),
                f"{number(s['size_mean_muB'], '.2g')} / {number(s['size_worst_muB'], '.2g')}",
                usual,
                f"{number(s['angle_mean_deg'], '.2g')} / {number(s['angle_worst_deg'], '.2g')}",
                "–" if known is None else f"≤ {known['angle_max_deg']:.2g}",
            ]
        )
    print_table(
        ["species", "compared", "size of H, μ_B", "off by, μ_B", "normal", "turned by, °", "normal"],
        rows,
        title="Moments computed back from the predicted H, against those given (mean / worst)",
    )
    if result["unusual_atoms"] is None:
        print("What is normal is not known: `hamnet committee` measures it.")
        return
    for index in result["unusual_atoms"][:_MOST_LISTED]:
        atom = result["atoms"][index]
        print(
            f"atom {index} ({atom['label']}): the given moment is none that H has: "
            f"{number(atom['size_muB'], '+.3f')} μ_B, {number(atom['angle_deg'], '.1f')}°"
        )
    more = len(result["unusual_atoms"]) - _MOST_LISTED
    if more > 0:
        print(f"… and {more} more atoms")
