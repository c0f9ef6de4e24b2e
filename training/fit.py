"""The local loop: some epochs over one client's slices."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cache_schema.vocabulary import REGIONS
from training.augment import AugmentSettings, apply, draw
from training.config import TrainConfig
from training.data import Slice
from training.losses import deep_supervision_loss
from training.targets import decode_prediction, encode_target


@dataclass(frozen=True)
class FitResult:
    """What some epochs gave.

    Attributes:
        num_steps: Optimiser steps of all epochs.
        loss: Mean over the steps; None if there was none.
        dice: Overlap of each region, over the voxels of all augmented training batches together.
        fault: Why training stopped early, or None.
    """

    num_steps: int
    loss: float | None
    dice: dict[str, float]
    fault: str | None


def cosine_learning_rate(start: float, progress: float) -> float:
    r"""Decay a learning rate over a whole run, $\eta = \eta_0 (1 + \cos \pi p) / 2$.

    Args:
        start: The rate at the beginning.
        progress: Share of the run that is done, 0 to 1.
    """
    return start * (1.0 + math.cos(math.pi * progress)) / 2.0


def fit(
    model: nn.Module,
    batches: DataLoader[Slice],
    config: TrainConfig,
    *,
    first_epoch: int,
    generator: torch.Generator,
    on_step: Callable[[float], None],
) -> FitResult:
    """Train a network in place for the local epochs of one round.

    The optimiser starts anew, as a client of FedAvg keeps no state between rounds; the learning
    rate goes on along one cosine over the epochs of the whole run.

    Args:
        model: On the device where it trains.
        batches: One pass over the client's slices each time it is iterated.
        config: Of the run.
        first_epoch: Epochs of earlier rounds, from 0.
        generator: Of the augmentation, on the CPU.
        on_step: Told the loss of every step.

    Returns:
        What it gave. Training stops at a loss that is not finite, and the result names the step.
    """
    device = next(model.parameters()).device
    settings = AugmentSettings(rotation_degrees=config.rotation_deg, noise_std=config.noise_std)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    overlap = torch.zeros(3, len(REGIONS), dtype=torch.int64, device=device)
    losses: list[float] = []
    fault: str | None = None
    model.train()
    for epoch in range(first_epoch, first_epoch + config.local_epochs):
        for step, (image, label) in enumerate(batches):
            done = (epoch + step / len(batches)) / (config.rounds * config.local_epochs)
            optimizer.param_groups[0]["lr"] = cosine_learning_rate(config.learning_rate, done)
            plane = (image.shape[2], image.shape[3])
            drawn = draw(generator, len(image), plane=plane, crop=config.crop, settings=settings)
            image, label = apply(drawn, image.to(device), label.to(device))  # noqa: PLW2901
            logits = model(image)
            loss = deep_supervision_loss(logits, encode_target(label, config.target))
            value = float(loss.detach())
            if not math.isfinite(value):
                fault = f"loss is {value} at epoch {epoch + 1}, step {step + 1}"
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            predicted = decode_prediction(logits.final.detach().sigmoid(), config.target)
            overlap += count_overlap(label, predicted)
            losses.append(value)
            on_step(value)
        if fault is not None:
            break
    mean = float(np.mean(losses)) if losses else None
    return FitResult(len(losses), mean, overlap_dice(overlap), fault)


def count_overlap(
    truth: UInt8[Tensor, "*space"], prediction: UInt8[Tensor, "*space"]
) -> Int64[Tensor, "3 region"]:
    """Count voxels of truth, prediction and both, for every region."""
    counts = []
    for values in REGIONS.values():
        wanted = torch.tensor(values, dtype=torch.uint8, device=truth.device)
        true, predicted = torch.isin(truth, wanted), torch.isin(prediction, wanted)
        counts.append(torch.stack((true.sum(), predicted.sum(), (true & predicted).sum())))
    return torch.stack(counts, dim=1)


def overlap_dice(overlap: Int64[Tensor, "3 region"]) -> dict[str, float]:
    """Turn voxel counts into the Dice of every region; 1 where there is neither truth nor prediction."""
    truth, prediction, both = overlap.tolist()
    return {
        region: 2.0 * b / (t + p) if t + p else 1.0
        for region, t, p, b in zip(REGIONS, truth, prediction, both, strict=True)
    }
