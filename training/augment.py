"""Random crops, rotations, flips and noise: drawn first, applied after (paper, section 2.6).

The numbers are drawn on the CPU from a generator that is handed in; applying them is a pure function
of numbers and batch. Any step of a training run can so be replayed, and the batch is transformed as a
whole on the device where it lies.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class AugmentSettings:
    """How much to vary.

    Attributes:
        rotation_degrees: Angles are uniform between minus and plus this. The paper gives no range;
            15 degrees vary the pose and leave a slice upright, as all slices of BraTS are.
        flip_probability: Of a flip, for each of the two axes of the plane.
        noise_std: Standard deviation of the Gaussian noise, in units of the z-scored intensities.
        modality_dropout: Probability that a slice loses a modality; one is always left.
    """

    rotation_degrees: float = 15.0
    flip_probability: float = 0.5
    noise_std: float = 0.01
    modality_dropout: float = 0.0


@dataclass(frozen=True)
class Draw:
    """Everything random about one batch.

    Attributes:
        offsets: First row and first column of each crop; below zero where the plane is smaller than
            the crop.
        angles_rad: Rotation of each crop about its centre, counter-clockwise with row 0 on top.
        flips: Whether to mirror the rows, and whether to mirror the columns, of each crop.
        depth_flips: Whether to mirror the slices of each crop of a volume.
        noise_seed: Of the generator on the batch's device; CPU and GPU make different noise of it.
        noise_std: Standard deviation of the noise.
        present: Which modalities each slice keeps; the others become zeros, as an absent one is.
        plane: Height and width of the slices that the offsets are meant for.
        crop: Height and width of the result.
    """

    offsets: Int64[Tensor, "batch 2"]
    angles_rad: Float32[Tensor, " batch"]
    flips: Bool[Tensor, "batch 2"]
    depth_flips: Bool[Tensor, " batch"]
    noise_seed: int
    noise_std: float
    present: Bool[Tensor, "batch 4"]
    plane: tuple[int, int]
    crop: int


def draw(
    generator: torch.Generator,
    batch_size: int,
    *,
    plane: tuple[int, int],
    crop: int,
    settings: AugmentSettings,
    is_placed: bool = False,
) -> Draw:
    """Draw the random numbers for one batch.

    Args:
        generator: On the CPU; advanced by the same amount whatever the settings.
        batch_size: Slices or volumes, each with its own crop, angle and flips.
        plane: Height and width of the slices.
        crop: Height and width of the crops. Where a plane is smaller it is centred and padded with 0.
        settings: How much to vary.
        is_placed: Whether planes were cut out at random already: the crop is their middle, and what is
            around it fills the corners when it is turned.
    """
    place = torch.rand(batch_size, 2, generator=generator, dtype=torch.float64)
    turn = torch.rand(batch_size, generator=generator)
    mirror = torch.rand(batch_size, 2, generator=generator)
    seed = torch.randint(2**62, (1,), generator=generator)
    luck = torch.rand(batch_size, 4, generator=generator)
    mirror_depth = torch.rand(batch_size, generator=generator)
    limit_rad = math.radians(settings.rotation_degrees)
    return Draw(
        offsets=crop_offsets(place, plane, crop, is_placed=is_placed),
        angles_rad=(2.0 * turn - 1.0) * limit_rad,
        flips=mirror < settings.flip_probability,
        depth_flips=mirror_depth < settings.flip_probability,
        noise_seed=int(seed),
        noise_std=settings.noise_std,
        present=(luck >= settings.modality_dropout) | (luck == luck.amax(dim=1, keepdim=True)),
        plane=plane,
        crop=crop,
    )


def crop_offsets(
    place: Float[Tensor, "batch 2"], plane: tuple[int, int], crop: int, *, is_placed: bool = False
) -> Int64[Tensor, "batch 2"]:
    """Turn numbers in [0, 1) into first rows and columns, each possible one equally likely, or the middle."""
    spare = torch.tensor(plane) - crop
    inside = (place * (spare + 1)).floor().long()
    centred = torch.div(spare, 2, rounding_mode="floor").expand_as(inside)
    return centred if is_placed else torch.where(spare >= 0, inside, centred)


def apply(
    drawn: Draw,
    image: Float[Tensor, "batch 4 *depth height width"],
    label: UInt8[Tensor, "batch *depth height width"],
) -> tuple[Float32[Tensor, "batch 4 *depth crop crop"], UInt8[Tensor, "batch *depth crop crop"]]:
    """Crop, rotate, flip and add noise to a batch, on the device where it lies.

    Crop, rotation and flips are one resampling, so an image is interpolated once. The crop is cut
    out of the turned plane: its corners hold what lies beside it, and zeros only outside the plane.
    A flip mirrors the crop after it was turned. All slices of a volume are cropped and turned alike,
    about the axis of the body.

    Args:
        drawn: From `draw`, for planes of this size.
        image: Modalities, z-scored, background 0.
        label: BraTS values; sampled at the nearest pixel, so no value is new.

    Raises:
        ValueError: If the slices have another size than the numbers were drawn for.
    """
    if image.shape[-2:] != drawn.plane:
        raise ValueError(f"slices of {tuple(image.shape[-2:])}, drawn for {drawn.plane}")
    canvas = (exact_side(drawn.plane[0]), exact_side(drawn.plane[1]))
    grid = sampling_grid(drawn, canvas, image.device)
    side = (drawn.crop, drawn.crop)
    cropped = sample(on_canvas(image.flatten(1, -3), canvas), grid, mode="bilinear")
    cropped = cropped.reshape(*image.shape[:-2], *side)
    nearest = sample(on_canvas(label.unsqueeze(1).flatten(1, -3), canvas), grid, mode="nearest")
    nearest = nearest.reshape(*label.shape[:-2], *side)
    if image.ndim == 5:
        cropped, nearest = (_flip_depth(volume, drawn.depth_flips) for volume in (cropped, nearest))
    if drawn.noise_std > 0:
        generator = torch.Generator(image.device).manual_seed(drawn.noise_seed)
        noise = torch.randn(cropped.shape, generator=generator, device=image.device)
        cropped = cropped.add_(noise, alpha=drawn.noise_std)
    if not drawn.present.all():
        present = drawn.present.to(image.device, non_blocking=True)
        cropped *= present.reshape(*present.shape, *[1] * (image.ndim - 2))
    return cropped, nearest.to(torch.uint8)


def _flip_depth(
    volume: Float32[Tensor, "batch *channel depth crop crop"], flips: Bool[Tensor, " batch"]
) -> Float32[Tensor, "batch *channel depth crop crop"]:
    chosen = flips.to(volume.device, non_blocking=True)
    return torch.where(chosen.reshape(-1, *[1] * (volume.ndim - 1)), volume.flip(-3), volume)


def exact_side(side: int) -> int:
    """Give the next power of two.

    Sampling wants coordinates as fractions of the plane. As fractions of a power of two whole pixels
    are exact in float32, and a crop without rotation returns its pixels bit for bit; as fractions of
    240 they are not, and every pixel would mix with its neighbours.
    """
    return int(2 ** math.ceil(math.log2(side)))


def on_canvas(plane: Tensor, canvas: tuple[int, int]) -> Float32[Tensor, "batch channel tall wide"]:
    """Convert to float32 in the upper left corner of a larger plane of zeros."""
    height, width = plane.shape[-2:]
    larger = plane.new_zeros((*plane.shape[:2], *canvas), dtype=torch.float32)
    larger[..., :height, :width] = plane
    return larger


def crop_to_canvas(drawn: Draw, canvas: tuple[int, int]) -> Float32[Tensor, "batch 2 3"]:
    """Compute the affine maps from crop to canvas.

    Returns:
        For each slice the matrix that takes (column, row, 1), counted in pixels from the centre of
        the crop, to (column, row) as `grid_sample` counts them, from -1 to 1 between the outer edges
        of the canvas. Flips act first, then the rotation, then the offset.
    """
    centre = drawn.offsets.double() + (drawn.crop - 1) / 2
    sign = 1.0 - 2.0 * drawn.flips.double()
    cosine, sine = drawn.angles_rad.double().cos(), drawn.angles_rad.double().sin()
    column = torch.stack((cosine * sign[:, 1], -sine * sign[:, 0], centre[:, 1] + 0.5), dim=1)
    row = torch.stack((sine * sign[:, 1], cosine * sign[:, 0], centre[:, 0] + 0.5), dim=1)
    height, width = canvas
    affine = torch.stack((2.0 / width * column, 2.0 / height * row), dim=1)
    affine[:, :, 2] -= 1.0
    return affine.float()


def sampling_grid(
    drawn: Draw, canvas: tuple[int, int], device: torch.device
) -> Float32[Tensor, "batch crop crop 2"]:
    """Say where in the canvas each pixel of the crop comes from, in the terms of `grid_sample`."""
    affine = crop_to_canvas(drawn, canvas).to(device, non_blocking=True)[:, :, :, None, None]
    line = torch.arange(drawn.crop, device=device) - (drawn.crop - 1) / 2
    # Element-wise on purpose: a matrix product may run in TF32 or under autocast.
    grid = affine[:, :, 0] * line + affine[:, :, 1] * line[:, None] + affine[:, :, 2]
    return grid.permute(0, 2, 3, 1)


def sample(
    plane: Float32[Tensor, "batch channel tall wide"],
    grid: Float32[Tensor, "batch crop crop 2"],
    mode: str,
) -> Float32[Tensor, "batch channel crop crop"]:
    """Read a plane at a grid of places, 0 outside."""
    return functional.grid_sample(plane, grid, mode=mode, padding_mode="zeros", align_corners=False)
