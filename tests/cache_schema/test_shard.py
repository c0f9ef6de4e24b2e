"""Shards: written whole or not at all, and readable with plain h5py."""

import fcntl
import hashlib
import multiprocessing
import os
import pickle
import sys
import tracemalloc
import zlib
from dataclasses import replace

import h5py
import hdf5plugin
import numpy as np
import pytest

from cache_schema.errors import InputError
from cache_schema.shard import (
    CaseSlices,
    ShardReader,
    ShardWriter,
    Slice,
    count_label_voxels,
    digest,
)

PLANE = (6, 10)
FINGERPRINT = "ab" * 32


def case_slices(case_id: str = "Brats18_CBICA_AAB_1", rows: int = 3, seed: int = 0) -> CaseSlices:
    generator = np.random.default_rng(seed)
    return CaseSlices(
        case_id=case_id,
        patient_id="CBICA_AAB_1",
        cohort="brats2018",
        grade="HGG",
        site="Zürich",
        z=np.arange(20, 20 + 2 * rows, 2, dtype=np.int32),
        slices=[
            Slice(
                generator.normal(size=(4, *PLANE)).astype(np.float16),
                generator.choice(np.array([0, 1, 2, 4], np.uint8), PLANE),
            )
            for _ in range(rows)
        ],
        affine=np.diag([-1.0, -1.0, 3.0, 1.0]),
        shape=(6, 9, 155),
        mean=np.array([100.0, 200.0, 300.0, 400.0]),
        std=np.array([1.5, 2.5, 3.5, 4.5]),
        present=(True, False, True, True),
        key="cd" * 32,
        findings="no ET\n2 label voxels outside the brain",
    )


FIRST = case_slices(rows=3)
SECOND = case_slices("Brats18_CBICA_AAG_1", rows=2, seed=1)


@pytest.fixture
def path(tmp_path):
    """A shard of two cases, of three and of two slices."""
    return write(tmp_path / "clients" / "client-05" / "shard-000.h5")


def write(path, *cases: CaseSlices, client: int | None = 5):
    with ShardWriter(path, plane=PLANE, fingerprint=FINGERPRINT, client=client) as writer:
        for case in cases or (FIRST, SECOND):
            writer.append(case)
    return path


def test_what_is_written_is_read(path):
    with ShardReader(path) as reader:
        assert len(reader) == 5
        assert reader.plane == PLANE
        np.testing.assert_array_equal(
            reader.images(slice(None)), [image for image, _ in (*FIRST.slices, *SECOND.slices)]
        )
        np.testing.assert_array_equal(
            reader.labels(slice(3, 5)), [label for _, label in SECOND.slices]
        )
        assert reader.column("z").tolist() == [20, 22, 24, 20, 22]
        assert reader.column("case_index").tolist() == [0, 0, 0, 1, 1]


def test_a_shard_is_read_without_a_lock(path):
    # A file that somebody else has locked answers as one on a file system without locks: not at all.
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with ShardReader(path) as reader:
            assert reader.column("z").tolist() == [20, 22, 24, 20, 22]


def test_a_shard_is_written_without_a_lock(tmp_path):
    with (tmp_path / f"shard-000.h5.{os.getpid()}.partial").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with ShardReader(write(tmp_path / "shard-000.h5")) as reader:
            assert len(reader) == 5


def test_rows_come_in_the_order_asked_for_and_as_often(path):
    with ShardReader(path) as reader:
        images, labels = reader.images([4, 0, 4]), reader.labels([4, 0, 4])
    np.testing.assert_array_equal(images[0], SECOND.slices[1].image)
    np.testing.assert_array_equal(images[1], FIRST.slices[0].image)
    np.testing.assert_array_equal(images[2], SECOND.slices[1].image)
    np.testing.assert_array_equal(labels[1], FIRST.slices[0].label)


def test_the_table_of_cases_is_read_back(path):
    with ShardReader(path) as reader:
        first, second = reader.cases()
    for name in ("case_id", "patient_id", "cohort", "grade", "site", "shape", "present", "key"):
        assert getattr(first, name) == getattr(FIRST, name)
    assert first.findings.splitlines() == ["no ET", "2 label voxels outside the brain"]
    for name in ("affine", "mean", "std"):
        np.testing.assert_array_equal(getattr(first, name), getattr(FIRST, name))
    assert (first.first_row, first.stop_row) == (0, 3)
    assert (second.first_row, second.stop_row) == (3, 5)


