"""Slices worth a look: a case of each owner, cut where its tumour is largest, as grey and colour."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from cache_schema.admission import open_shard
from cache_schema.findings import spoils_picture
from cache_schema.geometry import pixel_aspect, radiological
from cache_schema.manifest import CaseRecord, Manifest
from cache_schema.shard import CaseEntry
from cache_schema.vocabulary import COHORTS, LABELS, MODALITIES

MAX_SPECIMENS: Final = 12
"""More would be too small to see."""

# Okabe and Ito's palette, told apart by colour-blind readers too.
LABEL_COLOURS: Final = {"NEC": "#0072B2", "ED": "#E69F00", "ET": "#CC79A7"}

LABELS_PANEL: Final = "labels"
_UNDER_LABELS: Final = ("flair", "t1ce", "t2", "t1")
"""What labels are painted over: the first of these that the case has."""


@dataclass(frozen=True)
class Specimen:
    """One slice in radiological orientation: rows from front to back, the patient's right on the left.

    Attributes:
        owner: `client 3`, or `test brats2019`.
        case: What the manifest says of its case.
        z: Index of the slice in the source volume.
        aspect: Height of a pixel over its width, in mm.
        image: Normalised intensities, background 0.
        label: BraTS values.
    """

    owner: str
    case: CaseRecord
    z: int
    aspect: float
    image: Float32[np.ndarray, "4 height width"]
    label: UInt8[np.ndarray, "height width"]


def choose_cases(manifest: Manifest) -> list[tuple[str, CaseRecord]]:
    """Choose a case of each client and of each cohort's test set; the same manifest, the same cases.

    Of an owner it is the case in the middle by tumour volume, of a patient not shown already if
    there is one, and not one whose findings say that a scan has a background or shows a part of the
    head, if there is another. If there are too many clients, some are passed over at equal steps.

    Args:
        manifest: Of the cache.

    Returns:
        At most `MAX_SPECIMENS` owners, clients first, and the case of each.
    """
    clients: dict[int, list[CaseRecord]] = {}
    for case in manifest.cases:
        if case.client is not None:
            clients.setdefault(case.client, []).append(case)
    tests = {
        f"test {cohort}": [c for c in manifest.cases if (c.split, c.cohort) == ("test", cohort)]
        for cohort in COHORTS
        if cohort in manifest.leakage.cohorts
    }
    num_clients = min(len(clients), MAX_SPECIMENS - len(tests))
    steps = np.linspace(0, len(clients) - 1, num_clients).round().astype(int).tolist()
    shown = [sorted(clients)[step] for step in steps]
    seen: set[str] = set()
    chosen = []
    for owner, cases in ({f"client {n}": clients[n] for n in shown} | tests).items():
        case = _middle(cases, seen)
        seen.add(case.patient_id)
        chosen.append((owner, case))
    return chosen


def _middle(cases: Sequence[CaseRecord], seen: Collection[str]) -> CaseRecord:
    fair = [case for case in cases if not any(map(spoils_picture, case.findings))] or cases
    fresh = [case for case in fair if case.patient_id not in seen] or fair
    return sorted(fresh, key=lambda case: (_tumour(case), case.case_id))[len(fresh) // 2]


def _tumour(case: CaseRecord) -> int:
    return sum(case.label_voxels.model_dump().values())


def read_specimens(cache: Path, manifest: Manifest) -> list[Specimen]:
    """Read one slice of every case that `choose_cases` names, and nothing else.

    Args:
        cache: A finished cache.
        manifest: Its manifest.

    Returns:
        All cut to one window that shows the brain of each, so that scales compare.

    Raises:
        InputError: If a shard cannot be read, or is not the one that the manifest lists.
    """
    return crop([_read(cache, manifest, owner, case) for owner, case in choose_cases(manifest)])


def _read(cache: Path, manifest: Manifest, owner: str, case: CaseRecord) -> Specimen:
    with open_shard(cache, manifest, case.shard) as reader:
        entry = next(entry for entry in reader.cases() if entry.case_id == case.case_id)
        row = entry.first_row + _largest(reader.column("label_voxels"), entry)
        return Specimen(
            owner=owner,
            case=case,
            z=int(reader.column("z")[row]),
            aspect=pixel_aspect(entry.affine),
            image=radiological(reader.images([row])[0].astype(np.float32), entry.affine),
            label=radiological(reader.labels([row])[0], entry.affine),
        )


def _largest(label_voxels: np.ndarray, entry: CaseEntry) -> int:
    """Return which of a case's slices has most tumour; the middle one if none has any."""
    tumour = label_voxels[entry.first_row : entry.stop_row].sum(axis=1)
    return int(tumour.argmax()) if tumour.any() else len(tumour) // 2


