"""The form of a shard's tables, found to be right before anything of them is used. See docs/format.md."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import numpy as np

from cache_schema.geometry import MAX_SIDE, MAX_VOXELS
from cache_schema.names import check_name, check_site
from cache_schema.vocabulary import MODALITIES

ROW_COLUMNS: Final[dict[str, tuple[type, tuple[int, ...]]]] = {
    "case_index": (np.int32, ()),
    "z": (np.int32, ()),
    "label_voxels": (np.int32, (3,)),
    "checksum": (np.uint32, (2,)),
}
NUMBER_COLUMNS: Final[dict[str, tuple[type, tuple[int, ...]]]] = {
    "first_row": (np.int64, ()),
    "stop_row": (np.int64, ()),
    "affine": (np.float64, (4, 4)),
    "shape": (np.int64, (3,)),
    "mean": (np.float64, (4,)),
    "std": (np.float64, (4,)),
    "present": (np.bool_, (4,)),
    "checksum": (np.uint32, ()),
}
CHUNKED: Final = ("image", "label")
"""Datasets of one compressed chunk a row."""
STRING_COLUMNS: Final = ("case_id", "patient_id", "cohort", "grade", "site", "key", "findings")


def require_form(file: Any) -> None:  # noqa: ANN401 - h5py is for cache_schema.shard alone
    """Make sure that the tables of a shard have their form, and its cases share its rows out.

    Sizes are looked at before anything is read, so that a size that is not true costs no memory.

    Args:
        file: An open HDF5 file.

    Raises:
        ValueError: Naming the first thing that is not as it should be.
        Exception: Whatever h5py raises, of a damaged file or a missing dataset.
    """
    for problem in _problems(file):
        raise ValueError(problem)


def _problems(file: Any) -> Iterator[str]:  # noqa: ANN401
    required = (*CHUNKED, *ROW_COLUMNS, *(f"cases/{n}" for n in (*STRING_COLUMNS, *NUMBER_COLUMNS)))
    yield from (f"{name} is missing" for name in required if name not in file)
    if tuple(file.attrs["modalities"]) != MODALITIES:
        yield f"modalities are {tuple(file.attrs['modalities'])}"
    plane = file["label"].shape[1:]
    if len(plane) != 2 or not all(0 < side <= MAX_SIDE for side in plane):
        yield f"label has slices of {plane}"
    num_rows, num_cases = len(file["label"]), len(file["cases/case_id"])
    if not 1 <= num_cases <= num_rows:
        yield f"{num_cases} cases in {num_rows} rows"
    yield from _chunked_problems(file["image"], "image", np.float16, (num_rows, 4, *plane))
    yield from _chunked_problems(file["label"], "label", np.uint8, (num_rows, *plane))
    for name, (dtype, tail) in ROW_COLUMNS.items():
        yield from _form_problems(file[name], name, dtype, (num_rows, *tail))
    cases = file["cases"]
    for name, (dtype, tail) in NUMBER_COLUMNS.items():
        yield from _form_problems(cases[name], f"cases/{name}", dtype, (num_cases, *tail))
    for name in STRING_COLUMNS:
        yield from _form_problems(cases[name], f"cases/{name}", np.object_, (num_cases,))
    yield from _place_problems(
        cases["first_row"][:], cases["stop_row"][:], file["case_index"][:], file["z"][:]
    )
    yield from _volume_problems(cases["shape"][:], plane, file["case_index"][:], file["z"][:])
    for name, check in {
        "case_id": check_name,
        "patient_id": check_name,
        "site": check_site,
    }.items():
        yield from _name_problems(cases[name].asstr()[:], name, check)
    ids = cases["case_id"].asstr()[:].tolist()
    if sorted(set(ids)) != ids:
        yield "cases are not in ascending order"


def _form_problems(
    dataset: Any,  # noqa: ANN401
    name: str,
    dtype: type,
    shape: tuple[int, ...],
) -> Iterator[str]:
    if dataset.dtype != np.dtype(dtype):
        yield f"{name} has type {dataset.dtype}, not {np.dtype(dtype)}"
    if dataset.shape != shape:
        yield f"{name} has shape {dataset.shape}, not {shape}"


def _chunked_problems(
    dataset: Any,  # noqa: ANN401
    name: str,
    dtype: type,
    shape: tuple[int, ...],
) -> Iterator[str]:
    """Look at a dataset of slices; there are as many chunks in the file as it says to have rows."""
    yield from _form_problems(dataset, name, dtype, shape)
    if dataset.chunks != (1, *shape[1:]):
        yield f"{name} has chunks of {dataset.chunks}, not of a slice"
    elif dataset.id.get_num_chunks() != len(dataset):
        yield f"{name} has {dataset.id.get_num_chunks()} slices in {len(dataset)} rows"


def _place_problems(
    first: np.ndarray, stop: np.ndarray, case_index: np.ndarray, z: np.ndarray
) -> Iterator[str]:
    """Cases lie one below the other, each in one row at least, and leave no row over."""
    edges = [0, *stop.tolist()]
    if first.tolist() != edges[:-1] or edges[-1] != len(z) or sorted(set(edges)) != edges:
        yield f"rows of cases are {first.tolist()} to {stop.tolist()}, of {len(z)}"
    elif case_index.tolist() != np.repeat(np.arange(len(stop)), stop - first).tolist():
        yield "case_index differs from the rows of the cases"


def _name_problems(
    names: Iterable[str], column: str, check: Callable[[str], object]
) -> Iterator[str]:
    for name in names:
        try:
            check(name)
        except ValueError as error:
            yield f"{column}: {error}"


def _volume_problems(
    shapes: np.ndarray, plane: tuple[int, int], case_index: np.ndarray, z: np.ndarray
) -> Iterator[str]:
    """Slices lie inside their volume, in ascending order, and its plane inside that of the shard."""
    for shape in shapes.tolist():
        if not all(0 < side <= MAX_SIDE for side in shape) or math.prod(shape) > MAX_VOXELS:
            yield f"cases/shape claims a volume of {shape}"
    if (shapes[:, :2] > plane).any():
        yield f"volumes of {shapes.tolist()} in planes of {plane}"
    if (z < 0).any() or (z >= shapes[case_index, 2]).any():
        yield "slices lie outside their volume"
    if (np.diff(z)[np.diff(case_index) == 0] <= 0).any():
        yield "slices are not in ascending order"
