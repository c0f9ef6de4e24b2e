"""DP-FedAvg: clipped changes and Gaussian noise, so that the model does not give a client away."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Final, final

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from training.federated.aggregate import Server, State, Update, weighted_mean
from training.federated.privacy import has_accountant, spent_epsilon
from training.federated.strategy import Strategy

FRESH: Final = -1
"""The seed that stands for fresh entropy from the system."""


@final
@dataclass(frozen=True)
class DPFedAvg(Strategy):
    r"""Differentially private federated averaging, McMahan et al. (2018), arXiv:1710.06963.

    $$ w^{r+1} = w^r + \frac{1}{K} \sum_k \Delta_k \min\Big(1, \frac{C}{\lVert \Delta_k \rVert_2}\Big)
    + \mathcal{N}\Big(0, \Big(\frac{z C}{K}\Big)^2 I\Big), \qquad \Delta_k = w_k - w^r $$

    The norm goes over all floating-point tensors of a client together, parameters and buffers, and
    each of them gets noise. Every client counts the same, whatever its number of examples. Variances
    of BatchNorm are clamped at 0 afterwards, which costs no privacy.

    What is protected is one client, all of its patients together: whether it sent its change or a
    change of 0. K is the number of updates received and taken as public; the paper divides by the
    number it expects, which is not known here. The guarantee is about the floating-point part of the
    model. Outside it are counters, of which the largest is kept, and numbers of examples, steps and
    losses, which the server sees and logs.

    With a fixed seed a run can be repeated, and who knows the seed can subtract the noise: that is for
    experiments. A deployment must use `seed=-1`, the default: noise from fresh entropy of the
    system. Such a run cannot be repeated, and a round that is done again after a kill is one release
    more than is counted.

    The noise has the same size in every coordinate, so its norm grows with the network, while the
    change is clipped to C. With a network of millions of weights it takes thousands of clients until
    a model learns anything at a small epsilon.

    It keeps nothing between rounds.

    Attributes:
        clip: The bound C on the L2 norm of a client's change.
        noise: The noise multiplier z.
        delta: For the epsilon in the log, which needs Opacus; well below 1 / number of clients.
        seed: Of the noise, together with the round; -1 for fresh entropy.
    """

    clip: Annotated[float, Gt(0), Lt(math.inf)] = 1.0
    noise: Annotated[float, Ge(0), Lt(math.inf)] = 1.0
    delta: Annotated[float, Gt(0), Lt(1)] = 1e-5
    seed: Annotated[int, Ge(FRESH)] = FRESH

    def figures(self, server: Server) -> Mapping[str, float]:
        """Tell the epsilon spent so far; nothing without noise or without Opacus."""
        if self.noise == 0 or not has_accountant():
            return {}
        return {"epsilon": spent_epsilon(server.round, self.noise, self.delta)}

    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average the clipped changes and add noise."""
        num_updates = 0

        def changes() -> Iterator[tuple[float, State]]:
            nonlocal num_updates
            for update in updates:
                num_updates += 1
                yield 1.0, clipped_change(update.state, server.model, self.clip)

        mean = weighted_mean(changes())
        std = self.noise * self.clip / num_updates
        # Not torch.Generator: its seeds are cut to 32 bits, few enough to try them all.
        source = np.random.default_rng(None if self.seed == FRESH else (self.seed, server.round))
        model: dict[str, Tensor] = {}
        for name in sorted(mean):  # the order of names changes when a run is resumed
            start, change = server.model[name], mean[name]
            if change.is_floating_point():
                noise = torch.as_tensor(source.standard_normal(start.shape))
                change = (start + change + std * noise).to(start.dtype)
            model[name] = change.clamp_min(0) if name.endswith("running_var") else change
        return replace(server, model={name: model[name] for name in server.model})


def clipped_change(state: State, start: State, clip: float) -> dict[str, Tensor]:
    """Take the change of all floating-point tensors, shrunk to a norm of `clip` if it is longer.

    Returns:
        Changes in float64, and the other tensors of `state` as they are.
    """
    changes = {
        name: tensor.to(torch.float64) - start[name] if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    norm = math.sqrt(
        sum(float(c.square().sum()) for c in changes.values() if c.is_floating_point())
    )
    scale = clip / max(norm, clip)
    return {n: c * scale if c.is_floating_point() else c for n, c in changes.items()}
