"""A small phantom of the three archives and a cache made of it, shared by all tests; never write to them."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cache_schema.manifest import (
    Manifest,
    Options,
    count_client,
    count_cohorts,
    count_leakage,
    find_duplicates,
    read_manifest,
    write_manifest,
)
from pipeline.assemble import assemble_manifest
from pipeline.phantom.archives import write_phantom
from pipeline.plan import Plan, make_plan
from pipeline.shard_task import make_shard

# Three sides that differ, so that a mixed-up axis shows.
SHAPE = (24, 20, 17)
OPTIONS = Options(
    clients=2,
    alpha=1.0,
    seed=0,
    test_fraction=0.2,
    protocol="patient",
    skew="quantity",
    min_cases=1,
    missing="refuse",
    bias_correct=False,
    normalize="zscore",
    geometry="any",
    shard_cases=3,
    duplicates="keep",
)


@pytest.fixture(scope="session")
def small_options() -> Options:
    return OPTIONS


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory) -> Path:
    """Six people in 5, 5 and 6 cases of 2018, 2019 and 2020; every volume is 24 x 20 x 17 voxels."""
    tree = tmp_path_factory.mktemp("small") / "data"
    write_phantom(tree, num_patients=6, shape=SHAPE)
    return tree


@pytest.fixture(scope="session")
def small_plan(small_tree) -> Plan:
    """Its cases are taken for scans of patients, whom the paper's tables may stand beside."""
    plan = make_plan([small_tree], OPTIONS)
    return replace(plan, cases=tuple(replace(case, is_synthetic=False) for case in plan.cases))


@pytest.fixture(scope="session")
def small_cache(small_plan, tmp_path_factory) -> Path:
    """The phantom prepared without Dask for two clients: eight shards of at most three cases."""
    cache = tmp_path_factory.mktemp("prepared") / "cache"
    outcomes = [
        make_shard(shard, cache, small_plan.preprocessing, lambda _: None)
        for shard in small_plan.shards
    ]
    write_manifest(cache, assemble_manifest(small_plan, outcomes))
    return cache


@pytest.fixture(scope="session")
def synthetic_cache(small_cache, tmp_path_factory) -> Path:
    """The small cache with the truth about its cases: a program made them."""
    cache = Path(shutil.copytree(small_cache, tmp_path_factory.mktemp("synthetic") / "cache"))
    manifest = read_manifest(cache)
    cases = tuple(case.model_copy(update={"synthetic": True}) for case in manifest.cases)
    write_manifest(cache, manifest.model_copy(update={"cases": cases, "synthetic": True}))
    return cache


@pytest.fixture
def cache_copy(small_cache, tmp_path) -> Path:
    """A copy of the small cache that a test may damage."""
    return Path(shutil.copytree(small_cache, tmp_path / "cache"))


@pytest.fixture
def recount() -> Callable[..., Manifest]:
    """Gives a manifest with other cases, and the counts that these show."""

    def replaced(manifest, cases):
        counted = tuple(count_client(k, cases) for k in range(manifest.options.clients))
        partition = {
            "clients": counted,
            "sizes": tuple(client.patients for client in counted),
            "duplicates": find_duplicates(cases),
        }
        changed = {
            "cases": tuple(cases),
            "cohorts": count_cohorts(tuple(cases)),
            "leakage": count_leakage(tuple(cases), manifest.options.protocol),
            "partition": manifest.partition.model_copy(update=partition),
        }
        return manifest.model_copy(update=changed)

    return replaced


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the six real scans and the true name mapping; the test is skipped without it."""
    place = os.environ.get("FEDUNETMM_REAL_DATA")
    if not place:
        pytest.skip("FEDUNETMM_REAL_DATA is not set")
    return Path(place)


@pytest.fixture(scope="session")
def brats() -> Path:
    """Folder of real cases with four modalities and the true tables; the test is skipped without it."""
    place = os.environ.get("FEDUNETMM_BRATS")
    if not place:
        pytest.skip("FEDUNETMM_BRATS is not set")
    return Path(place)
