"""The local loop: some consecutive steps of a run, on one client's slices or on everybody's."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from cache_schema.vocabulary import REGIONS
from training.augment import AugmentSettings, apply, draw
from training.config import TrainConfig
from training.data.batches import Example
from training.device import choose_precision
from training.losses import deep_supervision_loss
from training.seeds import derive_seed, generator
from training.targets import decode_prediction, encode_target

CHECK_EVERY = 16
"""Steps after which a GPU is asked for its losses; asking makes it wait."""


@dataclass(frozen=True)
class Stint:
    """Consecutive steps of a run: a client's part in a round, or a part of a central epoch.

    Everything random in a step follows from the run's seed, the stream and the step, so that any
    step can be replayed and a resumed run goes on bit for bit.

    Attributes:
        stream: What the steps belong to, such as (round, client); gives the seeds.
        start, stop: Which of the stream's steps, half-open.
        progress: Share of the whole run that was done when the stream began, 0 to 1.
        progress_per_step: Share of the whole run that is one step.
        rate_factor: Share of the learning rate that is left, where it follows no cosine.
    """

    stream: tuple[int, ...]
    start: int
    stop: int
    progress: float
    progress_per_step: float
    rate_factor: float = 1.0


@dataclass(frozen=True)
class FitResult:
    """What some steps gave.

    Attributes:
        num_steps: Optimiser steps.
        loss_sum: Of all steps.
        overlap: By truth, prediction and both, voxels of each region in all augmented batches.
        fault: Why training stopped early, or None.
    """

    num_steps: int = 0
    loss_sum: float = 0.0
    overlap: tuple[tuple[int, ...], ...] = ((0,) * len(REGIONS),) * 3
    fault: str | None = None

    @property
    def loss(self) -> float | None:
        """Mean over the steps; None if there was none."""
        return self.loss_sum / self.num_steps if self.num_steps else None

    @property
    def dice(self) -> dict[str, float]:
        """Overlap of each region over all voxels together; 1 where there is neither."""
        return {
            region: 2.0 * both / (truth + prediction) if truth + prediction else 1.0
            for region, truth, prediction, both in zip(REGIONS, *self.overlap, strict=True)
        }

    def __add__(self, other: "FitResult") -> "FitResult":
        """Put two stints together."""
        overlap = tuple(
            tuple(a + b for a, b in zip(ours, theirs, strict=True))
            for ours, theirs in zip(self.overlap, other.overlap, strict=True)
        )
        return FitResult(
            self.num_steps + other.num_steps,
            self.loss_sum + other.loss_sum,
            overlap,
            self.fault or other.fault,
        )


def cosine_learning_rate(start: float, progress: float) -> float:
    r"""Decay a learning rate over a whole run, $\eta = \eta_0 (1 + \cos \pi p) / 2$.

    Args:
        start: The rate at the beginning.
        progress: Share of the run that is done, 0 to 1.
    """
    return start * (1.0 + math.cos(math.pi * progress)) / 2.0


def _learning_rate(config: TrainConfig, stint: Stint, step: int) -> float:
    if config.lr_schedule == "cosine":
        progress = stint.progress + step * stint.progress_per_step
        return cosine_learning_rate(config.learning_rate, progress)
    return config.learning_rate * stint.rate_factor


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Adam:
    """Make the paper's optimiser, Adam, Kingma and Ba (2015), arXiv:1412.6980.

    Fused: one pass over all parameters instead of several over each.
    """
    device = next(model.parameters()).device
    return torch.optim.Adam(
        model.parameters(), lr=config.learning_rate, fused=device.type in {"cpu", "cuda"}
    )


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Example],
    config: TrainConfig,
    *,
    stint: Stint,
    on_step: Callable[[float], None],
    adjust: Callable[[nn.Module], None] | None = None,
) -> FitResult:
    """Train a network in place, one batch a step.

    Args:
        model: On the device where it trains.
        optimizer: Of its parameters; its learning rate is set anew in every step.
        batches: At least as many as the stint has steps; just so many are taken.
        config: Of the run.
        stint: Which steps of the run these are.
        on_step: Told the loss of every step.
        adjust: Changes the gradients of every step, as a strategy of federated training may.

    Returns:
        What it gave. Training stops before a step whose loss or gradient is not finite, on a GPU some
        steps later, when the network is of no use any more; the result names the step.
    """
    device = next(model.parameters()).device
    dtype = choose_precision(config.precision, device)
    augmentation = AugmentSettings(
        rotation_degrees=config.rotation_deg,
        noise_std=config.noise_std,
        modality_dropout=config.modality_dropout,
    )
    losses = _Losses(stint.start, 1 if device.type == "cpu" else CHECK_EVERY, on_step)
    overlap = torch.zeros(3, len(REGIONS), dtype=torch.int64, device=device)
    model.train()
    for step, (image, label) in zip(range(stint.start, stint.stop), batches, strict=False):
        seeds = (config.seed, *stint.stream, step)
        optimizer.param_groups[0]["lr"] = _learning_rate(config, stint, step)
        drawn = draw(
            generator(*seeds, 0),
            len(image),
            plane=(image.shape[-2], image.shape[-1]),
            crop=config.crop,
            settings=augmentation,
            is_placed=image.ndim == 5,
        )
        moved = (tensor.to(device, non_blocking=True) for tensor in (image, label))
        image, label = apply(drawn, *moved)  # noqa: PLW2901
        torch.manual_seed(derive_seed(*seeds, 1))  # dropout draws from the global generator
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(image)
            loss = deep_supervision_loss(logits, encode_target(label, config.target))
        optimizer.zero_grad()
        loss.backward()
        if adjust is not None:
            adjust(model)
        losses.add(loss.detach(), _gradient_norm(model))
        if losses.fault is not None:
            deque(zip(range(step + 1, stint.stop), batches, strict=False), maxlen=0)
            break
        optimizer.step()
        predicted = decode_prediction(logits.final.detach().float().sigmoid(), config.target)
        overlap += count_overlap(label, predicted)
    losses.check()
    return FitResult(
        losses.num_steps,
        losses.total,
        tuple(tuple(counts) for counts in overlap.tolist()),
        losses.fault,
    )


def _gradient_norm(model: nn.Module) -> Tensor:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients)


class _Losses:
    """The losses and gradients of a stint, looked at in groups."""

    def __init__(self, first_step: int, every: int, on_step: Callable[[float], None]) -> None:
        self._first_step = first_step
        self._every = every
        self._on_step = on_step
        self._unseen: list[tuple[Tensor, Tensor]] = []
        self.num_steps = 0
        self.total = 0.0
        self.fault: str | None = None

    def add(self, loss: Tensor, gradient_norm: Tensor) -> None:
        """Take loss and gradient of one more step."""
        self._unseen.append((loss, gradient_norm))
        if len(self._unseen) == self._every:
            self.check()

    def check(self) -> None:
        """Look at what has come since the last look."""
        if not self._unseen:
            return
        values = torch.stack([torch.stack(pair) for pair in self._unseen]).tolist()
        self._unseen.clear()
        for value, gradient_norm in values:
            step = self._first_step + self.num_steps + 1
            if not math.isfinite(value):
                self.fault = f"loss is {value} at step {step}"
                return
            if not math.isfinite(gradient_norm):
                self.fault = f"gradient is not finite at step {step}"
                return
            self.num_steps += 1
            self.total += value
            self._on_step(value)


def count_overlap(
    truth: UInt8[Tensor, "*space"], prediction: UInt8[Tensor, "*space"]
) -> Int64[Tensor, "3 region"]:
    """Count voxels of truth, prediction and both, for every region."""
    counts = []
    for values in REGIONS.values():
        true, predicted = (
            torch.stack([labels == value for value in values]).any(dim=0)
            for labels in (truth, prediction)
        )
        counts.append(torch.stack((true.sum(), predicted.sum(), (true & predicted).sum())))
    return torch.stack(counts, dim=1)
