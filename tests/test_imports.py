"""Who may import what: the table of docs/design.md, kept by reading the imports of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ARRAYS = {"numpy", "scipy", "torch"}

# place: (places of the project, libraries) that it may import. A module belongs to the longest place that fits.
TABLE = {
    "hamnet": ({"hamnet"}, ARRAYS | {"h5py"}),
    "hamnet.predict": ({"hamnet", "hamnet.models", "hamnet.predict"}, ARRAYS),
    "hamnet.models": ({"hamnet", "hamnet.models"}, ARRAYS | {"e3nn", "safetensors"}),
    "hamnet.training": (
        {"hamnet", "hamnet.models", "hamnet.predict", "hamnet.training"},
        ARRAYS | {"ase", "lightning", "safetensors", "tensorboard"},
    ),
    "hamnet.cli": (
        {"hamnet", "hamnet.cli", "hamnet.models", "hamnet.predict", "hamnet.training", "postprocess", "preprocessing"},
        ARRAYS | {"ase", "distributed", "mpi4py", "rich"},
    ),
    "preprocessing": ({"hamnet", "preprocessing"}, ARRAYS | {"ase", "h5py", "zstandard"}),
    "postprocess": ({"hamnet", "postprocess"}, ARRAYS | {"ase", "h5py", "matplotlib"}),
}
SLOW = {"torch", "lightning", "matplotlib", "torch_geometric", "sisl", "e3nn", "scipy", "h5py", "ase", "netCDF4"}


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    _module_name(path): path
    for package in ("hamnet", "preprocessing", "postprocess")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def _place(module: str) -> str:
    return max((p for p in TABLE if module == p or module.startswith(p + ".")), key=len)


def _imports(source: str, module: str, *, is_package: bool) -> set[str]:
    """Full names of all modules that are imported anywhere: at the top, in functions, for types."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = module.split(".") if is_package else module.split(".")[:-1]
            above = home[: len(home) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from hamnet import blocks` names a module, `from hamnet.blocks import Pairs` does not.
            found.update(f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names)
    return found


def _violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    places, libraries = TABLE[_place(module)]
    wrong = []
    for name in sorted(_imports(source, module, is_package=is_package)):
        top = name.split(".")[0]
        if top in {"hamnet", "preprocessing", "postprocess"}:
            allowed = _place(name) in places
        else:
            allowed = top in libraries or top in sys.stdlib_module_names
        if not allowed:
            wrong.append(f"{module} imports {name}")
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_the_table_allows(module):
    path = MODULES[module]
    assert _violations(path.read_text(), module, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hamnet.blocks", "import lightning"),
        ("hamnet.blocks", "from .models.io import load"),
        ("hamnet.blocks", "def f():\n    from postprocess.bands import path"),
        ("hamnet.models.readout", "from preprocessing.readers import protocol"),
        ("postprocess.bands", "import preprocessing.checks"),
        ("postprocess.bands", "from hamnet.predict import predict"),
        ("preprocessing.checks", "from postprocess import bands"),
        ("preprocessing.checks", "from hamnet import training"),
        ("hamnet.training.losses", "import matplotlib.pyplot"),
    ],
)
def test_a_forbidden_import_is_found(module, source):
    assert len(_violations(source, module)) == 1


def test_every_package_on_disk_is_installed_and_nothing_else():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(m for m, path in MODULES.items() if path.name == "__init__.py")


def test_every_dependency_is_imported_and_explained():
    """What is required is what is imported (tensorboard by Lightning's logger), and docs/dependencies.md lists it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {line.split(">=")[0] for line in project["dependencies"]}
    imported = {
        name.split(".")[0]
        for module, path in MODULES.items()
        for name in _imports(path.read_text(), module, is_package=path.name == "__init__.py")
    }
    ours = {"hamnet", "preprocessing", "postprocess", "distributed", "mpi4py"}  # the last two are optional
    assert required == (imported - set(sys.stdlib_module_names) - ours) | {"tensorboard"}
    text = (ROOT / "docs" / "dependencies.md").read_text()
    rows = {line.split("|")[1].strip().strip("`") for line in text.splitlines() if line.startswith("| `")}
    extras = {line.split(">=")[0] for extra in project["optional-dependencies"].values() for line in extra}
    assert rows == required | extras


def test_every_dependency_is_pinned_to_one_version():
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(line.count("==") == 1 and "+" not in line for line in pins)
    names = {line.split("==")[0].lower() for line in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    assert {line.split(">=")[0].lower() for line in wanted} <= names


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys\ntry:\n    {statement}\nexcept SystemExit: pass\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    "statement",
    [
        "import hamnet",
        "from hamnet.cli.main import main; main(['--help'])",
        "from hamnet.cli.main import main; main(['bands', '--help'])",
        "from hamnet.cli.main import main; main(['train', '--help'])",
    ],
)
def test_help_and_bare_import_load_no_heavy_library(statement):
    assert _loaded_by(statement) & SLOW == set()


def test_public_names_come_from_their_modules_when_they_are_used():
    import hamnet

    for name in hamnet.__all__:
        assert getattr(hamnet, name) is not None
    assert set(hamnet.__all__) <= set(dir(hamnet))
    with pytest.raises(AttributeError, match="no attribute 'Bands'"):
        hamnet.Bands  # noqa: B018
