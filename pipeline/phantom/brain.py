"""The brain of a phantom patient, before anything grows in it.

Head coordinates make the anatomy independent of the volume's shape: the brain's surface is about the
unit sphere, so that 1 unit is about 70 mm of a real head. x points to the patient's left, y to the
back, z up, as the voxel axes of BraTS volumes do. Every border is a level of a smooth field, which
gives it an irregular outline and, through `ramp`, partial volume.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32

Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]
Voxels = Float32[np.ndarray, "voxel"]
"""One number for each voxel of the brain, in C order."""

_SEMI_AXES: Final = (0.292, 0.356, 0.408)
"""Of the brain, as parts of the volume's sides: about 16 % of the voxels are brain, as in BraTS."""
_CENTRE: Final = (0.5, 0.51, 0.48)
_REACH: Final = 1.2
"""Half side, in head units, of the box that holds the brain whatever its pose and surface."""


@dataclass(frozen=True)
class Head:
    """Where the brain lies in the volume.

    Attributes:
        box: Voxel ranges around the brain; nothing is computed outside it.
        brain: True inside the brain, over `box`.
        xyz: Head coordinates of the brain's voxels.
        depth: Distance below the brain's surface, in head units.
    """

    box: Box
    brain: Bool[np.ndarray, "i j k"]
    xyz: tuple[Voxels, Voxels, Voxels]
    depth: Voxels


@dataclass(frozen=True)
class Healthy:
    """The brain without its lesion.

    Attributes:
        fractions: Share of fluid, grey and white matter in each voxel.
        capped: White matter beside the ventricles, bright in FLAIR in many older patients, 0 to 1.
        inwardness: Large deep inside white matter, about 0 in the cortex and in fluid.
    """

    fractions: Float32[np.ndarray, "3 voxel"]
    capped: Voxels
    inwardness: Voxels


def smooth_field(
    rng: np.random.Generator, shape: Shape, num_cells: Shape
) -> Float32[np.ndarray, "i j k"]:
    """Draw a smooth Gaussian random field, of mean 0 and variance 1 at every voxel.

    White noise on a coarse grid gives the coefficients of cubic B-splines, which one matrix product
    along each axis evaluates.

    Args:
        rng: Consumed.
        shape: Of the field, in voxels.
        num_cells: Of the coarse grid along each axis; the field varies over about one cell.
    """
    along_i, along_j, along_k = map(_spline_matrix, shape, num_cells)
    noise = rng.standard_normal([n + 3 for n in num_cells], dtype=np.float32)
    rows = (along_i @ noise.reshape(len(noise), -1)).reshape(-1, *noise.shape[1:])
    planes = along_j @ rows
    columns = planes.reshape(-1, planes.shape[-1])
    field: Float32[np.ndarray, "i j k"] = (columns @ along_k.T).reshape(shape)
    return field


def _spline_matrix(num_points: int, num_cells: int) -> Float32[np.ndarray, "point coefficient"]:
    """Cubic B-splines at evenly spaced points; rows have unit length, which keeps variance 1."""
    position = np.linspace(0.0, num_cells, num_points, dtype=np.float32)[:, None]
    distance = np.abs(position - np.arange(-1, num_cells + 2, dtype=np.float32))
    near = (4 - 6 * distance**2 + 3 * distance**3) / 6
    far = (2 - np.minimum(distance, 2)) ** 3 / 6
    splines: Float32[np.ndarray, "point coefficient"] = np.where(distance < 1, near, far)
    splines /= np.linalg.norm(splines, axis=1, keepdims=True)
    return splines


def smooth_in_brain(rng: np.random.Generator, head: Head, num_cells: int) -> Voxels:
    """Draw a `smooth_field` over the brain, with `num_cells` along each side of its box."""
    field: Voxels = _smooth_in_box(rng, head.box, num_cells)[head.brain]
    return field


def _smooth_in_box(
    rng: np.random.Generator, box: Box, num_cells: int
) -> Float32[np.ndarray, "i j k"]:
    i, j, k = (side.stop - side.start for side in box)
    return smooth_field(rng, (i, j, k), (num_cells, num_cells, num_cells))


def ramp(field: Voxels, level: float, width: float) -> Voxels:
    """Go from 0 below `level` to 1 above it, within `width` around it."""
    return np.clip((field - level) / width + 0.5, 0, 1)