def test_plain_h5py_finds_the_datasets_that_the_format_promises(path):
    with h5py.File(path) as file:
        found = {
            name: (file[name].shape, file[name].dtype.str, file[name].chunks)
            for name in ("image", "label", "case_index", "z", "label_voxels", "checksum")
        }
        image = file["image"][:]
        filters = file["image"].id.get_create_plist()
        assert [filters.get_filter(n)[0] for n in range(filters.get_nfilters())] == [32004]
    assert found == {
        "image": ((5, 4, 6, 10), "<f2", (1, 4, 6, 10)),
        "label": ((5, 6, 10), "|u1", (1, 6, 10)),
        "case_index": ((5,), "<i4", (1024,)),
        "z": ((5,), "<i4", (1024,)),
        "label_voxels": ((5, 3), "<i4", (1024, 3)),
        "checksum": ((5, 2), "<u4", (1024, 2)),
    }
    np.testing.assert_array_equal(image[3], SECOND.slices[0].image)
    assert hdf5plugin.LZ4().filter_id == 32004


def test_plain_h5py_finds_the_columns_of_cases_that_the_format_promises(path):
    with h5py.File(path) as file:
        group = file["cases"]
        columns = {name: (group[name].shape, group[name].dtype.str) for name in group}
        assert h5py.check_string_dtype(group["site"].dtype).encoding == "utf-8"
        assert group["site"].asstr()[0] == "Zürich"
        assert group["key"].asstr()[1] == "cd" * 32
        assert group["present"][1].tolist() == [True, False, True, True]
        assert group["stop_row"][:].tolist() == [3, 5]
    strings = ("case_id", "patient_id", "cohort", "grade", "site", "key", "findings")
    assert columns == dict.fromkeys(strings, ((2,), "|O")) | {
        "first_row": ((2,), "<i8"),
        "stop_row": ((2,), "<i8"),
        "affine": ((2, 4, 4), "<f8"),
        "shape": ((2, 3), "<i8"),
        "mean": ((2, 4), "<f8"),
        "std": ((2, 4), "<f8"),
        "present": ((2, 4), "|b1"),
        "checksum": ((2,), "<u4"),
    }


def test_plain_h5py_finds_the_attributes_that_the_format_promises(path):
    with h5py.File(path) as file:
        attributes = {name: file.attrs[name] for name in file.attrs}
    assert attributes.pop("modalities").tolist() == ["t1", "t1ce", "t2", "flair"]
    assert attributes == {
        "schema": "fedunetmm-shard",
        "schema_version": 1,
        "label_convention": "brats2018-2020",
        "fingerprint": FINGERPRINT,
        "client": 5,
    }


def test_attributes_are_plain_values(path):
    with ShardReader(path) as reader:
        attributes = reader.attributes
    assert attributes["modalities"] == ["t1", "t1ce", "t2", "flair"]
    assert type(attributes["client"]) is int


def test_a_test_shard_belongs_to_client_minus_one(tmp_path):
    with ShardReader(write(tmp_path / "test.h5", client=None)) as reader:
        assert reader.attributes["client"] == -1


def test_label_voxels_count_nec_ed_and_et_in_every_slice(tmp_path):
    label = np.zeros((2, *PLANE), np.uint8)
    label[0, 0, :3] = 1
    label[0, 1, :5] = 2
    label[1, 2, :7] = 4
    assert [count_label_voxels(plane) for plane in label] == [(3, 5, 0), (0, 0, 7)]
    case = case_slices(rows=2)
    slices = [Slice(image, plane) for (image, _), plane in zip(case.slices, label, strict=True)]
    case = replace(case, slices=slices)
    with ShardReader(write(tmp_path / "s.h5", case)) as reader:
        assert reader.column("label_voxels").tolist() == [[3, 5, 0], [0, 0, 7]]


def test_the_same_input_gives_the_same_bytes(tmp_path):
    assert (
        write(tmp_path / "a" / "one.h5").read_bytes()
        == write(tmp_path / "b" / "two.h5").read_bytes()
    )


