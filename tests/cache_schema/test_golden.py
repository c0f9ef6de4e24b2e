"""The contract with caches that exist already: this release reads what versions 1 and 2 wrote."""

import hashlib
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from cache_schema.errors import InputError
from cache_schema.manifest import digest, read_manifest, to_json, write_manifest
from cache_schema.shard import ShardReader
from cache_schema.verify import verify_cache

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "v1"
LATEST = HERE / "golden" / "v2"
"""Its manifest alone; the shards are those of version 1."""
SHARD = "clients/client-00/shard-000.h5"


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory) -> Path:
    """The golden cache as today's writer writes it; its compressed bytes may differ."""
    cache = tmp_path_factory.mktemp("golden") / "cache"
    runpy.run_path(str(HERE / "write_golden.py"))["write_golden"](cache)
    return cache


def test_the_golden_cache_is_sound():
    assert verify_cache(GOLDEN, deep=True) == []


def test_the_golden_cache_of_version_2_is_sound(tmp_path):
    cache = Path(shutil.copytree(GOLDEN, tmp_path / "cache"))
    shutil.copy(LATEST / "manifest.json", cache)
    assert verify_cache(cache, deep=True) == []


def test_version_1_does_not_say_whether_cases_are_synthetic_and_keeps_its_identity(tmp_path):
    manifest = read_manifest(GOLDEN)
    assert {manifest.synthetic, *(case.synthetic for case in manifest.cases)} == {None}
    content = (GOLDEN / "manifest.json").read_bytes()
    assert to_json(manifest).encode() == content
    assert digest(manifest) == hashlib.sha256(content).hexdigest()
    with pytest.raises(InputError, match="schema_version: 1 is not written any more"):
        write_manifest(tmp_path, manifest)
    assert list(tmp_path.iterdir()) == []


def test_version_2_says_which_case_is_synthetic_and_that_the_cache_is():
    manifest, older = read_manifest(LATEST), read_manifest(GOLDEN)
    assert (manifest.schema_version, manifest.synthetic) == (2, True)
    assert [case.synthetic for case in manifest.cases] == [False, False, True, False]
    unsaid = tuple(case.model_copy(update={"synthetic": None}) for case in manifest.cases)
    changed = {"schema_version": 1, "synthetic": None, "cases": unsaid}
    assert manifest.model_copy(update=changed) == older
    assert to_json(manifest).encode() == (LATEST / "manifest.json").read_bytes()


def test_the_golden_manifest_says_what_it_said():
    manifest = read_manifest(GOLDEN)
    assert (manifest.schema_version, manifest.plane) == (1, (16, 18))
    assert [case.case_id for case in manifest.cases] == [
        "BraTS19_CBICA_AAB_1",
        "BraTS19_TCIA10_101_1",
        "BraTS20_Training_003",
        "Brats18_CBICA_AAB_1",
    ]
    first, tested, unknown, last = manifest.cases
    assert (first.patient_id, first.client, first.num_slices) == ("CBICA_AAB_1", 0, 3)
    assert (tested.split, tested.client, tested.present[1]) == ("test", None, False)
    assert (unknown.grade, unknown.site, unknown.client) == ("unknown", "Zürich", 1)
    assert last.attributes == {"Age": "60.46", "Survival": "289"}
    assert last.findings == ("no ET", "2 label voxels outside the brain")
    # Three slices of six labelled voxels, two of them NEC, one of them ET in the first slice.
    assert first.label_voxels.model_dump() == {"NEC": 6, "ED": 11, "ET": 1}
    assert [shard.rows for shard in manifest.shards] == [5, 2, 1]
    assert manifest.client_shards(0) == (SHARD,)
    assert manifest.test_shards("brats2019") == ("test/brats2019/shard-000.h5",)
    assert manifest.partition.repairs[0].target == 1
    assert manifest.quarantined[0].reason == "no segmentation file"


def test_the_golden_shard_holds_the_values_it_held():
    with ShardReader(GOLDEN / SHARD) as reader:
        images, labels = reader.images(slice(None)), reader.labels([4])
        assert reader.column("z").tolist() == [3, 4, 6, 2, 3]
        assert reader.column("label_voxels").tolist()[0] == [2, 3, 1]
        first, second = reader.cases()
    # n + m/4 + z/8 + h/64 for number 2, modality flair (3), slice z=3 and row 9.
    assert images[4, 3, 9, 11] == 2 + 3 / 4 + 3 / 8 + 9 / 64
    assert images[1, 0, 4, 5] == 1 + 0 + 4 / 8 + 4 / 64
    assert np.count_nonzero(images) == 5 * 4 * 6 * 7
    assert labels[0, 4].tolist() == [0] * 5 + [1, 1, 2] + [0] * 10
    assert (second.shape, second.first_row, second.stop_row) == ((13, 17, 9), 3, 5)
    assert second.affine[1].tolist() == [0.0, -1.0, 0.0, 16.0]
    assert second.mean.tolist() == [200.0, 201.0, 202.0, 203.0]
    assert first.std.tolist() == [10.0, 11.0, 12.0, 13.0]


def test_an_absent_modality_is_zeros_with_mean_0_and_standard_deviation_1():
    with ShardReader(GOLDEN / "test/brats2019/shard-000.h5") as reader:
        (entry,) = reader.cases()
        assert entry.present == (True, False, True, True)
        assert (entry.mean[1], entry.std[1]) == (0.0, 1.0)
        assert not reader.images([0])[0, 1].any()


def test_todays_writer_still_writes_the_same_values(rewritten):
    ours, theirs = read_manifest(rewritten), read_manifest(LATEST)
    assert ours.model_copy(update={"shards": ()}) == theirs.model_copy(update={"shards": ()})
    for shard in theirs.shards:
        with ShardReader(rewritten / shard.path) as new, ShardReader(GOLDEN / shard.path) as old:
            assert new.attributes == old.attributes
            np.testing.assert_array_equal(new.images(slice(None)), old.images(slice(None)))
            np.testing.assert_array_equal(new.labels(slice(None)), old.labels(slice(None)))
            for name in ("case_index", "z", "label_voxels"):  # checksums are of compressed bytes
                np.testing.assert_array_equal(new.column(name), old.column(name))
            for left, right in zip(new.cases(), old.cases(), strict=True):
                for name in vars(left).keys() - {"checksum"}:
                    np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
