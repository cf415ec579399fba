"""``hamnet predict``: the Hamiltonian of a structure, written as a sample set. Keys of ``--json``: docs/json.md."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="model file")
    parser.add_argument(
        "structure", type=Path, help="structure file that ASE reads, DFT run folder, or sample set (.h5)"
    )
    parser.add_argument("--sample", metavar="NAME", help="sample of the set STRUCTURE")
    parser.add_argument(
        "--moments", type=Path, metavar="FILE", help="moments (n, 3) in μ_B: .npy, or text with 3 columns"
    )
    parser.add_argument(
        "--overlap",
        type=Path,
        metavar="RUN|SET",
        help="source of the overlap: this crystal, or a cell that it is made of, with any moments (STRUCTURE itself)",
    )
    parser.add_argument("--overlap-sample", metavar="NAME", help="sample of the set --overlap")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="SET.h5", help="the set to write")
    parser.add_argument("--device", default="cpu", help="where the network computes: cpu or cuda (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    import sys
    import time

    from hamnet.cli.output import print_json
    from hamnet.cli.structures import load_structure
    from hamnet.models.io import load_model
    from hamnet.predict import estimate, predict, prediction_pairs, source_on
    from hamnet.store import write_samples

    loaded = load_model(args.model, device=args.device)
    structure, source = load_structure(
        args.structure,
        sample=args.sample,
        moments=args.moments,
        overlap=args.overlap,
        overlap_sample=args.overlap_sample,
    )
    source = None if source is None else source_on(structure, source)
    size = estimate(loaded, prediction_pairs(loaded, structure, source))
    print(f"{size.n_atoms} atoms, {size.n_pairs} pairs, about {size.memory_gb:.2g} GB", file=sys.stderr)
    started = time.perf_counter()
    prediction = predict(loaded, structure, source=source, name=args.output.stem)
    seconds = time.perf_counter() - started
    for warning in prediction.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    write_samples(args.output, [prediction.sample])
    result = {"output": str(args.output), "model_sha256": loaded.checksum, "n_atoms": size.n_atoms}
    result |= {"n_pairs": size.n_pairs, "memory_estimate_GB": size.memory_gb, "seconds": seconds}
    result |= {"n_electrons": prediction.sample.n_electrons, "has_overlap": prediction.sample.overlap is not None}
    if args.json:
        print_json({**result, "warnings": list(prediction.warnings)})
    else:
        print(f"{args.output}: Hamiltonian of {size.n_atoms} atoms, {seconds:.1f} s")
        if prediction.sample.overlap is None:
            print("No overlap was given: bands and densities of states need one (--overlap).")
    return 0
