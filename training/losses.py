"""Binary cross-entropy with soft Dice under deep supervision (paper, section 2.6, equation 16)."""

from typing import Final

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from training.models.logits import Logits

SMOOTH: Final = 1e-5
"""Added to both sides of the Dice fraction: a class that is absent and not predicted scores 1."""


def deep_supervision_loss(
    logits: Logits, target: Float[Tensor, "batch class *space"]
) -> Float32[Tensor, ""]:
    r"""Sum the losses of all scales and of the final output, equation 16.

    $$ L = L_{seg}(\hat Y, Y) + \sum_d \frac{H_d}{H} L_{seg}(\hat Y_d, Y), \quad
       L_{seg} = L_{BCE} + L_{Dice} $$

    Args:
        logits: All of the target's size.
        target: 0 or 1.
    """
    # One pass over all outputs: on a GPU a launch costs more than the arithmetic of a scale.
    outputs = torch.stack((*logits.scales, logits.final))
    losses = bce_and_dice(outputs, target).unbind()
    weights = (*logits.ratios, 1.0)
    total = torch.zeros_like(losses[-1])
    for weight, loss in zip(weights, losses, strict=True):
        total = total + weight * loss
    return total


def segmentation_loss(
    logits: Float[Tensor, "batch class *space"], target: Float[Tensor, "batch class *space"]
) -> Float32[Tensor, ""]:
    """Compute L_seg, binary cross-entropy plus soft Dice, of a single output."""
    return bce_and_dice(logits.unsqueeze(0), target).squeeze(0)


def bce_and_dice(
    outputs: Float[Tensor, "output batch class *space"],
    target: Float[Tensor, "batch class *space"],
) -> Float32[Tensor, " output"]:
    """Compute L_seg of several outputs for one target.

    In float32 whatever the autocast: sums over a batch of slices overflow float16 and lose their
    small terms in bfloat16.

    Returns:
        One loss an output.
    """
    with torch.autocast(device_type=outputs.device.type, enabled=False):
        outputs, target = outputs.float(), target.float()
        truth = target.expand_as(outputs)
        bce = functional.binary_cross_entropy_with_logits(outputs, truth, reduction="none")
        return bce.flatten(1).mean(dim=1) + soft_dice_loss(outputs.sigmoid(), target)


def soft_dice_loss(
    probability: Float32[Tensor, "output batch class *space"],
    target: Float32[Tensor, "batch class *space"],
) -> Float32[Tensor, " output"]:
    r"""Compute one minus the soft Dice coefficient, averaged over the classes.

    $$ 1 - \frac{1}{K} \sum_k \frac{2 \sum p_k y_k + s}{\sum p_k + \sum y_k + s} $$

    The sums run over the batch and the plane together. Most slices hold no tumour, and there a Dice
    of the single slice would be all or nothing; over a batch it stays a graded measure. Milletari et
    al. (2016), arXiv:1606.04797, with the plain sums of MONAI's `DiceLoss(batch=True)`.
    """
    inside = [1, *range(3, probability.ndim)]  # batch and space, of (output, batch, class, *space)
    shared = (probability * target).sum(dim=inside)
    both = probability.sum(dim=inside) + target.unsqueeze(0).sum(dim=inside)
    dice = (2.0 * shared + SMOOTH) / (both + SMOOTH)
    return 1.0 - dice.mean(dim=1)
