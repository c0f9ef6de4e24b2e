"""A trained network on whole volumes."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float16, Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional

from cache_schema.errors import InputError
from cache_schema.vocabulary import LABELS
from training.models.patch import Size
from training.targets import Target, decode_prediction
from training.windows import slide


class NotFiniteError(InputError):
    """A network gives probabilities that are not numbers, which would be decoded as background."""


STRIDE = 32
"""Sides of slices are padded to multiples of this, 240 to 256; the network's smallest feature."""


def flips_of(num_axes: int) -> tuple[tuple[int, ...], ...]:
    """List the sets of axes that test-time augmentation flips, of a slice (2) or a volume (3): none first."""
    axes = range(-1, -num_axes - 1, -1)
    return tuple(chosen for count in range(num_axes + 1) for chosen in combinations(axes, count))


def predict_labels(
    model: nn.Module,
    image: Float16[np.ndarray, "slice 4 height width"],
    target: Target,
    *,
    batch_size: int,
    patch: Size | None = None,
    tta: bool = False,
    postprocess_et: int = 0,
) -> UInt8[np.ndarray, "slice height width"]:
    """Segment the slices of a case at their own resolution.

    Args:
        model: On the device where it computes; set to evaluation by this call.
        image: Normalised as in a shard, background 0.
        target: What the network's output planes mean.
        batch_size: Slices at a time, for a network that takes slices.
        patch: What a network of three dimensions takes at a time, from slices that follow each other.
        tta: Average the probabilities over flips of the slices or the volume.
        postprocess_et: Fewer enhancing voxels than this in all slices together become necrosis.

    Returns:
        BraTS values 0, 1, 2, 4.

    Raises:
        NotFiniteError: If the network gives NaN.
    """
    batches = _probabilities(model, image, batch_size=batch_size, patch=patch, tta=tta)
    labels = np.empty((len(image), *image.shape[2:]), np.uint8)
    for start, probability in batches:
        stop = start + len(probability)
        labels[start:stop] = decode_prediction(probability, target).cpu().numpy()
    return drop_small_enhancing(labels, postprocess_et)


def predict_probabilities(
    model: nn.Module,
    image: Float16[np.ndarray, "slice 4 height width"],
    *,
    batch_size: int,
    patch: Size | None = None,
    tta: bool = False,
) -> Float32[np.ndarray, "slice 3 height width"]:
    """Compute the probability of every plane at every pixel.

    Args:
        model: On the device where it computes; set to evaluation by this call.
        image: Normalised as in a shard, background 0.
        batch_size: Slices at a time, for a network that takes slices.
        patch: What a network of three dimensions takes at a time, from slices that follow each other.
        tta: Average over flips of the slices or the volume.

    Returns:
        From 0 to 1, the planes in the order of `training.targets.PLANES` for the network's target.

    Raises:
        NotFiniteError: If the network gives NaN.
    """
    found = np.empty((len(image), 3, *image.shape[2:]), np.float32)
    batches = _probabilities(model, image, batch_size=batch_size, patch=patch, tta=tta)
    for start, probability in batches:
        found[start : start + len(probability)] = probability.cpu().numpy()
    return found


def drop_small_enhancing(
    label: UInt8[np.ndarray, "*space"], num_voxels: int
) -> UInt8[np.ndarray, "*space"]:
    """Turn the enhancing tumour of a case into necrosis if there is hardly any.

    Many gliomas of low grade do not enhance, and by the convention of BraTS a single false voxel
    costs such a case its whole Dice of ET. The rule is that of nnU-Net in BraTS 2020, Isensee et al.
    (2020), arXiv:2011.00848, with a threshold chosen on training cases. TC and WT stay as they are.

    Args:
        label: BraTS values of a whole case.
        num_voxels: Fewer enhancing voxels than this are not believed; with 0 all are.

    Returns:
        The same labels, or a copy with 1 in place of 4.
    """
    enhancing = label == LABELS["ET"]
    if np.count_nonzero(enhancing) >= num_voxels:
        return label
    return np.where(enhancing, np.uint8(LABELS["NEC"]), label)


def _probabilities(
    model: nn.Module,
    image: Float16[np.ndarray, "slice 4 height width"],
    *,
    batch_size: int,
    patch: Size | None,
    tta: bool,
) -> Iterator[tuple[int, Float32[Tensor, "batch 3 height width"]]]:
    """Yield the first slice of each batch and its probabilities, on the model's device."""
    device = next(model.parameters()).device
    model.eval()
    if patch is not None:
        volume = torch.from_numpy(image).to(device).float().swapaxes(0, 1).unsqueeze(0)
        with torch.inference_mode():
            whole = _averaged(partial(slide, model, patch=patch), volume, tta=tta)
        yield 0, require_finite(whole).squeeze(0).swapaxes(0, 1)
        return
    for start in range(0, len(image), batch_size):
        batch = torch.from_numpy(image[start : start + batch_size]).to(device).float()
        with torch.inference_mode():
            probability = _averaged(partial(_probability, model), batch, tta=tta)
        yield start, require_finite(probability)


def require_finite(probability: Float32[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Give probabilities back if all are numbers.

    Raises:
        NotFiniteError: If one is not.
    """
    if not probability.isfinite().all():
        raise NotFiniteError(
            "the network gives probabilities that are not numbers (NaN), so its training has diverged: "
            "train again with a lower --learning-rate, or take another run"
        )
    return probability


def _averaged(
    probability_of: Callable[[Tensor], Tensor],
    image: Float32[Tensor, "batch 4 *space"],
    *,
    tta: bool,
) -> Float32[Tensor, "batch 3 *space"]:
    """Show the network every flip of a batch, or none; each answer is flipped back before the mean."""
    flips = flips_of(image.ndim - 2) if tta else ((),)
    total = torch.zeros(())
    for axes in flips:
        total = probability_of(image.flip(axes)).flip(axes) + total
    return total / len(flips)


def _probability(
    model: nn.Module, image: Float32[Tensor, "batch 4 height width"]
) -> Float32[Tensor, "batch 3 height width"]:
    height, width = image.shape[2:]
    margins = (0, -width % STRIDE, 0, -height % STRIDE)
    probability: Tensor = model(functional.pad(image, margins)).final.sigmoid()
    return probability[..., :height, :width].float()
