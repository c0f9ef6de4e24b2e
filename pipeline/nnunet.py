"""A cache as a raw dataset of nnU-Net v2, for a comparison on the same cases and the same split.

Isensee et al. (2021), doi:10.1038/s41592-020-01008-z; the format is that of `nnunetv2`, whose own
check `nnUNetv2_plan_and_preprocess --verify_dataset_integrity` an export passes.

Channels have the names of their modalities, by which nnU-Net z-scores them again: where the brain's box
is less than three quarters of the grid, as in BraTS, over the voxels that are not 0 in any modality,
holes filled. Means are 0 already, so this multiplies a volume by one number near 1. Channels
named `noNorm` in `dataset.json` would be taken as they are, but then nnU-Net does not keep the background at 0
while it augments, as it does for BraTS, and is no longer what was published.

Test cases lie in `imagesTs` and `labelsTs`, which nnU-Net does not open by itself:
`nnUNetv2_predict` and `nnUNetv2_evaluate_folder` are pointed at them.

The cases of a person are the same images under several names, and a random split of cases, which is
nnU-Net's own, would validate on what it trains on. `splits_final.json` splits persons. The trainer
reads it in the dataset's folder in `nnUNet_preprocessed`; the planner of nnU-Net 2.8 copies it there.
Where it is missing after planning, copy it by hand before training.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float64, Shaped, UInt8

from cache_schema.admission import open_shard
from cache_schema.errors import InputError
from cache_schema.files import refuse_links, remove_partials, replacing, reporting
from cache_schema.geometry import restore_volume
from cache_schema.manifest import CaseRecord, Manifest, digest, read_manifest
from cache_schema.reading import read_bytes
from cache_schema.shard import CaseEntry, ShardReader
from cache_schema.vocabulary import LABELS, MODALITIES, REGIONS
from pipeline.volume import encode_nifti

CLASSES: Final[dict[str, int]] = {name: n for n, name in enumerate(LABELS, start=1)}
"""Labels as nnU-Net wants them, without a gap: ET is 3 instead of 4, also in what it predicts."""

REMAINDERS: Final[dict[str, str]] = {"WT": "ED", "TC": "NEC", "ET": "ET"}
"""Regions from the outermost to the innermost, and the label of what no inner one covers."""

MAX_FOLDS: Final = 5
"""Of cross-validation, as nnU-Net numbers them."""

SUFFIX: Final = ".nii.gz"
DATASET_NAME: Final = "dataset.json"
SPLITS_NAME: Final = "splits_final.json"

_FOLDS_STREAM: Final = 2
"""Random stream of the folds; 0 draws the test set, 1 the partition."""

_FOLDERS: Final = {"train": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}

Fold = dict[str, list[str]]
"""Case ids to train on (`train`) and to validate on (`val`)."""


@dataclass(frozen=True)
class NnunetExport:
    """What `export_nnunet` wrote: cases to train on, cases of the test set, folds."""

    training_cases: int
    test_cases: int
    folds: int


def export_nnunet(
    cache: Path,
    out: Path,
    *,
    regions: bool = False,
    on_case: Callable[[str, int], None] | None = None,
) -> NnunetExport:
    """Write the cases of all clients, and the test set apart, as a raw dataset of nnU-Net v2.

    The folder gets its name when everything is in it. Until then it is called `.NAME.partial`, and
    the same call goes on from the cases that are there. One case is in memory at a time.

    Args:
        cache: A finished cache with the shards of all clients.
        out: `DatasetXXX_NAME` in the folder that `nnUNet_raw` stands for; new, or empty.
        regions: Let nnU-Net train on the overlapping regions WT, TC and ET, not on labels.
        on_case: Told the id of every case that is done with, and the number of all cases.

    Raises:
        InputError: If `out` is in use, is called otherwise, or cannot be written; if an unfinished
            export of another cache, or one that holds links, is in the way; if a shard is damaged or
            does not belong where the manifest has it; or if there are fewer than two patients to train on.
    """
    _check_out(out)
    manifest = read_manifest(cache)
    training = [case for case in manifest.cases if case.split == "train"]
    folds = split_folds(training, manifest.options.seed)
    document = describe_dataset(manifest, out.name, regions=regions)
    partial = out.with_name(f".{out.name}.partial")
    refuse_links(partial)
    with reporting(out, advice="choose another --out"):
        _claim(partial, _to_json(document))
        _write(partial / SPLITS_NAME, _to_json(folds))
        for case_id in _write_cases(cache, manifest, partial):
            if on_case is not None:
                on_case(case_id, len(manifest.cases))
        partial.replace(out)  # an empty folder of that name gives way
    return NnunetExport(len(training), len(manifest.cases) - len(training), len(folds))


def _check_out(out: Path) -> None:
    if not re.fullmatch(r"Dataset\d{3}_\w[\w-]*", out.name):
        raise InputError(
            f"--out {out}: nnU-Net wants a folder called DatasetXXX_NAME, such as Dataset501_BraTS"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} is in use: name a folder that is new or empty")


def split_folds(cases: Sequence[CaseRecord], seed: int) -> list[Fold]:
    """Split persons, with all their cases, into folds of about equally many cases.

    Each person goes to the fold that is smallest so far, those with most cases first.

    Args:
        cases: To train on.
        seed: Of the order among persons with equally many cases.

    Returns:
        Five folds, or as many as there are persons; of a fold beyond the last nnU-Net makes a
        random split of cases.

    Raises:
        InputError: If there are fewer than two persons.
    """
    counts = Counter(case.patient_id for case in cases)
    if len(counts) < 2:
        raise InputError(
            f"the cache has training cases of {len(counts)} patient(s), cross-validation needs two; "
            "export the cache of all clients"
        )
    generator = np.random.default_rng([seed, _FOLDS_STREAM])
    patients: list[str] = generator.permutation(sorted(counts)).tolist()
    sizes = [0] * min(MAX_FOLDS, len(counts))
    fold_of: dict[str, int] = {}
    for patient in sorted(patients, key=lambda name: -counts[name]):
        fold_of[patient] = sizes.index(min(sizes))
        sizes[fold_of[patient]] += counts[patient]
    return [
        {
            "train": [case.case_id for case in cases if fold_of[case.patient_id] != fold],
            "val": [case.case_id for case in cases if fold_of[case.patient_id] == fold],
        }
        for fold in range(len(sizes))
    ]


def describe_dataset(manifest: Manifest, name: str, *, regions: bool) -> dict[str, Any]:
    """Make the content of `dataset.json`: what nnU-Net reads, and where the data come from.

    Args:
        manifest: Of the cache.
        name: `DatasetXXX_NAME`.
        regions: Declare regions in place of labels. Their order then counts: nnU-Net paints them
            one over the other.
    """
    return {
        "channel_names": {str(channel): name for channel, name in enumerate(MODALITIES)},
        **(_declare_regions() if regions else {"labels": {"background": 0, **CLASSES}}),
        "numTraining": sum(case.split == "train" for case in manifest.cases),
        "file_ending": SUFFIX,
        "name": name.partition("_")[2],
        "description": f"{', '.join(manifest.cohorts)}: intensities normalised in the brain of each volume, "
        f"background 0; labels {CLASSES}, which BraTS numbers {LABELS}",
        "reference": "doi:10.1109/TMI.2014.2377694, doi:10.1038/sdata.2017.117, arXiv:1811.02629",
        "licence": "BraTS: to be requested from its organisers under their terms, not to be passed on",
        "converted_by": f"fedunetmm {version('fedunetmm')}, prep export nnunet",
        "cache": digest(manifest),
        "cache_options": manifest.options.model_dump(mode="json"),
        "test_patients_also_in_training": manifest.leakage.also_in_training,
        "synthetic": manifest.synthetic,
    }


def _declare_regions() -> dict[str, Any]:
    names = {value: name for name, value in LABELS.items()}
    unions = {region: [CLASSES[names[value]] for value in REGIONS[region]] for region in REMAINDERS}
    return {
        "labels": {"background": 0, **unions},
        "regions_class_order": [CLASSES[label] for label in REMAINDERS.values()],
    }


def _claim(partial: Path, description: bytes) -> None:
    """Take a folder for this export, or go on with it if it was begun with the same description."""
    path = partial / DATASET_NAME
    if path.exists() and read_bytes(path) != description:
        raise InputError(
            f"{partial} is an unfinished export of another cache or with other options; remove it"
        )
    for folder in (partial, *partial.glob("*/")):
        remove_partials(folder)
    _write(path, description)


def _write_cases(cache: Path, manifest: Manifest, folder: Path) -> Iterator[str]:
    """Write the cases that are not there yet, shard by shard, and tell which ones are."""
    by_shard = sorted(manifest.cases, key=lambda case: case.shard)
    for shard, cases in groupby(by_shard, key=lambda case: case.shard):
        with open_shard(cache, manifest, shard) as reader:
            entries = {entry.case_id: entry for entry in reader.cases()}
            for case in cases:
                _write_case(reader, entries[case.case_id], *_place(folder, case))
                yield case.case_id


def _place(folder: Path, case: CaseRecord) -> tuple[list[Path], Path]:
    """Name the files of a case: its channels, and its labels."""
    images, labels = (folder / name for name in _FOLDERS[case.split])
    channels = range(len(MODALITIES))
    return (
        [images / f"{case.case_id}_{channel:04d}{SUFFIX}" for channel in channels],
        labels / f"{case.case_id}{SUFFIX}",
    )


def _write_case(
    reader: ShardReader, entry: CaseEntry, channels: Sequence[Path], label: Path
) -> None:
    """Write a case unless its labels are there, which come last."""
    if label.exists():
        return
    rows = slice(entry.first_row, entry.stop_row)
    z, images = reader.column("z")[rows], reader.images(rows)
    for channel, path in enumerate(channels):
        slices = images[:, channel].astype(np.float32)
        _write_volume(path, restore_volume(slices, z, entry.shape), entry.affine)
    classes = _CLASS_OF[reader.labels(rows)]
    _write_volume(label, restore_volume(classes, z, entry.shape), entry.affine)


def _make_lookup() -> UInt8[np.ndarray, "256"]:
    lookup = np.zeros(256, np.uint8)
    lookup[list(LABELS.values())] = list(CLASSES.values())
    return lookup


_CLASS_OF: Final = _make_lookup()
"""By BraTS value."""


def _write_volume(
    path: Path, voxels: Shaped[np.ndarray, "i j k"], affine: Float64[np.ndarray, "4 4"]
) -> None:
    _write(path, encode_nifti(voxels, affine, fast=True))


def _to_json(document: Any) -> bytes:  # noqa: ANN401
    # Keys stay in their order: nnU-Net paints regions in it.
    return (json.dumps(document, indent=1) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content)
