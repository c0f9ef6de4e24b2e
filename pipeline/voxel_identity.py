"""Scans that are one and the same: equal voxels, however they are stored.

Number type, byte order, scale and intercept, compression, names and the texts of headers do not count. Two
scans are equal if a reader sees equal values, in the order in which they are stored or in the axes of BraTS: of
a copy whose affine was lost, the first still holds.

Reading every voxel of every scan would cost a third of a preparation. So a sieve reads scans only as far as the
first planes that show a head, and whole scans are compared only where these are equal.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from isal import isal_zlib
from jaxtyping import Float32

from cache_schema.machine import usable_cores
from cache_schema.vocabulary import MODALITIES, Modality
from pipeline.cohorts import Case
from pipeline.planes import PlaneStream, open_planes
from pipeline.volume import Volume, VolumeError, bring_to_brats_axes, has_brats_axes

TELLING_VOXELS: Final = 1000
"""Voxels that differ from their plane's corner; so many tell any two heads apart that are not one."""

Plane = Float32[np.ndarray, "j i"]


@dataclass(frozen=True)
class Scan:
    """One modality of a case, and the file that holds it."""

    case: Case
    modality: Modality

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.case.files[self.modality]


@dataclass(frozen=True)
class Glance:
    """What the beginning of a scan tells.

    Attributes:
        scan: Which.
        keys: What scans with equal voxels have in common; empty if a file is damaged or all zeros: such
            files look alike and tell nothing about a person.
        description: The text of its header.
    """

    scan: Scan
    keys: frozenset[str]
    description: str = ""


def glance_at(cases: Sequence[Case]) -> list[Glance]:
    """Look at the beginning of every modality of every case.

    Args:
        cases: With files that may be damaged.

    Returns:
        Cases in their order, the modalities of each in that of `vocabulary.MODALITIES`.
    """
    scans = [Scan(case, name) for case in cases for name in MODALITIES if name in case.files]
    with ThreadPoolExecutor(usable_cores()) as pool:  # inflating and hashing release the lock
        return list(pool.map(_glance, scans))


def find_equal_scans(
    glances: Iterable[Glance], is_known: Callable[[Sequence[Scan]], bool]
) -> Iterator[tuple[Scan, ...]]:
    """Compare the voxels of all scans that the sieve does not tell apart.

    Args:
        glances: At all scans.
        is_known: Tells whether nothing new would follow if some scans were equal; asked when it is
            their turn, after those before them were yielded.

    Yields:
        Scans that are equal, two or more at a time.
    """
    alike: defaultdict[str, list[Scan]] = defaultdict(list)
    for glance in glances:
        for key in glance.keys:
            alike[key].append(glance.scan)
    with ThreadPoolExecutor(usable_cores()) as pool:
        for scans in alike.values():
            if len(scans) < 2 or is_known(scans):
                continue
            equal: defaultdict[str, list[Scan]] = defaultdict(list)
            for scan, digests in zip(scans, pool.map(_digests, scans), strict=True):
                for digest in digests:
                    equal[digest].append(scan)
            yield from (tuple(same) for same in equal.values() if len(same) > 1)


def _glance(scan: Scan) -> Glance:
    try:
        with open_planes(scan.path) as stream:
            description = stream.header.description
            keys = {_sieve(planes) for planes in _views(stream)}
    except (OSError, VolumeError):
        return Glance(scan, frozenset())
    return Glance(scan, frozenset(key for key in keys if key is not None), description)


def _digests(scan: Scan) -> frozenset[str]:
    """Return the SHA-256 of all voxels, in both orders; nothing of a file that is damaged further on."""
    try:
        with open_planes(scan.path) as stream:
            return frozenset(_digest(planes) for planes in _views(stream))
    except (OSError, VolumeError):
        return frozenset()


def _views(stream: PlaneStream) -> Iterator[Iterator[Plane]]:
    """Give the planes of a scan as they are stored and, if its axes are not those of BraTS, in these."""
    if _is_viewed_once(stream):
        yield stream.planes
        return
    stored = list(stream.planes)
    yield iter(stored)
    volume = bring_to_brats_axes(Volume(np.stack(stored).T, stream.header.affine))
    yield iter(np.ascontiguousarray(volume.voxels.T))


def _is_viewed_once(stream: PlaneStream) -> bool:
    """Tell whether the axes of a scan are those of BraTS, or nobody knows where they point."""
    try:
        return has_brats_axes(stream.header.affine)
    except VolumeError:
        return True


def _sieve(planes: Iterator[Plane]) -> str | None:
    """Sum up the planes of a scan to the first that show a head; None if all voxels are 0.

    A checksum will do, being many times as fast as a hash: what it confounds is compared anyway.
    """
    total, telling, is_empty = 0, 0, True
    for k, plane in enumerate(planes):
        if plane.any():
            is_empty = False
            total = isal_zlib.crc32(plane, isal_zlib.crc32(f"{k} {plane.shape}".encode(), total))
            bits = plane.view(np.uint32)
            telling += int(np.count_nonzero(bits != bits[0, 0]))
            if telling >= TELLING_VOXELS:
                break
    return None if is_empty else f"{total:08x} {telling}"


def _digest(planes: Iterator[Plane]) -> str:
    hashed = hashlib.sha256()
    for plane in planes:
        hashed.update(f"{plane.shape}".encode() + plane.tobytes())
    return hashed.hexdigest()
