"""One case to its slices: read, check, correct, normalise, keep what holds brain. Pure, no Dask."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from jaxtyping import Num

from cache_schema.shard import CaseSlices
from cache_schema.vocabulary import MODALITIES
from pipeline.cohorts import SEGMENTATION, Case
from pipeline.normalize import NormalizationError, Scaling, normalize
from pipeline.quality import CaseError, check_geometry, check_label, describe
from pipeline.volume import Volume, VolumeError, correct_bias_field, decode_nifti

PREPROCESSING_VERSION: Final = 1
"""To be raised whenever the same source and parameters give other voxels."""


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
        return fingerprint({"version": PREPROCESSING_VERSION, **asdict(self)})


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
    try:
        return {role: path.read_bytes() for role, path in sorted(case.files.items())}
    except OSError as error:
        raise CaseError(f"{error.filename} cannot be read ({error.strerror})") from error


def source_key(sources: Mapping[str, bytes]) -> str:
    """Return the identity of a case's content: SHA-256 over its files, whatever their names."""
    return fingerprint(
        {role: hashlib.sha256(content).hexdigest() for role, content in sources.items()}
    )


def voxel_digest(case: Case, modality: str) -> str | None:
    """Return the identity of a case's voxels in a modality, whatever its names and headers.

    Returns:
        SHA-256 of shape, type and voxels, or None if the file is absent, damaged or all zeros: such
        files look alike and tell nothing about a person.
    """
    if modality not in case.files:
        return None
    try:
        voxels = decode_nifti(case.files[modality].read_bytes()).voxels
    except (OSError, VolumeError):
        return None
    if not voxels.any():
        return None
    kind = f"{voxels.dtype.str} {voxels.shape}".encode()
    return hashlib.sha256(kind + voxels.tobytes(order="K")).hexdigest()


def prepare_case(case: Case, sources: Mapping[str, bytes], settings: Preprocessing) -> CaseSlices:
    """Turn the files of one case into normalised slices.

    Every axial slice is kept that holds brain in any modality, and so is one that holds a label
    without brain. An absent modality is all zeros with mean 0 and standard deviation 1.

    Args:
        case: The case, with patient, grade and site.
        sources: Its files' bytes by role.
        settings: How to normalise.

    Returns:
        What a shard stores; heights and widths are the first and second voxel axes of the NIfTI.

    Raises:
        CaseError: If a file is damaged or the case breaks a rule; it is to be quarantined.
    """
    volumes = decode_sources(sources)
    check_geometry(volumes, settings.geometry)
    _check_plane(volumes[SEGMENTATION], settings.plane)
    label = check_label(volumes[SEGMENTATION].voxels).T
    axial = {name: volumes[name].voxels.T for name in MODALITIES if name in volumes}
    kept = np.flatnonzero(
        np.any([np.any(v, axis=(1, 2)) for v in (*axial.values(), label)], axis=0)
    )
    image = np.zeros((len(kept), len(MODALITIES), *settings.plane), np.float16)
    scalings = [Scaling(0.0, 1.0)] * len(MODALITIES)
    brain = np.zeros((len(kept), *label.shape[1:]), np.bool_)
    for channel, name in enumerate(MODALITIES):
        if name in axial:
            normalised, scalings[channel] = _normalised(name, axial[name], settings)
            brain |= axial[name][kept] != 0
            _place(image[:, channel], normalised[kept])
    planes = np.zeros((len(kept), *settings.plane), np.uint8)
    _place(planes, label[kept])
    findings = describe(label[kept], brain)
    shape = volumes[SEGMENTATION].voxels.shape
    return CaseSlices(
        case_id=case.case_id,
        patient_id=case.patient_id,
        cohort=case.cohort,
        grade=case.grade,
        site=case.site,
        image=image,
        label=planes,
        z=kept.astype(np.int32),
        affine=volumes[SEGMENTATION].affine,
        shape=(shape[0], shape[1], shape[2]),
        mean=np.array([scaling.mean for scaling in scalings]),
        std=np.array([scaling.std for scaling in scalings]),
        present=("t1" in axial, "t1ce" in axial, "t2" in axial, "flair" in axial),
        key=source_key(sources),
        findings="\n".join(findings),
    )


def decode_sources(sources: Mapping[str, bytes]) -> dict[str, Volume]:
    """Decode the files of a case.

    Raises:
        CaseError: Naming the role of the file that is damaged.
    """
    volumes = {}
    for role, content in sources.items():
        try:
            volumes[role] = decode_nifti(content)
        except VolumeError as error:
            raise CaseError(f"{role} {error}") from error
    return volumes


def _check_plane(volume: Volume, plane: tuple[int, int]) -> None:
    if volume.voxels.shape[0] > plane[0] or volume.voxels.shape[1] > plane[1]:
        raise CaseError(f"plane {volume.voxels.shape[:2]} does not fit into the cache's {plane}")


def _normalised(
    name: str, axial: Num[np.ndarray, "depth width height"], settings: Preprocessing
) -> tuple[np.ndarray, Scaling]:
    try:
        corrected = correct_bias_field(axial, axial != 0) if settings.bias_correct else axial
        return normalize(corrected, settings.normalize)
    except NormalizationError as error:
        raise CaseError(f"{name} {error}") from error


def _place(target: np.ndarray, planes: Num[np.ndarray, "slice width height"]) -> None:
    """Write planes, whose axes are still reversed (j, i), into the low corner of padded (i, j)."""
    width, height = planes.shape[1:]
    target[:, :height, :width] = planes.transpose(0, 2, 1)
