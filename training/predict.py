"""A trained network on whole volumes."""

import numpy as np
import torch
from jaxtyping import Float16, UInt8
from torch import nn
from torch.nn import functional

from training.targets import Target, decode_prediction

STRIDE = 32
"""Sides of slices are padded to multiples of this, 240 to 256; the network's smallest feature."""


def predict_labels(
    model: nn.Module,
    image: Float16[np.ndarray, "slice 4 height width"],
    target: Target,
    *,
    batch_size: int,
) -> UInt8[np.ndarray, "slice height width"]:
    """Segment slices at their own resolution.

    Args:
        model: On the device where it computes; set to evaluation by this call.
        image: Normalised as in a shard, background 0.
        target: What the network's output planes mean.
        batch_size: Slices at a time.

    Returns:
        BraTS values 0, 1, 2, 4.
    """
    device = next(model.parameters()).device
    height, width = image.shape[2:]
    margins = (0, -width % STRIDE, 0, -height % STRIDE)
    labels = np.empty((len(image), height, width), np.uint8)
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(image), batch_size):
            batch = torch.from_numpy(image[start : start + batch_size]).to(device).float()
            probability = model(functional.pad(batch, margins)).final.sigmoid()
            decoded = decode_prediction(probability[..., :height, :width], target)
            labels[start : start + batch_size] = decoded.cpu().numpy()
    return labels