def test_a_sampling_profiler_does_not_change_the_bytes(tmp_path):
    # Dask's profiler holds on to stack frames, and with them to open datasets.
    plain = write(tmp_path / "a.h5").read_bytes()
    frames = []
    sys.setprofile(lambda frame, *_: frames.append(frame))
    try:
        watched = write(tmp_path / "b.h5").read_bytes()
    finally:
        sys.setprofile(None)
    assert watched == plain


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "shard-000.h5"
    with ShardWriter(path, plane=PLANE, fingerprint=FINGERPRINT, client=0) as writer:
        writer.append(FIRST)
        assert not path.exists()
        assert [found.suffix for found in tmp_path.iterdir()] == [".partial"]
    assert [found.name for found in tmp_path.iterdir()] == ["shard-000.h5"]


def interrupt(path):
    with ShardWriter(path, plane=PLANE, fingerprint=FINGERPRINT, client=0) as writer:
        writer.append(FIRST)
        raise KeyboardInterrupt


def test_an_exception_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupt(tmp_path / "shard-000.h5")
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_the_shard_that_was_there(path):
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        interrupt(path)
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_an_empty_shard_is_not_kept(tmp_path):
    with ShardWriter(tmp_path / "s.h5", plane=PLANE, fingerprint=FINGERPRINT, client=0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_cases_out_of_order_are_refused(tmp_path):
    with pytest.raises(ValueError, match=f"{FIRST.case_id} comes after {SECOND.case_id}"):
        write(tmp_path / "s.h5", SECOND, FIRST)
    assert list(tmp_path.iterdir()) == []


def test_the_same_case_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="comes after"):
        write(tmp_path / "s.h5", FIRST, FIRST)


def test_slices_out_of_order_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not in ascending order"):
        write(tmp_path / "s.h5", replace(FIRST, z=FIRST.z[::-1].copy()))


@pytest.mark.parametrize("number", [2, 4])
def test_more_or_fewer_slices_than_indices_are_refused(tmp_path, number):
    slices = [*FIRST.slices, *SECOND.slices][:number]
    with pytest.raises((ValueError, OSError)):
        write(tmp_path / "s.h5", replace(FIRST, slices=slices))
    assert list(tmp_path.iterdir()) == []


def test_the_writer_knows_the_sha256_of_what_it_wrote(tmp_path):
    with ShardWriter(tmp_path / "s.h5", plane=PLANE, fingerprint=FINGERPRINT, client=5) as writer:
        writer.append(FIRST)
        assert writer.sha256 is None
    assert writer.sha256 == hashlib.sha256((tmp_path / "s.h5").read_bytes()).hexdigest()


def test_checksums_are_those_of_zlib_over_stored_chunks(path):
    with h5py.File(path) as file:
        for row in range(5):
            _, image = file["image"].id.read_direct_chunk((row, 0, 0, 0))
            _, label = file["label"].id.read_direct_chunk((row, 0, 0))
            assert file["checksum"][row].tolist() == [zlib.crc32(image), zlib.crc32(label)]


def test_the_checksum_of_a_case_is_that_of_docs_format(path):
    with h5py.File(path) as file:
        cases = file["cases"]
        content = b"".join(file[name][3:5].tobytes() for name in ("z", "label_voxels", "checksum"))
        for name in ("affine", "shape", "mean", "std", "present"):
            content += cases[name][1].tobytes()
        content += f"{cases['key'].asstr()[1]}\n{cases['findings'].asstr()[1]}".encode()
        assert cases["checksum"][1] == zlib.crc32(content)


def test_a_copied_case_is_stored_as_in_its_first_shard(path, tmp_path):
    with ShardReader(path) as reader:
        second = reader.stored(reader.cases()[1])
    with ShardWriter(tmp_path / "s.h5", plane=PLANE, fingerprint=FINGERPRINT, client=5) as writer:
        writer.copy(second)
    alone = write(tmp_path / "alone.h5", SECOND)
    assert (tmp_path / "s.h5").read_bytes() == alone.read_bytes()


