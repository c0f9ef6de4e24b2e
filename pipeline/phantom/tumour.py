"""The tumour of a phantom patient: what tissue and what label each voxel of the brain then holds."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32, Integer, UInt8

from cache_schema.vocabulary import LABELS
from pipeline.phantom.brain import (
    Head,
    Healthy,
    Shape,
    Voxels,
    draw_head,
    draw_healthy,
    ramp,
    smooth_in_brain,
)

TISSUES: Final = ("csf", "gm", "wm", "ed", "et", "nec")
"""Rows of `Anatomy.fractions`: fluid, grey and white matter, oedema, enhancing tumour, necrosis."""


@dataclass(frozen=True)
class Anatomy:
    """What a patient's brain is made of, before any scanner looks at it.

    Attributes:
        shape: Of the whole volume, in voxels.
        head: Where the brain lies.
        fractions: Share of each of `TISSUES` in each voxel; the shares of a voxel sum to 1.
        labels: BraTS label of each voxel, 0 where there is no tumour.
    """

    shape: Shape
    head: Head
    fractions: Float32[np.ndarray, "6 voxel"]
    labels: UInt8[np.ndarray, "voxel"]

    def place(self, values: Integer[np.ndarray, "voxel"]) -> Integer[np.ndarray, "i j k"]:
        """Put the values of the brain's voxels into a volume that is 0 elsewhere."""
        volume = np.zeros(self.shape, values.dtype)
        volume[self.head.box][self.head.brain] = values
        return volume


@dataclass(frozen=True)
class Tumour:
    """Two fields whose levels are the borders of the tumour's parts.

    Attributes:
        spread: Whole tumour where it is at most `whole`.
        core: Inside the whole tumour, the core where it is at most `rim`, of it necrosis where it
            is at most `necrosis`; the rest of the core enhances.
    """

    spread: Voxels
    core: Voxels
    whole: float
    rim: float
    necrosis: float


def draw_anatomy(rng: np.random.Generator, shape: Shape, *, has_enhancing: bool) -> Anatomy:
    """Draw a brain with one tumour.

    Args:
        rng: Consumed; the same state and shape give the same anatomy.
        shape: Of the volume, in voxels.
        has_enhancing: Whether the core has an enhancing rim. Without one the whole core is label 1,
            as in many low-grade gliomas.
    """
    head = draw_head(rng, shape)
    healthy = draw_healthy(rng, head)
    tumour = _draw_tumour(rng, head, healthy, has_enhancing=has_enhancing)
    return Anatomy(shape, head, _mix(rng, head, healthy, tumour), _label(tumour))


def _draw_tumour(
    rng: np.random.Generator, head: Head, healthy: Healthy, *, has_enhancing: bool
) -> Tumour:
    """Draw one tumour, in a fifth of the patients with a second focus, inside white matter.

    The borders are the levels that enclose drawn numbers of voxels, so that a tumour has its size
    whatever the noise does to its outline: 0.8 % to 7.5 % of the brain.
    """
    head_start = rng.uniform(0.05, 0.15) if rng.random() < 0.2 else math.inf
    first, second = (_distance_to_focus(rng, head, healthy) for _ in range(2))
    focus = np.minimum(first, second + head_start)
    spread = focus + 0.07 * smooth_in_brain(rng, head, 9) + 0.03 * smooth_in_brain(rng, head, 24)
    fluid, grey, _ = healthy.fractions
    spread += 0.3 * fluid + 0.06 * grey
    core = focus + 0.04 * smooth_in_brain(rng, head, 11) + 0.015 * smooth_in_brain(rng, head, 28)
    core = np.maximum(core, spread)  # so that a smaller level of it lies inside the whole tumour
    num_whole = len(spread) * 0.008 * (0.075 / 0.008) ** rng.random()
    whole = _enclosing_level(spread, num_whole)
    inside = core[spread <= whole]
    num_core = max(2.0, len(inside) * rng.uniform(0.3, 0.6))
    num_necrosis = num_core * (rng.uniform(0.3, 0.6) if has_enhancing else 1)
    return Tumour(
        spread,
        core,
        whole,
        rim=_enclosing_level(inside, num_core),
        necrosis=_enclosing_level(inside, num_necrosis),
    )


def _distance_to_focus(rng: np.random.Generator, head: Head, healthy: Healthy) -> Voxels:
    """Distance to a voxel drawn from the most inward fifth of the brain, in head units."""
    num_inward = max(1, len(healthy.inwardness) // 5)
    inward = np.sort(np.argpartition(healthy.inwardness, -num_inward)[-num_inward:])
    focus = inward[int(num_inward * rng.random())]
    stretch = rng.uniform(0.8, 1.25, size=3).astype(np.float32)
    squared = np.zeros_like(head.depth)
    for along_axis, factor in zip(head.xyz, stretch, strict=True):
        squared += ((along_axis - along_axis[focus]) * factor) ** 2
    distance: Voxels = np.sqrt(squared)
    return distance


def _enclosing_level(field: Voxels, num_voxels: float) -> float:
    """Find the level at or below which `num_voxels` voxels of a field lie, at least one."""
    last = max(1, round(num_voxels)) - 1
    return float(np.partition(field, last)[last])


def _label(tumour: Tumour) -> UInt8[np.ndarray, "voxel"]:
    """Name each voxel by the innermost border that it is in."""
    labels = np.zeros(len(tumour.spread), np.uint8)
    whole = tumour.spread <= tumour.whole
    labels[whole] = LABELS["ED"]
    labels[whole & (tumour.core <= tumour.rim)] = LABELS["ET"]
    labels[whole & (tumour.core <= tumour.necrosis)] = LABELS["NEC"]
    return labels


def _mix(
    rng: np.random.Generator, head: Head, healthy: Healthy, tumour: Tumour
) -> Float32[np.ndarray, "6 voxel"]:
    """Replace healthy tissue by the tumour's, half of it at the labels' borders.

    Oedema varies inside, since water spreads unevenly, and looks like the unlabelled caps of the
    ventricles: brightness in FLAIR alone does not tell a tumour.
    """
    whole = 1 - ramp(tumour.spread, tumour.whole, 0.04)
    core = (1 - ramp(tumour.core, tumour.rim, 0.02)) * whole
    has_rim = tumour.necrosis < tumour.rim
    necrosis = (1 - ramp(tumour.core, tumour.necrosis, 0.02)) * core if has_rim else core
    density = np.clip(0.85 + 0.12 * smooth_in_brain(rng, head, 16), 0.5, 1)
    oedema = (whole - core) * density + (1 - whole) * healthy.capped
    rest = healthy.fractions * (1 - oedema - core)
    return np.concatenate([rest, [oedema, core - necrosis, necrosis]])
