"""The files that say what to install: they agree with each other and name no host or machine."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from rattler import MatchSpec

ROOT = Path(__file__).parents[1]

CONDA_NAMES = {
    "dask": "dask-core",  # conda's `dask` is a bundle with pandas and more
    "isal": "python-isal",
    "matplotlib": "matplotlib-base",  # conda's `matplotlib` brings Qt
    "torch": "pytorch",
}
"""Packages that have another name on conda-forge than on the Python package index."""

# Put together from parts, or this file would be the first to break the rule.
HOSTS = ("pypi", "files.pythonhosted", "download.pytorch", "registry.npmjs", "deb.debian")
FOLDERS = ("work", "root", "tmp/v")
FORBIDDEN = re.compile(
    rf"\b(?:{'|'.join(map(re.escape, HOSTS))})\.org|(?<!\w)/(?:{'|'.join(FOLDERS)})/".encode()
)


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def bounds(lines: list[str]) -> dict[str, SpecifierSet]:
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r.specifier for r in requirements}


def wanted() -> dict[str, SpecifierSet]:
    """Read what pyproject.toml asks for to run and to develop, under the names of conda-forge."""
    document = pyproject()
    project = document["project"]
    lines = [
        *project["dependencies"],
        *project["optional-dependencies"]["dev"],
        *document["build-system"]["requires"],
        f"python{project['requires-python']}",
    ]
    return {CONDA_NAMES.get(name, name): bound for name, bound in bounds(lines).items()}


def environment() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))


def conda_specs() -> dict[str, SpecifierSet]:
    """Read what environment.yml asks for; pip itself, which installs the project, aside."""
    entries = environment()["dependencies"]
    specs = [MatchSpec(entry, strict=True) for entry in entries if isinstance(entry, str)]
    from_conda = {spec.name.normalized: SpecifierSet(spec.version or "") for spec in specs}
    from_pip = [line for entry in entries if isinstance(entry, dict) for line in entry["pip"]]
    return from_conda | bounds(from_pip)


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_conda_environment_asks_for_the_same_packages_and_bounds_as_pyproject():
    specs = conda_specs()
    del specs["pip"]
    assert specs == wanted()


def test_every_bound_is_a_lower_bound():
    for name, bound in wanted().items():
        assert [clause.operator for clause in bound] == [">="], name


def test_conda_environment_names_channels_without_addresses():
    channels = environment()["channels"]
    assert "conda-forge" in channels
    assert all(channel.replace("-", "").isalnum() for channel in channels)


def test_constraints_are_names_and_versions_only():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    for line in lines:
        requirement = Requirement(line)
        assert line == f"{requirement.name}{requirement.specifier}"
        assert [clause.operator for clause in requirement.specifier] == ["=="]
        assert "*" not in line
    names = [canonicalize_name(line.split("==")[0]) for line in lines]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("extra", ["", "bench", "dev", "dp", "flower", "mlflow", "models", "onnx"])
def test_constraints_satisfy_pyproject(extra):
    project = pyproject()["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    pinned = pins()
    for name, bound in bounds(lines).items():
        assert pinned[name] in bound


def test_every_extra_is_checked_against_the_constraints():
    assert set(pyproject()["project"]["optional-dependencies"]) == {
        "bench",
        "dev",
        "dp",
        "flower",
        "mlflow",
        "models",
        "onnx",
    }


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git checkout")
def test_no_file_names_a_package_registry_or_a_path_of_one_machine():
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    names = [name.decode() for name in listing.stdout.split(b"\0") if name]
    paths = [ROOT / name for name in names if (ROOT / name).is_file()]
    found = {
        str(path.relative_to(ROOT)): hit[0].decode()
        for path in paths
        if (hit := FORBIDDEN.search(path.read_bytes()))
    }
    assert ROOT / "pyproject.toml" in paths
    assert found == {}
