"""From label maps to the planes that a network predicts, and back."""

from collections.abc import Callable
from typing import Final, Literal

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from cache_schema.vocabulary import LABELS, REGIONS

Target = Literal["labels", "regions"]

PLANES: Final[dict[Target, dict[str, tuple[int, ...]]]] = {
    "labels": {name: (value,) for name, value in LABELS.items()},
    "regions": REGIONS,
}
"""For each target the planes in order: the name of each and the label values that it unites."""


def encode_target(
    label: UInt8[Tensor, "batch *space"], target: Target
) -> Float32[Tensor, "batch 3 *space"]:
    """Turn label maps into one binary plane a class.

    Args:
        label: BraTS values 0, 1, 2, 4.
        target: `labels` gives NEC, ED, ET, which exclude each other; `regions` gives ET, TC, WT, each
            inside the next.

    Returns:
        Zeros and ones, the planes in the order of `PLANES`.
    """
    planes = [
        torch.stack([label == value for value in values]).any(dim=0)
        for values in PLANES[target].values()
    ]
    return torch.stack(planes, dim=1).float()


def decode_prediction(
    probability: Float[Tensor, "batch 3 *space"], target: Target
) -> UInt8[Tensor, "batch *space"]:
    """Turn predicted probabilities into label maps; `encode_target` undone.

    Args:
        probability: After the sigmoid, planes in the order of `PLANES`; not logits.
        target: What the planes mean.

    Returns:
        BraTS values 0, 1, 2, 4.
    """
    return DECODERS[target](probability)


def decode_labels(
    probability: Float[Tensor, "batch 3 *space"],
) -> UInt8[Tensor, "batch *space"]:
    """Take the most probable label, where its probability is above one half."""
    largest, plane = probability.max(dim=1)
    values = torch.tensor(list(LABELS.values()), dtype=torch.uint8, device=probability.device)
    return torch.where(largest > 0.5, values[plane], 0)


def decode_regions(
    probability: Float[Tensor, "batch 3 *space"],
) -> UInt8[Tensor, "batch *space"]:
    """Nest the regions that are above one half: ET counts inside TC only, TC inside WT only."""
    enhancing, core, whole = (probability > 0.5).unbind(dim=1)
    core = core & whole
    enhancing = enhancing & core
    label = torch.zeros_like(whole, dtype=torch.uint8)
    for region, value in ((whole, LABELS["ED"]), (core, LABELS["NEC"]), (enhancing, LABELS["ET"])):
        label = label.masked_fill(region, value)
    return label


DECODERS: Final[dict[Target, Callable[[Tensor], Tensor]]] = {
    "labels": decode_labels,
    "regions": decode_regions,
}