def draw_head(rng: np.random.Generator, shape: Shape) -> Head:
    """Draw a brain's size, pose and surface, and find its voxels."""
    sides = [
        _draw_side(rng, *geometry) for geometry in zip(shape, _SEMI_AXES, _CENTRE, strict=True)
    ]
    box: Box = (sides[0][0], sides[1][0], sides[2][0])
    left, back, up = np.ix_(*(axis for _, axis in sides))
    turn = math.radians(rng.uniform(-7, 7))
    x = math.cos(turn) * left - math.sin(turn) * back
    y = math.sin(turn) * left + math.cos(turn) * back
    # narrower in front than behind, and a base that is flatter than the vault
    radius = np.sqrt(x**2 * (1 - 0.12 * y) + y**2 + up**2) + 0.5 * np.maximum(-0.45 - up, 0)
    radius += 0.02 * _smooth_in_box(rng, box, 6)
    brain = radius < 1
    x, y, z = (np.broadcast_to(c, brain.shape)[brain] for c in (x, y, up))
    return Head(box, brain, (x, y, z), 1 - radius[brain])


def _draw_side(
    rng: np.random.Generator, num_voxels: int, semi_axis: float, centre: float
) -> tuple[slice, Float32[np.ndarray, "voxel"]]:
    """Draw size and place of the brain along one axis: the box's side and its head coordinates."""
    half = num_voxels * semi_axis * rng.uniform(0.95, 1.05)
    middle = num_voxels * (centre + rng.uniform(-0.015, 0.015))
    start = max(0, math.floor(middle - _REACH * half))
    stop = min(num_voxels, math.ceil(middle + _REACH * half))
    return slice(start, stop), (np.arange(start, stop, dtype=np.float32) + 0.5 - middle) / half


def draw_healthy(rng: np.random.Generator, head: Head) -> Healthy:
    """Mix fluid, grey and white matter: a folded mantle, two ventricles, deep nuclei."""
    x, y, z = head.xyz
    ventricle = _ventricle_field(rng, head)
    cortex = _cortex_field(rng, head)
    nuclei = ((np.abs(x) - 0.3) / 0.13) ** 2 + (y / 0.3) ** 2 + ((z + 0.1) / 0.2) ** 2
    nuclei += 0.2 * smooth_in_brain(rng, head, 12)
    fluid = 1 - np.minimum(ramp(cortex, 0.012, 0.02), ramp(ventricle, 1.0, 0.4))
    myelin = np.minimum(ramp(cortex, 0.062, 0.035), 0.3 + 0.7 * ramp(nuclei, 1.0, 0.3))
    white = myelin * (1 - fluid)
    caps = 1 - ramp(ventricle, 1.7 + rng.uniform(-0.2, 0.4), 0.8)
    return Healthy(
        fractions=np.stack([fluid, 1 - fluid - white, white]),
        capped=caps * white * rng.uniform(0.1, 0.6),
        inwardness=cortex * white,
    )


def _ventricle_field(rng: np.random.Generator, head: Head) -> Voxels:
    """Below 1 inside the lateral ventricles, whose horns bend outwards and down; large far away."""
    x, y, z = head.xyz
    width, length = rng.uniform(0.055, 0.09), rng.uniform(0.38, 0.5)
    across = (np.abs(x) - 0.04 - width - 0.45 * y**2) / width
    height = (z - 0.12 + 0.5 * y**2) / 0.16
    bent: Voxels = across**2 + ((y - 0.02) / length) ** 2 + height**2
    bent += 0.15 * smooth_in_brain(rng, head, 10)
    return bent


def _cortex_field(rng: np.random.Generator, head: Head) -> Voxels:
    """Distance to the nearest fluid outside the brain, roughly, in head units.

    Sulci are where a smooth field changes sign, near the surface. The fissure between the
    hemispheres is the plane x = 0, except in the middle of the head.
    """
    x, _, z = head.xyz
    folds = 0.08 * np.abs(smooth_in_brain(rng, head, 26))
    folds += 0.3 * np.maximum(head.depth - 0.14, 0)
    fissure = np.abs(x + 0.015 * smooth_in_brain(rng, head, 8))
    fissure += np.maximum(head.depth - 0.5 - 0.25 * z, 0)
    nearest: Voxels = np.minimum(np.minimum(head.depth, folds), fissure)
    return nearest
