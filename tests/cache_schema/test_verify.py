"""A cache held against its manifest."""

import zlib

import h5py
import pytest

from cache_schema.errors import InputError
from cache_schema.manifest import read_manifest, write_manifest
from cache_schema.shard import digest
from cache_schema.verify import verify_cache

SHARD = "clients/client-00/shard-000.h5"


def accept(cache, path: str = SHARD) -> None:
    """Write into the manifest what a changed shard now weighs and hashes to."""
    manifest = read_manifest(cache)
    changed = {"bytes": (cache / path).stat().st_size, "sha256": digest(cache / path)}
    shards = tuple(
        shard.model_copy(update=changed) if shard.path == path else shard
        for shard in manifest.shards
    )
    write_manifest(cache, manifest.model_copy(update={"shards": shards}))


def sign(file: h5py.File, dataset: str, row: int) -> None:
    """Write the checksum of a changed slice."""
    corner = (0,) * (file[dataset].ndim - 1)
    _, chunk = file[dataset].id.read_direct_chunk((row, *corner))
    file["checksum"][row, ("image", "label").index(dataset)] = zlib.crc32(chunk)


@pytest.mark.parametrize("deep", [False, True])
def test_a_sound_cache_has_no_problems(small_cache, deep):
    assert verify_cache(small_cache, deep=deep) == []


def test_every_shard_is_announced_with_their_number(small_cache):
    seen = []
    verify_cache(small_cache, on_shard=lambda path, number: seen.append((path, number)))
    paths = [shard.path for shard in read_manifest(small_cache).shards]
    assert seen == [(path, len(paths)) for path in paths]


def test_a_missing_shard_is_named_and_the_others_are_still_looked_at(cache_copy):
    (cache_copy / SHARD).unlink()
    (cache_copy / "test/brats2018/shard-000.h5").unlink()
    assert verify_cache(cache_copy, deep=True) == [
        f"{SHARD}: missing",
        "test/brats2018/shard-000.h5: missing",
    ]


