"""``hamnet train``: a model from a configuration file."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="TOML file, see docs/training.md")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of the output folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the output folder")
    parser.add_argument("--seed", type=int, metavar="N", help="instead of training.seed")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="change one key of the configuration; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")


def run(args: argparse.Namespace) -> int:
    import sys

    from hamnet.cli.output import number, print_json
    from hamnet.training.config import load_config
    from hamnet.training.processes import Processes
    from hamnet.training.run import train

    config = load_config(args.config, args.overrides, seed=args.seed)
    result = train(
        config,
        resume=args.resume,
        overwrite=args.overwrite,
        say=lambda text: print(text, file=sys.stderr, flush=True),
        progress_bar=sys.stdout.isatty() and not args.json,
    ).to_dict()
    if Processes.from_environment().rank:
        return 0  # the first process speaks for all
    if args.json:
        print_json(result)
        return 0
    for key, errors in result["errors"].items():
        parts = ("spin_free", "exchange", "soc")
        split = ", ".join(f"{part} {number(errors[f'mae_{part}_meV'])}" for part in parts)
        print(f"{key}: mean error {number(errors['mae_meV'])} meV ({split})")
    print(f"model: {result['model']}")
    return 0
