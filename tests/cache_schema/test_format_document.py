"""docs/format.md: its examples run, and it names every field and dataset that there is."""

import re
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  # registers LZ4 with plain h5py
import nibabel as nib
import numpy as np
import pytest

from cache_schema import manifest as schema
from cache_schema.manifest import read_manifest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
H5PY_EXAMPLE, TORCH_EXAMPLE = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.fixture
def run_example(small_cache, monkeypatch):
    """Runs a block of the document beside a folder `cache` and gives its variables."""

    def run(source: str) -> dict:
        monkeypatch.chdir(small_cache.parent)
        variables: dict = {}
        exec(compile(source, "docs/format.md", "exec"), variables)
        return variables

    return run


def test_plain_h5py_restores_the_source_volume(run_example, small_plan):
    found = run_example(H5PY_EXAMPLE)
    case = next(case for case in small_plan.cases if case.case_id == found["case_id"])
    image, seg = nib.load(case.files["flair"]), nib.load(case.files["seg"])
    source = np.asarray(image.dataobj, np.float64)
    np.testing.assert_array_equal(found["labels"], np.asarray(seg.dataobj))
    np.testing.assert_array_equal(found["affine"], image.affine)
    mean = source[source != 0].mean()
    # Half a unit in the last place of float16 is 2**-11 of the z-score; a tenth is for float32.
    limit = np.where(source != 0, 1.1 * 2**-11 * np.abs(source - mean), 0)
    assert np.all(np.abs(found["scanner_units"] - source) <= limit)


def test_pytorch_reads_batches_of_client_0_and_the_test_set_of_2019(run_example, capsys):
    found = run_example(TORCH_EXAMPLE)
    manifest = read_manifest(Path("cache"))
    assert tuple(found["image"].shape[1:]) == (4, 24, 20)
    assert found["case"].cohort == "brats2019"
    assert len(found["volumes"]) == manifest.cohorts["brats2019"].test_cases
    assert "torch.Size([8, 4, 24, 20]) torch.Size([8, 24, 20])" in capsys.readouterr().out


def test_the_document_names_every_dataset_and_attribute(small_cache):
    shard = small_cache / read_manifest(small_cache).shards[0].path
    with h5py.File(shard) as file:
        names = {*file, *file["cases"], *file.attrs}
    assert {name for name in names if f"`{name}`" not in DOCUMENT} == set()


@pytest.mark.parametrize(
    "model",
    [
        schema.Manifest,
        schema.Options,
        schema.LabelVoxels,
        schema.CohortRecord,
        schema.CaseRecord,
        schema.ShardRecord,
        schema.PartitionRecord,
        schema.ClientRecord,
        schema.Move,
        schema.LeakageRecord,
        schema.CohortLeakage,
        schema.Repair,
        schema.Quarantined,
        schema.Superseded,
    ],
)
def test_the_document_names_every_field_of_the_manifest(model):
    assert {name for name in model.model_fields if f"`{name}`" not in DOCUMENT} == set()
