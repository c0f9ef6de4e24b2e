"""The cases of a cache by h5py and hdf5plugin alone: their names, sizes and tumour volumes."""

import argparse
import json
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401 - registers LZ4, without which h5py cannot decode image and label
import numpy as np

LABELS = {"NEC": 1, "ED": 2, "ET": 4}


def read_labels(shard: h5py.File, case: int) -> np.ndarray:
    """Put the labels of a case back into the grid (i, j, k) of its source."""
    cases = shard["cases"]
    rows = slice(cases["first_row"][case], cases["stop_row"][case])
    shape = cases["shape"][case]
    volume = np.zeros(shape, np.uint8)
    # Slices without a voxel of brain are not stored, and planes may be padded: so z and shape.
    slices = shard["label"][rows, : shape[0], : shape[1]]
    volume[:, :, shard["z"][rows]] = slices.transpose(1, 2, 0)
    return volume


def describe_case(shard: h5py.File, case: int) -> str:
    """Tell a case's name, size, slices that are stored, and the voxels of each label."""
    cases = shard["cases"]
    name = cases["case_id"].asstr()[case]
    volume = read_labels(shard, case)
    voxel_ml = abs(np.linalg.det(cases["affine"][case][:3, :3])) / 1000
    voxels = {label: np.count_nonzero(volume == value) for label, value in LABELS.items()}
    counts = " ".join(f"{label} {count}" for label, count in voxels.items())
    num_slices = cases["stop_row"][case] - cases["first_row"][case]
    whole_ml = sum(voxels.values()) * voxel_ml
    return f"{name}: {volume.shape}, {num_slices} slices, {counts}, together {whole_ml:.2f} ml"


def main(cache: Path) -> None:
    """Describe every case of every client, and leave the test set alone."""
    manifest = json.loads((cache / "manifest.json").read_text("utf-8"))
    if manifest["schema_version"] not in {1, 2}:
        raise ValueError(f"this reads versions 1 and 2, not {manifest['schema_version']}")
    training = {case["shard"] for case in manifest["cases"] if case["split"] == "train"}
    for path in sorted(training):
        with h5py.File(cache / path, locking=False) as shard:
            print(f"{path}: image {shard['image'].shape}, label {shard['label'].shape}")
            for case in range(len(shard["cases"]["case_id"])):
                print(" ", describe_case(shard, case))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    main(**vars(parser.parse_args()))