def test_a_changed_byte_is_found(cache_copy):
    content = bytearray((cache_copy / SHARD).read_bytes())
    content[len(content) // 2] ^= 1
    (cache_copy / SHARD).write_bytes(content)
    assert verify_cache(cache_copy) == [f"{SHARD}: its bytes differ from the manifest's SHA-256"]


def test_a_truncated_shard_is_found(cache_copy):
    content = (cache_copy / SHARD).read_bytes()
    (cache_copy / SHARD).write_bytes(content[:-7])
    assert verify_cache(cache_copy) == [
        f"{SHARD}: {len(content) - 7} bytes instead of {len(content)}"
    ]
    assert "cannot be read" in verify_cache(cache_copy, deep=True)[1]


def test_a_foreign_file_is_found_at_any_depth(cache_copy):
    (cache_copy / "clients" / "client-00" / "notes.txt").write_text("mine")
    assert verify_cache(cache_copy) == [
        "clients/client-00/notes.txt: not in the manifest; move it elsewhere or remove it"
    ]


def test_the_log_is_not_foreign(cache_copy):
    (cache_copy / "prep.log.jsonl").write_text("{}\n")
    assert verify_cache(cache_copy) == []


def test_an_unfinished_cache_is_refused(cache_copy):
    (cache_copy / "manifest.json").unlink()
    with pytest.raises(InputError, match="not a finished cache"):
        verify_cache(cache_copy)


def test_deep_finds_a_wrong_label_count(cache_copy):
    with h5py.File(cache_copy / SHARD, "r+") as file:
        file["label_voxels"][2, 1] += 1
        case_id, z = file["cases/case_id"].asstr()[0], file["z"][2]
    accept(cache_copy)
    assert verify_cache(cache_copy) == []
    of_case, of_slice = verify_cache(cache_copy, deep=True)
    assert of_case.startswith(f"{SHARD}: {case_id} has [")
    assert of_slice == f"{SHARD}: {case_id} slice z={z}: its labels differ from label_voxels"


def test_deep_finds_a_label_of_another_year(cache_copy):
    with h5py.File(cache_copy / SHARD, "r+") as file:
        file["label"][1, 0, 0] = 3
        sign(file, "label", 1)
    accept(cache_copy)
    (problem,) = verify_cache(cache_copy, deep=True)
    assert "has labels other than 0, 1, 2, 4" in problem


def test_deep_finds_values_that_are_not_finite(cache_copy):
    with h5py.File(cache_copy / SHARD, "r+") as file:
        file["image"][0, 3, 2, 1] = float("nan")
        sign(file, "image", 0)
    accept(cache_copy)
    (problem,) = verify_cache(cache_copy, deep=True)
    assert "has values that are not finite" in problem


def test_deep_names_a_slice_that_decodes_to_something_else(cache_copy):
    with h5py.File(cache_copy / SHARD) as file:
        chunk = file["image"].id.get_chunk_info(2)
        z = file["z"][2]
    content = bytearray((cache_copy / SHARD).read_bytes())
    content[chunk.byte_offset + chunk.size - 1] ^= 1
    (cache_copy / SHARD).write_bytes(content)
    accept(cache_copy)
    (problem,) = verify_cache(cache_copy, deep=True)
    assert problem.endswith(
        f"slice z={z}: cannot be read (image of row 2 differs from its checksum)"
    )


def test_deep_finds_an_affine_that_was_changed(cache_copy):
    with h5py.File(cache_copy / SHARD, "r+") as file:
        file["cases/affine"][1, 0, 3] += 1
        case_id = file["cases/case_id"].asstr()[1]
    accept(cache_copy)
    assert verify_cache(cache_copy, deep=True) == [
        f"{SHARD}: the tables of {case_id} differ from their checksum"
    ]


def test_deep_names_each_slice_that_cannot_be_decoded(cache_copy):
    with h5py.File(cache_copy / SHARD, "r+") as file:
        planes = file["z"][:3].tolist()
        for row in (0, 2):
            file["image"].id.write_direct_chunk((row, 0, 0, 0), b"not LZ4")
            sign(file, "image", row)
    accept(cache_copy)
    problems = verify_cache(cache_copy, deep=True)
    assert len(problems) == 2
    for problem, z in zip(problems, planes[::2], strict=True):
        assert f"slice z={z}: cannot be read (chunk is not LZ4" in problem


def test_deep_finds_a_patient_who_is_somebody_else(cache_copy):
    with h5py.File(cache_copy / SHARD, "r+") as file:
        file["cases/patient_id"][0] = "NOBODY_1"
    accept(cache_copy)
    (problem,) = verify_cache(cache_copy, deep=True)
    assert "has patient_id NOBODY_1, not " in problem


def test_deep_finds_other_preprocessing(cache_copy):
    with h5py.File(cache_copy / SHARD, "r+") as file:
        file.attrs["fingerprint"] = "0" * 64
    accept(cache_copy)
    assert verify_cache(cache_copy, deep=True) == [f"{SHARD}: was made with other preprocessing"]


def test_deep_finds_cases_that_changed_places(cache_copy):
    other = "clients/client-01/shard-000.h5"
    content = [(cache_copy / path).read_bytes() for path in (SHARD, other)]
    for path, swapped in zip((other, SHARD), content, strict=True):
        (cache_copy / path).write_bytes(swapped)
        accept(cache_copy, path)
    problems = verify_cache(cache_copy, deep=True)
    assert any(problem.startswith(SHARD) and "only in the shard" in problem for problem in problems)
    assert any(
        problem.startswith(other) and "only in the manifest" in problem for problem in problems
    )


def test_deep_finds_a_label_count_of_the_manifest_that_differs_from_the_shard(cache_copy):
    manifest = read_manifest(cache_copy)
    place, case = next((n, c) for n, c in enumerate(manifest.cases) if c.split == "test")
    voxels = case.label_voxels.model_copy(update={"ED": case.label_voxels.ED + 1})
    wrong = case.model_copy(update={"label_voxels": voxels})
    cases = (*manifest.cases[:place], wrong, *manifest.cases[place + 1 :])
    write_manifest(cache_copy, manifest.model_copy(update={"cases": cases}))
    assert any(case.case_id in problem for problem in verify_cache(cache_copy, deep=True))


def test_deep_finds_a_missing_attribute(cache_copy):
    with h5py.File(cache_copy / SHARD, "r+") as file:
        del file.attrs["fingerprint"]
    accept(cache_copy)
    (problem,) = verify_cache(cache_copy, deep=True)
    assert "was made with other preprocessing" in problem


def test_deep_finds_a_shard_of_another_client(cache_copy):
    with h5py.File(cache_copy / SHARD, "r+") as file:
        file.attrs["client"] = 1
    accept(cache_copy)
    (problem,) = verify_cache(cache_copy, deep=True)
    assert "client" in problem
