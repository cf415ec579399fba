"""The ``hamnet`` command: one verb per module of this package, imported only when it is used."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

from hamnet import __version__
from hamnet.errors import HamnetError

__all__ = ["main"]

_VERBS = {
    "check": "compare DFT runs with what the code itself printed: bands, electrons, moments, Hermiticity",
    "preprocess": "read DFT runs into one sample set",
    "train": "train a model as a configuration file says",
    "evaluate": "errors of a model on a set or on DFT runs",
    "committee": "join models of several seeds, and measure how far to trust them",
    "select": "which structures to compute next: where the models are least sure, and not the same twice",
    "texture": "put a spin texture on a supercell: spirals, walls, skyrmions, vortices, files",
    "predict": "predict the Hamiltonian of a structure",
    "solve": "eigenstates in a window, counted and certified, into a file",
    "fermi": "Fermi level and gap by counting electrons",
    "bands": "band structure of a predicted or computed Hamiltonian",
    "dos": "density of states and Fermi level",
    "unfold": "bands of a supercell in the zone of its primitive cell, with spectral weight and spin",
}

_EPILOG = "Exit codes: 0 good, 1 a check failed, 2 wrong use or bad input. `hamnet VERB --help` tells more."


def _parser(verb: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hamnet", description="Ab initio Hamiltonians of magnets.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"hamnet {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, summary in _VERBS.items():
        sub = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=_EPILOG)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == verb:
            module = import_module(f"hamnet.cli.{name}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    verb = next((word for word in argv if word in _VERBS), None)
    args = _parser(verb).parse_args(argv)
    try:
        return args.run(args)
    except HamnetError as error:
        if args.debug:
            raise
        print(f"hamnet {args.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"hamnet {args.verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe (head, less) went away: nothing is wrong with the run.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A missing file, a full disk, a folder without permission: the system's words name the place.
        if args.debug:
            raise
        print(f"hamnet {args.verb}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