def crop(specimens: Sequence[Specimen], margin: int = 2) -> list[Specimen]:
    """Cut all specimens to the smallest window that holds what each of them shows.

    Args:
        specimens: Slices; smaller ones are padded with background at the ends.
        margin: Background to leave on each side, in voxels.

    Returns:
        The same slices of one size; not cut if all are empty.
    """
    specimens = _pad_to_one_size(specimens)
    shown: np.ndarray = np.any([s.image.any(axis=0) | (s.label != 0) for s in specimens], axis=0)
    if not shown.any():
        return list(specimens)
    rows, columns = (_extent(np.any(shown, axis=axis), margin) for axis in (1, 0))
    return [
        replace(s, image=s.image[:, rows, columns], label=s.label[rows, columns]) for s in specimens
    ]


def _pad_to_one_size(specimens: Sequence[Specimen]) -> list[Specimen]:
    """Pad at the ends: where some cases have their axes exchanged, their planes are of other shapes."""
    height, width = (max((s.label.shape[axis] for s in specimens), default=0) for axis in (0, 1))

    def pad(specimen: Specimen) -> Specimen:
        rows, columns = specimen.label.shape
        missing = (0, height - rows), (0, width - columns)
        image = np.pad(specimen.image, ((0, 0), *missing))
        return replace(specimen, image=image, label=np.pad(specimen.label, missing))

    return [pad(specimen) for specimen in specimens]


def _extent(shown: Bool[np.ndarray, " place"], margin: int) -> slice:
    places = np.flatnonzero(shown)
    return slice(max(int(places[0]) - margin, 0), int(places[-1]) + margin + 1)


def panels(specimen: Specimen) -> Iterator[tuple[str, Float[np.ndarray, "height width 3"] | None]]:
    """Yield names and pictures of a slice: the modalities, None where absent, then the labels.

    Args:
        specimen: What to show.

    Yields:
        Colours from 0 to 1.
    """
    brain: np.ndarray = np.any(specimen.image, axis=0)
    grey: dict[str, np.ndarray] = {
        name: window(image, brain)
        for name, image, present in zip(
            MODALITIES, specimen.image, specimen.case.present, strict=True
        )
        if present
    }
    unlabelled = np.zeros_like(specimen.label)
    for name in MODALITIES:
        yield name.upper(), paint(grey[name], unlabelled) if name in grey else None
    under = next((grey[name] for name in _UNDER_LABELS if name in grey), np.zeros(brain.shape))
    yield LABELS_PANEL, paint(under, specimen.label)


def window(
    image: Float32[np.ndarray, "height width"], brain: Bool[np.ndarray, "height width"]
) -> Float[np.ndarray, "height width"]:
    """Map intensities to grey: percentiles 0.5 to 99.5 of the brain span it, the background is black.

    Args:
        image: One modality.
        brain: Where it is to be seen.

    Returns:
        From 0 to 1; at least 0.1 in the brain, so that its darkest parts differ from background.
    """
    low, high = np.percentile(image[brain], (0.5, 99.5)) if brain.any() else (0.0, 1.0)
    return np.where(brain, 0.1 + 0.9 * np.clip((image - low) / max(high - low, 1e-6), 0, 1), 0.0)


def paint(
    grey: Float[np.ndarray, "height width"], label: UInt8[np.ndarray, "height width"]
) -> Float[np.ndarray, "height width 3"]:
    """Paint labels, half transparent, over a grey slice; colours are those of `LABEL_COLOURS`."""
    painted = np.repeat(grey[..., None], 3, axis=2)
    for name, value in LABELS.items():
        colour = np.frombuffer(bytes.fromhex(LABEL_COLOURS[name][1:]), np.uint8) / 255
        painted[label == value] = 0.4 * painted[label == value] + 0.6 * colour
    return painted