def flip(path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("dataset", ["image", "label"])
def test_a_slice_that_would_decode_to_something_else_is_neither_read_nor_copied(path, dataset):
    with h5py.File(path) as file:
        chunk = file[dataset].id.get_chunk_info(1)
    flip(path, chunk.byte_offset + chunk.size - 1)  # a literal: it still decodes
    with ShardReader(path) as reader:
        first, second = reader.cases()
        damage = rf"shard-000\.h5 cannot be read \({dataset} of row 1 differs from its checksum\)"
        with pytest.raises(InputError, match=damage):
            reader.stored(first)
        with pytest.raises(InputError, match=damage):
            (reader.images if dataset == "image" else reader.labels)([0, 1])
        assert len(reader.images([0])) == len(reader.labels([0])) == 1
        assert len(reader.stored(second).chunks) == 2
    with h5py.File(path) as file:
        assert file[dataset][1].shape[-2:] == PLANE  # plain HDF5 notices nothing


@pytest.mark.parametrize(
    ("dataset", "place", "value"),
    [("z", 1, 21), ("label_voxels", (2, 0), 1), ("cases/mean", (0, 1), 7.0), ("cases/key", 0, "0")],
)
def test_a_table_that_says_something_else_is_found_and_not_copied(path, dataset, place, value):
    with h5py.File(path, "r+") as file:
        file[dataset][place] = value
    with ShardReader(path) as reader:
        first, second = reader.cases()
        assert not reader.has_sound_tables(first)
        assert reader.has_sound_tables(second)
        with pytest.raises(InputError, match=f"the tables of {FIRST.case_id} are damaged"):
            reader.stored(first)


def test_a_truncated_file_is_refused_by_name(path):
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"client-05/shard-000\.h5 cannot be read"):
        len(ShardReader(path))


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.h5 cannot be read"):
        ShardReader(tmp_path / "nowhere.h5").cases()


def test_a_damaged_chunk_is_refused_by_name(path):
    with h5py.File(path) as file:
        chunk = file["image"].id.get_chunk_info(2)
    content = bytearray(path.read_bytes())
    start = chunk.byte_offset
    content[start : start + 12] = b"\xff" * 12  # the filter's own header
    path.write_bytes(content)
    with ShardReader(path) as reader:
        assert reader.images([1]).shape == (1, 4, *PLANE)
        with pytest.raises(InputError, match=r"shard-000\.h5 cannot be read"):
            reader.images([2])


def test_a_dataset_that_is_missing_is_refused_by_name(path):
    with h5py.File(path, "r+") as file:
        del file["cases"]
    with pytest.raises(InputError, match=r"shard-000\.h5 cannot be read .*cases"):
        ShardReader(path).cases()


def test_an_unknown_shard_version_is_refused_by_name(path):
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 2
    with pytest.raises(InputError, match="shard schema version 2, this release reads 1"):
        len(ShardReader(path))


def test_another_label_convention_is_refused_by_name(path):
    with h5py.File(path, "r+") as file:
        file.attrs["label_convention"] = "brats2023"
    with pytest.raises(InputError, match="brats2023"):
        len(ShardReader(path))


def test_what_a_later_writer_may_add_is_ignored(path):
    with h5py.File(path, "r+") as file:
        file.attrs["scanner"] = "3T"
        file["cases/age"] = [60.0, 70.0]
        file["weights"] = np.ones(5)
    with ShardReader(path) as reader:
        assert [entry.case_id for entry in reader.cases()] == [FIRST.case_id, SECOND.case_id]
        assert len(reader) == 5


