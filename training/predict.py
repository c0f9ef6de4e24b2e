"""A trained network on whole volumes."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from jaxtyping import Float16, Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional

from cache_schema.vocabulary import LABELS
from training.targets import Target, decode_prediction

STRIDE = 32
"""Sides of slices are padded to multiples of this, 240 to 256; the network's smallest feature."""

FLIPS: Final[tuple[tuple[int, ...], ...]] = ((), (-1,), (-2,), (-2, -1))
"""Axes of a slice that test-time augmentation flips: none, each in-plane axis, and both."""


def predict_labels(
    model: nn.Module,
    image: Float16[np.ndarray, "slice 4 height width"],
    target: Target,
    *,
    batch_size: int,
    tta: bool = False,
    postprocess_et: int = 0,
) -> UInt8[np.ndarray, "slice height width"]:
    """Segment slices at their own resolution.

    Args:
        model: On the device where it computes; set to evaluation by this call.
        image: Normalised as in a shard, background 0.
        target: What the network's output planes mean.
        batch_size: Slices at a time.
        tta: Average the probabilities over flips of the slices.
        postprocess_et: Fewer enhancing voxels than this in all slices together become necrosis.

    Returns:
        BraTS values 0, 1, 2, 4.
    """
    batches = _probabilities(model, image, batch_size=batch_size, tta=tta)
    labels = np.empty((len(image), *image.shape[2:]), np.uint8)
    for start, probability in batches:
        labels[start : start + batch_size] = decode_prediction(probability, target).cpu().numpy()
    return drop_small_enhancing(labels, postprocess_et)


def predict_probabilities(
    model: nn.Module,
    image: Float16[np.ndarray, "slice 4 height width"],
    *,
    batch_size: int,
    tta: bool = False,
) -> Float32[np.ndarray, "slice 3 height width"]:
    """Compute the probability of every plane at every pixel.

    Args:
        model: On the device where it computes; set to evaluation by this call.
        image: Normalised as in a shard, background 0.
        batch_size: Slices at a time.
        tta: Average over flips of the slices.

    Returns:
        From 0 to 1, the planes in the order of `training.targets.PLANES` for the network's target.
    """
    found = np.empty((len(image), 3, *image.shape[2:]), np.float32)
    for start, probability in _probabilities(model, image, batch_size=batch_size, tta=tta):
        found[start : start + batch_size] = probability.cpu().numpy()
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
    tta: bool,
) -> Iterator[tuple[int, Float32[Tensor, "batch 3 height width"]]]:
    """Yield the first slice of each batch and its probabilities, on the model's device."""
    device = next(model.parameters()).device
    model.eval()
    for start in range(0, len(image), batch_size):
        batch = torch.from_numpy(image[start : start + batch_size]).to(device).float()
        with torch.inference_mode():
            probability = _averaged(model, batch, FLIPS if tta else FLIPS[:1])
        yield start, probability


def _averaged(
    model: nn.Module,
    image: Float32[Tensor, "batch 4 height width"],
    flips: tuple[tuple[int, ...], ...],
) -> Float32[Tensor, "batch 3 height width"]:
    """Show the network every flip of a batch; each answer is flipped back before the mean."""
    total: Tensor | None = None
    for axes in flips:
        probability = _probability(model, image.flip(axes)).flip(axes)
        total = probability if total is None else total + probability
    if total is None:
        raise ValueError("no flips: give at least the one without axes")
    return total / len(flips)


def _probability(
    model: nn.Module, image: Float32[Tensor, "batch 4 height width"]
) -> Float32[Tensor, "batch 3 height width"]:
    height, width = image.shape[2:]
    margins = (0, -width % STRIDE, 0, -height % STRIDE)
    probability: Tensor = model(functional.pad(image, margins)).final.sigmoid()
    return probability[..., :height, :width].float()
