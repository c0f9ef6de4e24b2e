"""One case to its slices: read, check, correct, normalise, keep what holds brain. Pure, no Dask."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float, Float16, Int

from cache_schema.shard import CaseSlices, Slice
from cache_schema.vocabulary import MODALITIES
from pipeline.case_folder import SEGMENTATION, say_name
from pipeline.cohorts import Case
from pipeline.crop import Crop, crop, place
from pipeline.normalize import NORMALIZATIONS, NormalizationError, Scaling, make_scaler
from pipeline.quality import (
    CaseError,
    Coverage,
    check_geometry,
    check_label,
    check_same_grid,
    describe,
    describe_coverage,
    measure_coverage,
    repair_origin,
)
from pipeline.volume import (
    Volume,
    VolumeError,
    bring_to_brats_axes,
    correct_bias_field,
    decode_nifti,
    read_affine,
    read_file,
)

PREPROCESSING_VERSION: Final = 1
"""To be raised whenever the same source and parameters give other voxels."""

AXES_VERSION: Final = {"brats": 0, "any": 1}
"""What a geometry adds to it: since axes are looked at, `any` gives other voxels, `brats` the same."""

ABSENT: Final = Scaling(0.0, 1.0)
"""What is recorded of a modality that a case lacks."""


@dataclass(frozen=True)
class Preprocessing:
    """The parameters that decide a shard's voxels.

    Attributes:
        normalize: A key of `normalize.NORMALIZATIONS`.
        bias_correct: Whether N4 runs first.
        geometry: `brats` or `any`, see `quality.check_geometry`.
        plane: Height and width of every stored slice; smaller planes are padded at the high end.
    """

    normalize: str
    bias_correct: bool
    geometry: str
    plane: tuple[int, int]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the parameters and of the preprocessing version."""
        return fingerprint({"version": self.version, **asdict(self)})

    @property
    def version(self) -> int:
        """What this release makes of the parameters."""
        return PREPROCESSING_VERSION + AXES_VERSION[self.geometry]


def fingerprint(document: object) -> str:
    """Return the SHA-256 of anything that JSON can express, keys sorted."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def read_sources(case: Case) -> dict[str, bytes]:
    """Read the files of a case as they lie on disk.

    Raises:
        CaseError: If a file cannot be read, or there is no segmentation.
    """
    if SEGMENTATION not in case.files:
        raise CaseError("no segmentation file")
    return read_files(case.files)


def read_files(files: Mapping[str, Path]) -> dict[str, bytes]:
    """Read files by role.

    Raises:
        CaseError: Naming a file that cannot be read.
    """
    try:
        return {role: read_file(path) for role, path in sorted(files.items())}
    except OSError as error:
        where = say_name(error.filename)
        raise CaseError(f"{where} cannot be read ({error.strerror})") from error


def source_key(sources: Mapping[str, bytes]) -> str:
    """Return the identity of a case's content: SHA-256 over its files, whatever their names."""
    return fingerprint(
        {role: hashlib.sha256(content).hexdigest() for role, content in sources.items()}
    )


def prepare_case(
    case: Case, sources: Mapping[str, bytes], settings: Preprocessing, *, key: str | None = None
) -> CaseSlices:
    """Turn the files of one case into normalised slices.

    Every axial slice is kept that holds brain in any modality, and so is one that holds a label
    without brain. An absent modality is all zeros with mean 0 and standard deviation 1.

    Args:
        case: The case, with patient, grade and site.
        sources: Its files' bytes by role.
        settings: How to normalise.
        key: Identity of the files, if it is known already.

    Returns:
        What a shard stores; heights and widths are the first and second voxel axes, those of BraTS.

    Raises:
        CaseError: If a file is damaged or the case breaks a rule; it is to be quarantined.
    """
    seg, repairs = _read_segmentation(sources, settings.geometry)
    check_geometry({SEGMENTATION: seg}, settings.geometry)
    _check_plane(seg, settings.plane)
    lesion = crop(seg.voxels.T)
    label = replace(lesion, voxels=check_label(lesion.voxels))
    heads, findings = _read_heads(sources, seg, label, settings)
    kept = np.flatnonzero(np.any([cut.planes for cut in (*heads.values(), label)], axis=0))
    images = Images(heads, settings)
    recorded = [images.scalings.get(name, ABSENT) for name in MODALITIES]
    shape = seg.voxels.shape
    return CaseSlices(
        case_id=case.case_id,
        patient_id=case.patient_id,
        cohort=case.cohort,
        grade=case.grade,
        site=case.site,
        z=kept.astype(np.int32),
        slices=Planes(images, kept, label),
        affine=seg.affine,
        shape=(shape[0], shape[1], shape[2]),
        mean=np.array([scaling.mean for scaling in recorded]),
        std=np.array([scaling.std for scaling in recorded]),
        present=("t1" in heads, "t1ce" in heads, "t2" in heads, "flair" in heads),
        key=key or source_key(sources),
        findings="\n".join((*findings, *repairs)),
    )


def decode_source(sources: Mapping[str, bytes], role: str) -> Volume:
    """Decode one file of a case.

    Raises:
        CaseError: Naming the role of the file if it is damaged.
    """
    try:
        return decode_nifti(sources[role])
    except VolumeError as error:
        raise CaseError(f"{role} {error}") from error