def test_an_hdf5_file_of_somebody_else_is_refused(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["z"] = [1, 2]
    with pytest.raises(InputError, match="is not a shard of this project"):
        len(ShardReader(tmp_path / "other.h5"))


def test_a_reader_is_pickled_without_its_handle(path):
    with ShardReader(path) as reader:
        reader.images([0])
        copy = pickle.loads(pickle.dumps(reader))
    assert copy._file is None
    np.testing.assert_array_equal(copy.images([4])[0], SECOND.slices[1].image)


def test_a_closed_reader_opens_its_file_again(path):
    reader = ShardReader(path)
    reader.images([0])
    reader.close()
    reader.close()
    np.testing.assert_array_equal(reader.images([4])[0], SECOND.slices[1].image)


def read_in_child(reader: ShardReader, rows: list[int], results) -> None:
    results.put((os.getpid(), reader.images(rows)))


def test_children_of_a_fork_read_the_right_rows_while_the_parent_reads_others(tmp_path):
    many = case_slices(rows=60)
    reader = ShardReader(write(tmp_path / "s.h5", many))
    reader.images([0])  # opens the file before the fork
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    wanted = [list(range(30)), list(range(30, 60))]
    children = [
        context.Process(target=read_in_child, args=(reader, rows, results)) for rows in wanted
    ]
    for child in children:
        child.start()
    for row in reversed(range(60)):
        np.testing.assert_array_equal(reader.images([row])[0], many.slices[row].image)
    found = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert len({os.getpid(), *(pid for pid, _ in found)}) == 3
    for images in (images for _, images in found):
        first = 0 if np.array_equal(images[0], many.slices[0].image) else 30
        np.testing.assert_array_equal(
            images, [image for image, _ in many.slices[first : first + 30]]
        )


def test_the_digest_is_that_of_sha256sum(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert digest(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    )


def change(path, name: str, value) -> None:
    """Replace one value of the first case, or of all."""
    with h5py.File(path, "r+") as file:
        file["cases"][name][0] = value


@pytest.mark.parametrize("column", ["case_id", "patient_id", "site"])
@pytest.mark.parametrize("name", ["../../escaped", "a\nb", "x" * 5_000_000])
def test_a_name_that_is_none_is_refused_with_its_column(column, name, path):
    change(path, column, name)
    with (
        ShardReader(path) as reader,
        pytest.raises(InputError, match=f"{column}: is no name") as caught,
    ):
        reader.cases()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("shape", [(2**40, 1, 1), (4096, 4096, 4096), (0, 9, 155), (-6, -9, 155)])
def test_a_volume_that_no_memory_holds_is_refused(shape, path):
    change(path, "shape", shape)
    with ShardReader(path) as reader, pytest.raises(InputError, match="claims a volume of"):
        reader.cases()


def replace_dataset(path, name: str, shape: tuple[int, ...], dtype, **options) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, shape, dtype, **options)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "problem"),
    [
        ("z", (10**12,), np.int32, r"z has shape \(1000000000000,\), not \(5,\)"),
        ("checksum", (5, 10**9), np.uint32, "checksum has shape"),
        ("label_voxels", (5,), np.dtype((np.int32, (3,))), "label_voxels has type"),
        ("case_index", (5,), "S100000000", "case_index has type"),
        ("image", (5, 4, 10**5, 10**5), np.float16, "image has shape"),
        ("image", (5, 4, 6, 10), np.float64, "image has type float64"),
        ("label", (10**12, 6, 10), np.uint8, "not .1000000000000, 4, 6, 10"),
        ("label", (5, 10**5, 10**5), np.uint8, "label has slices of"),
        ("label", (5, 60), np.uint8, "label has slices of"),
        ("cases/affine", (10**11, 4, 4), np.float64, "cases/affine has shape"),
        ("cases/case_id", (10**10,), h5py.string_dtype(), "10000000000 cases in 5 rows"),
        ("cases/site", (2,), "S1000000000", "cases/site has type"),
        ("cases/site", (2,), np.int64, "cases/site has type"),
    ],
)
def test_a_dataset_that_claims_more_than_the_file_holds_is_refused(
    name, shape, dtype, problem, path
):
    options = (
        {"chunks": (1, *shape[1:])} if np.prod(shape) < 10**9 else {"chunks": (1,) * len(shape)}
    )
    replace_dataset(path, name, shape, dtype, **options)
    tracemalloc.start()
    with ShardReader(path) as reader, pytest.raises(InputError, match=problem):
        reader.cases()
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_pipe_in_place_of_a_shard_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "shard-000.h5")
    with (
        ShardReader(tmp_path / "shard-000.h5") as reader,
        pytest.raises(InputError, match="a pipe"),
    ):
        reader.cases()


def test_a_link_in_place_of_the_unfinished_shard_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path = tmp_path / "shard-000.h5"
    path.with_name(f"shard-000.h5.{os.getpid()}.partial").symlink_to(victim)
    write(path)
    assert victim.read_text() == "mine"
    assert {each.name for each in tmp_path.iterdir()} == {"victim", "shard-000.h5"}
    assert not path.is_symlink()


def test_a_link_in_place_of_the_shard_is_replaced_not_followed(tmp_path):
    (tmp_path / "victim").write_text("mine")
    path = tmp_path / "shard-000.h5"
    path.symlink_to("victim")
    write(path)
    assert (tmp_path / "victim").read_text() == "mine"
    assert not path.is_symlink()
