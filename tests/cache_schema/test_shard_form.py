"""The form of a shard's tables: whatever is not as docs/format.md says is refused before it is used."""

import h5py
import numpy as np
import pytest

from cache_schema.errors import InputError
from cache_schema.shard import ShardReader

SHARD = "clients/client-00/shard-000.h5"


def replaced(name, change):
    """Put another dataset in the place of one."""

    def replace(file):
        values = change(file[name][:])
        del file[name]
        file[name] = values

    return replace


def lengthened(name):
    return lambda file: file[name].resize(len(file[name]) + 1, axis=0)


def moved(name, place, step):
    def move(file):
        file[name][place] += step

    return move


def swapped(file):
    file["cases/case_id"][:2] = file["cases/case_id"][:2][::-1]


def unchunked(file):
    chunk = file["image"][:]
    del file["image"]
    file.create_dataset("image", data=chunk, chunks=(2, *chunk.shape[1:]))


FORMS = {
    "a column is missing": (lambda file: file.__delitem__("z"), "z is missing"),
    "a column of cases is missing": (
        lambda file: file.__delitem__("cases/affine"),
        "cases/affine is missing",
    ),
    "modalities": (
        lambda file: file.attrs.__setitem__("modalities", ["t2", "t1ce", "t1", "flair"]),
        "modalities are",
    ),
    "first row below 0": (moved("cases/first_row", 0, -1), "rows of cases are"),
    "first row of another case": (moved("cases/first_row", 1, -1), "rows of cases are"),
    "stop row past the end": (moved("cases/stop_row", -1, 1), "rows of cases are"),
    "rows left over": (moved("cases/stop_row", -1, -1), "rows of cases are"),
    "a huge row": (moved("cases/stop_row", -1, 2**62), "rows of cases are"),
    "case index": (moved("case_index", 0, 1), "case_index differs"),
    "z falls": (moved("z", 0, 9), "slices are not in ascending order"),
    "z below 0": (moved("z", 0, -100), "slices lie outside their volume"),
    "z past the volume": (moved("z", -1, 100), "slices lie outside their volume"),
    "an empty volume": (moved("cases/shape", (0, 0), -24), "claims a volume of "),
    "a volume wider than the plane": (moved("cases/shape", (0, 1), 1), "volumes of "),
    "case ids change places": (swapped, "cases are not in ascending order"),
    "z is too long": (lengthened("z"), "z has shape"),
    "labels are too many": (lengthened("label"), "image has shape"),
    "images are too many": (lengthened("image"), "image has shape"),
    "checksums are too few": (
        lambda file: file["checksum"].resize(2, axis=0),
        "checksum has shape (2, 2)",
    ),
    "cases are too few": (replaced("cases/mean", lambda a: a[:-1]), "cases/mean has shape"),
    "affine of 3 rows": (replaced("cases/affine", lambda a: a[:, :3]), "cases/affine has shape"),
    "z is a float": (replaced("z", lambda a: a.astype(np.float64)), "z has type float64"),
    "counts of 16 bits": (
        replaced("label_voxels", lambda a: a.astype(np.int16)),
        "label_voxels has type int16",
    ),
    "big-endian": (replaced("cases/std", lambda a: a.astype(">f8")), "cases/std has type >f8"),
    "names are numbers": (
        replaced("cases/site", lambda a: np.arange(len(a))),
        "cases/site has type",
    ),
    "chunks of two slices": (unchunked, "image has chunks of (2, 4, 24, 20)"),
}


@pytest.mark.parametrize("name", FORMS)
def test_another_form_is_refused_in_one_line(name, cache_copy):
    change, problem = FORMS[name]
    with h5py.File(cache_copy / SHARD, "r+") as file:
        change(file)
    with pytest.raises(InputError, match=r"shard-000\.h5 cannot be read \(") as caught:
        len(ShardReader(cache_copy / SHARD))
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_that_no_chunk_stands_for_cost_no_memory(cache_copy):
    with h5py.File(cache_copy / SHARD, "r+") as file:
        for name in ("image", "label", "z", "case_index", "label_voxels", "checksum"):
            file[name].resize(2**40, axis=0)
    with pytest.raises(InputError, match=r"image has \d+ slices in 1099511627776 rows"):
        ShardReader(cache_copy / SHARD).cases()
