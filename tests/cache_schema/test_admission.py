"""The door to a cache's slices: no shard comes in that is not the one which the manifest lists."""

import shutil

import h5py
import numpy as np
import pytest

from cache_schema.admission import open_shard, require_whole, require_whole_splits
from cache_schema.errors import InputError
from cache_schema.manifest import read_manifest, write_manifest
from cache_schema.shard import digest

SHARD = "clients/client-00/shard-000.h5"
OTHER = "clients/client-01/shard-000.h5"


@pytest.fixture
def accept(cache_copy):
    """Writes into the manifest what a changed shard now weighs and hashes to, so that its tables alone tell."""

    def write(path=SHARD):
        manifest = read_manifest(cache_copy)
        now = {"bytes": (cache_copy / path).stat().st_size, "sha256": digest(cache_copy / path)}
        shards = (
            shard.model_copy(update=now) if shard.path == path else shard
            for shard in manifest.shards
        )
        write_manifest(cache_copy, manifest.model_copy(update={"shards": tuple(shards)}))

    return write


def opened(cache, path=SHARD):
    return open_shard(cache, read_manifest(cache), path)


def refused(cache, path=SHARD) -> str:
    with pytest.raises(InputError) as caught:
        opened(cache, path)
    assert "\n" not in str(caught.value)
    assert path in str(caught.value)
    assert "prep verify" in str(caught.value)
    return str(caught.value)


def test_a_sound_shard_is_opened_and_read(small_cache):
    manifest = read_manifest(small_cache)
    for shard in manifest.shards:
        with open_shard(small_cache, manifest, shard.path) as reader:
            assert len(reader) == shard.rows


def test_a_test_shard_in_a_clients_place_is_refused(cache_copy, accept):
    shutil.copy(cache_copy / "test/brats2018/shard-000.h5", cache_copy / SHARD)
    assert "is a shard of the test set; training never opens one" in refused(cache_copy)


def test_a_clients_shard_in_the_place_of_a_test_shard_is_refused(cache_copy):
    test = "test/brats2018/shard-000.h5"
    shutil.copy(cache_copy / OTHER, cache_copy / test)
    assert "belongs to client 1, not to the test set" in refused(cache_copy, test)


def test_another_clients_shard_is_refused(cache_copy):
    shutil.copy(cache_copy / OTHER, cache_copy / SHARD)
    assert "belongs to client 1, not to client 0" in refused(cache_copy)


def test_another_shard_of_the_same_client_is_refused(cache_copy):
    shutil.copy(cache_copy / "clients/client-00/shard-001.h5", cache_copy / SHARD)
    assert "is only in the " in refused(cache_copy)


def test_a_longer_file_is_refused(cache_copy):
    with (cache_copy / SHARD).open("ab") as file:
        file.write(b"x")
    assert " bytes instead of " in refused(cache_copy)


def test_a_shard_that_is_gone_is_refused(cache_copy):
    (cache_copy / SHARD).unlink()
    assert "cannot be read (No such file or directory)" in refused(cache_copy)


def set_attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


def set_cell(name, place, value):
    return lambda file: file[name].__setitem__(place, value)


def roll_label_counts(file):
    rows = slice(0, int(file["cases/stop_row"][0]))
    file["label_voxels"][rows] = np.roll(file["label_voxels"][rows], 1, axis=0)


def move_last_slice(file):
    """Give the last slice another z, in whichever direction there is room."""
    before, last = file["z"][-2:].tolist()
    file["z"][-1] = last - 1 if before < last - 1 else last + 1


MUTANTS = {
    "client": (set_attribute("client", 1), "belongs to client 1, not to client 0"),
    "client of a list": (set_attribute("client", [0, 0]), "belongs to client"),
    "fingerprint": (set_attribute("fingerprint", "0" * 64), "other preprocessing"),
    "no fingerprint": (lambda file: file.attrs.__delitem__("fingerprint"), "other preprocessing"),
    "patient": (set_cell("cases/patient_id", 0, "NOBODY"), "has patient_id NOBODY, not "),
    "cohort": (set_cell("cases/cohort", 1, "brats2018"), "has cohort brats2018, not "),
    "grade": (set_cell("cases/grade", 0, "unknown"), "has grade unknown, not "),
    "site": (set_cell("cases/site", 0, "NOWHERE"), "has site NOWHERE, not "),
    "key": (set_cell("cases/key", 0, "0" * 64), "has key 000"),
    "present": (set_cell("cases/present", (0, 2), False), "has present (True, True, False, True)"),
    "case id": (set_cell("cases/case_id", 0, "A"), "A is only in the shard"),
    "findings": (set_cell("cases/findings", 0, "odd"), "has other findings"),
    "affine": (set_cell("cases/affine", (1, 0, 3), 7.0), "differ from their checksum"),
    "spacing": (set_cell("cases/affine", (0, 0, 0), -2.0), "differ from their checksum"),
    "mean": (set_cell("cases/mean", (2, 1), 7.0), "differ from their checksum"),
    "std": (set_cell("cases/std", (0, 3), 7.0), "differ from their checksum"),
    "depth": (set_cell("cases/shape", (0, 2), 18), "differ from their checksum"),
    "last z": (move_last_slice, "differ from their checksum"),
    "checksum of a slice": (set_cell("checksum", (0, 1), 1), "differ from their checksum"),
    "label counts": (set_cell("label_voxels", (3, 1), 999), "label voxels, not as in the manifest"),
    "label counts that even out": (
        roll_label_counts,
        "differ from their checksum",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_tables_that_were_changed_are_refused(name, cache_copy, accept):
    change, problem = MUTANTS[name]
    with h5py.File(cache_copy / SHARD, "r+") as file:
        change(file)
    accept()
    assert problem in refused(cache_copy)


def test_a_changed_bit_of_a_slice_is_seen_by_hashing_alone(cache_copy):
    with h5py.File(cache_copy / SHARD) as file:
        chunk = file["image"].id.get_chunk_info(2)
    content = bytearray((cache_copy / SHARD).read_bytes())
    content[chunk.byte_offset + chunk.size - 1] ^= 1
    (cache_copy / SHARD).write_bytes(content)
    manifest = read_manifest(cache_copy)
    opened(cache_copy)
    require_whole(cache_copy, manifest, [OTHER])
    with pytest.raises(
        InputError, match=rf"{SHARD} .*: its bytes differ from the manifest's SHA-256; run"
    ):
        require_whole(cache_copy, manifest, [OTHER, SHARD])


def test_only_the_shards_of_the_splits_that_are_asked_for_are_hashed(cache_copy):
    (cache_copy / SHARD).unlink()
    seen = []
    require_whole_splits(
        cache_copy, "test", on_shard=lambda path, number: seen.append((path, number))
    )
    assert seen == [(f"test/brats{year}/shard-000.h5", 3) for year in (2018, 2019, 2020)]
    with pytest.raises(InputError, match=rf"{SHARD} .*: missing; run `prep verify"):
        require_whole_splits(cache_copy, "test", "train")
