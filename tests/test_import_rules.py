"""The rules between rooms hold, their guard is awake, and every public name is described."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("cache_schema", "pipeline", "training")
MODULES = sorted(
    [ROOT / "cli.py", *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
)

HEAVY = {
    "SimpleITK",
    "dask",
    "distributed",
    "h5py",
    "hdf5plugin",
    "matplotlib",
    "nibabel",
    "numpy",
    "pydantic",
    "torch",
    "torchvision",
}

Named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def run_python(*arguments: str, source: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        input=source,
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_the_command_line_imports_nothing_heavy():
    result = run_python("-c", "import cli, sys; sys.stdout.write(' '.join(sys.modules))")
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert "cli" in loaded
    assert loaded & HEAVY == set()


def lint(path: str, source: str) -> str:
    """Let ruff judge a file that is not there."""
    result = run_python(
        "-m",
        "ruff",
        "check",
        "--output-format=concise",
        "--stdin-filename",
        path,
        "-",
        source=source,
    )
    return result.stdout


@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("training/data/slices.py", "h5py"),
        ("training/data/slices.py", "nibabel"),
        ("training/fit.py", "dask"),
        ("training/runlog.py", "mlflow"),
        ("pipeline/case.py", "h5py"),
        ("pipeline/case.py", "nibabel"),
        ("pipeline/case.py", "SimpleITK"),
        ("pipeline/case.py", "distributed"),
        ("pipeline/plan.py", "typer"),
        ("pipeline/plan.py", "cli"),
        ("cache_schema/manifest.py", "h5py"),
    ],
)
def test_a_framework_outside_its_file_is_refused(path, module):
    assert "TID251" in lint(path, f'"""A module."""\n\nimport {module}\n')


@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("cache_schema/shard.py", "h5py"),
        ("pipeline/volume.py", "nibabel"),
        ("pipeline/run.py", "distributed"),
        ("training/mlflow_board.py", "mlflow"),
        ("cli.py", "typer"),
    ],
)
def test_a_framework_in_its_file_is_allowed(path, module):
    assert "TID251" not in lint(path, f'"""A module."""\n\nimport {module}\n')


def test_relative_imports_are_refused():
    assert "TID252" in lint("training/data/slices.py", '"""A module."""\n\nfrom . import fit\n')


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_name_has_a_docstring(path):
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree)
    assert [name for name, node in public_names(tree) if not ast.get_docstring(node)] == []


def public_names(owner: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, Named]]:
    """Yield public classes and functions, and the public methods of these classes."""
    for node in owner.body:
        if isinstance(node, Named) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_names(node, f"{node.name}.")
