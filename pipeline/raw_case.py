"""A case that nobody has labelled: from its files to slices as in a cache."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float16, Int

from cache_schema.errors import InputError
from cache_schema.preprocessing import PreprocessingRecord
from cache_schema.vocabulary import MODALITIES
from pipeline.case import (
    Images,
    Preprocessing,
    read_files,
    read_volume,
    take_head,
)
from pipeline.crop import Crop
from pipeline.quality import (
    CaseError,
    Coverage,
    check_same_grid,
    describe_coverage,
    differs_from_brats,
    measure_coverage,
)
from pipeline.volume import Volume, read_affine


@dataclass(frozen=True)
class RawCase:
    """The slices of a case that hold brain, in ascending order of z.

    Attributes:
        image: Modalities t1, t1ce, t2, flair, normalised as in a cache, background 0; padded at the
            high ends to the cache's plane.
        z: Index of each slice in the source volume.
        shape: Size of the volume (i, j, k), in the axes that its slices have.
        source: Bytes of the file whose grid and header a mask takes over: the first modality there is.
        absent: Modalities that the case lacks, zeros in `image`.
        findings: What is unusual about its modalities, one sentence each.
        source_affine: That of `source` as stored, if its volume was brought to BraTS's axes.
    """

    image: Float16[np.ndarray, "slice 4 height width"]
    z: Int[np.ndarray, " slice"]
    shape: tuple[int, int, int]
    source: bytes
    absent: tuple[str, ...]
    findings: tuple[str, ...] = ()
    source_affine: Float[np.ndarray, "4 4"] | None = None


def recall_preprocessing(record: PreprocessingRecord) -> Preprocessing:
    """Give the preprocessing of a run's caches, if this release still does the same.

    Returns:
        It, with the largest plane of the caches.

    Raises:
        InputError: If this release makes other voxels of the same parameters.
    """
    made = [
        Preprocessing(record.normalize, record.bias_correct, record.geometry, source.plane)
        for source in record.sources
    ]
    if [each.fingerprint for each in made] != [each.fingerprint for each in record.sources]:
        raise InputError(
            f"the run was trained on slices of another preprocessing version than {made[0].version}, "
            "which this release makes; predict with the release that made its cache, or train again"
        )
    height, width = np.max([each.plane for each in made], axis=0).tolist()
    return replace(made[0], plane=(height, width))


def read_raw_case(files: Mapping[str, Path], settings: Preprocessing) -> RawCase:
    """Read, check and normalise the modalities of a case exactly as for a shard.

    Args:
        files: Of the modalities that there are; others, such as a segmentation, are not opened.
        settings: Those of the run's cache. A plane that does not fit into the cache's makes it larger.

    Raises:
        CaseError: If a file is damaged, or the case is none that the run's network can serve.
    """
    sources = read_files({name: files[name] for name in MODALITIES if name in files})
    present = [name for name in MODALITIES if name in sources]
    if not present:
        raise CaseError(f"has none of the modalities {', '.join(MODALITIES)}")
    heads: dict[str, Crop] = {}
    coverages: dict[str, Coverage] = {}
    first: dict[str, Volume] = {}
    for name in present:
        volume = read_volume(sources, name, settings.geometry)
        first = first or {name: volume}
        check_same_grid({**first, name: volume})
        _check_served(volume, settings)
        heads[name] = take_head(volume, settings, name)
        coverages[name] = measure_coverage(volume.voxels.T, heads[name].voxels)
    source = sources[present[0]]
    i, j, k = first[present[0]].voxels.shape
    height, width = max(i, settings.plane[0]), max(j, settings.plane[1])
    images = Images(heads, replace(settings, plane=(height, width)))
    kept = np.flatnonzero(np.any([head.planes for head in heads.values()], axis=0))
    return RawCase(
        image=np.stack([images.at(index) for index in kept.tolist()]),
        z=kept,
        shape=(i, j, k),
        source=source,
        absent=tuple(name for name in MODALITIES if name not in present),
        findings=tuple(describe_coverage(coverages)),
        source_affine=read_affine(source) if settings.geometry == "any" else None,
    )


def _check_served(volume: Volume, settings: Preprocessing) -> None:
    difference = differs_from_brats(volume) if settings.geometry == "brats" else None
    if difference is not None:
        raise CaseError(
            f"{difference}, and the run was trained with --geometry brats; a run on a cache with "
            "--geometry any takes every grid"
        )