def read_volume(sources: Mapping[str, bytes], role: str, geometry: str) -> Volume:
    """Decode one file of a case; of geometry `any` it is brought to BraTS's axes.

    Raises:
        CaseError: Naming the role of the file if it is damaged, or if it has no axes.
    """
    return bring(decode_source(sources, role), role, geometry)


def bring(volume: Volume, role: str, geometry: str) -> Volume:
    """Bring a file's volume to BraTS's axes, if its geometry may be any.

    Raises:
        CaseError: Naming the role of the file if it has no axes.
    """
    try:
        return bring_to_brats_axes(volume) if geometry == "any" else volume
    except VolumeError as error:
        raise CaseError(f"{role} {error}") from error


def _read_segmentation(
    sources: Mapping[str, bytes], geometry: str
) -> tuple[Volume, tuple[str, ...]]:
    """Read the segmentation as `read_volume` does, and what of it was repaired."""
    stored = decode_source(sources, SEGMENTATION)
    present = (name for name in MODALITIES if name in sources)
    placed, repairs = repair_origin(stored, {n: _stored_affine(sources, n) for n in present})
    return bring(placed, SEGMENTATION, geometry), repairs


def _stored_affine(sources: Mapping[str, bytes], role: str) -> Float[np.ndarray, "4 4"]:
    try:
        return read_affine(sources[role])
    except VolumeError as error:
        raise CaseError(f"{role} {error}") from error


def _check_plane(volume: Volume, plane: tuple[int, int]) -> None:
    if volume.voxels.shape[0] > plane[0] or volume.voxels.shape[1] > plane[1]:
        raise CaseError(f"plane {volume.voxels.shape[:2]} does not fit into the cache's {plane}")


def _read_heads(
    sources: Mapping[str, bytes], seg: Volume, label: Crop, settings: Preprocessing
) -> tuple[dict[str, Crop], list[str]]:
    """Read modality after modality, keeping of each its head only, and describe the case.

    What there is to find out about labels concerns the few voxels that have one.
    """
    labelled = _labelled_voxels(label, seg)
    in_brain = np.zeros(len(labelled), np.bool_)
    heads: dict[str, Crop] = {}
    coverages: dict[str, Coverage] = {}
    for name in MODALITIES:
        if name in sources:
            volume = read_volume(sources, name, settings.geometry)
            check_same_grid({SEGMENTATION: seg, name: volume})
            in_brain |= volume.voxels.T.reshape(-1)[labelled] != 0
            heads[name] = take_head(volume, settings, name)
            coverages[name] = measure_coverage(volume.voxels.T, heads[name].voxels)
    values = label.voxels[label.voxels != 0]
    return heads, [*describe(values, in_brain), *describe_coverage(coverages)]


def _labelled_voxels(label: Crop, seg: Volume) -> Int[np.ndarray, " voxel"]:
    """List the flat indices (k, j, i) of voxels with a label."""
    inside = np.nonzero(label.voxels)
    indices = [index + start for index, start in zip(inside, label.corner, strict=True)]
    flat: np.ndarray = np.ravel_multi_index(indices, seg.voxels.shape[::-1])
    return flat


def take_head(volume: Volume, settings: Preprocessing, modality: str) -> Crop:
    """Cut the head out of a modality, after N4 if that is wanted.

    Raises:
        CaseError: Naming the modality if N4 cannot correct it.
    """
    axial = volume.voxels.T
    try:
        return crop(correct_bias_field(axial, axial != 0) if settings.bias_correct else axial)
    except VolumeError as error:
        raise CaseError(f"{modality} {error}") from error


class Images:
    """The normalised modalities of a case, made anew one plane at a time whenever it is asked for.

    Four normalised modalities together are four times larger than the heads they are made of, and
    a slice that is stored at once never leaves the processor's cache.
    """

    def __init__(self, heads: Mapping[str, Crop], settings: Preprocessing) -> None:
        """Fit the normalisation to every modality.

        Args:
            heads: Modalities by name; those absent are zeros.
            settings: How to normalise.

        Raises:
            CaseError: If a modality has no brain or no contrast.
        """
        self.scalings = {name: _fit(head, name, settings) for name, head in heads.items()}
        self._plane = settings.plane
        self._channels = [
            (MODALITIES.index(name), head, make_scaler(head.voxels, self.scalings[name]))
            for name, head in heads.items()
        ]

    def at(self, k: int) -> Float16[np.ndarray, "4 height width"]:
        """Make the image of an axial plane of the volume, padded at the high ends."""
        image = np.zeros((len(MODALITIES), *self._plane), np.float16)
        for channel, head, scale in self._channels:
            place(image[channel], head, k, scale)
        return image


def _fit(head: Crop, name: str, settings: Preprocessing) -> Scaling:
    try:
        return NORMALIZATIONS[settings.normalize](head.voxels)
    except NormalizationError as error:
        raise CaseError(f"{name} {error}") from error


class Planes:
    """The kept slices of a case, made anew one by one whenever somebody goes through them."""

    def __init__(self, images: Images, kept: Int[np.ndarray, " slice"], label: Crop) -> None:
        """Remember the parts.

        Args:
            images: The modalities.
            kept: Index k of every slice in its volume.
            label: The lesion.
        """
        self._images = images
        self._kept = kept.tolist()
        self._label = label

    def __iter__(self) -> Iterator[Slice]:
        """Make slice after slice."""
        for k in self._kept:
            image = self._images.at(k)
            label = np.zeros(image.shape[1:], np.uint8)
            place(label, self._label, k, np.asarray)
            yield Slice(image, label)
