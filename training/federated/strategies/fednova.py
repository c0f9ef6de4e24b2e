"""FedNova: clients that took more steps do not pull harder."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import final

import torch

from training.federated.aggregate import Server, State, Update, weighted_mean
from training.federated.strategies.server_step import changes, step_from
from training.federated.strategy import Strategy

_NUM_STEPS = "/num_steps"  # a slash first: no tensor of a network is called that


@final
@dataclass(frozen=True)
class FedNova(Strategy):
    r"""Normalised averaging, Wang et al. (2020), arXiv:2007.07481.

    A client with more slices takes more steps in its epochs and goes further; together with its
    larger weight it counts twice. So changes are compared a step,

    $$ d_k = \frac{w - w_k}{\tau_k}, \quad \tau_{eff} = \sum_k p_k \tau_k, \quad
    w \leftarrow w - \tau_{eff} \sum_k p_k d_k, \quad p_k = \frac{n_k}{n} $$

    over the clients that take part, where $\tau_k$ is the number of a client's optimiser steps. That is the
    paper's rule for plain gradient descent; we use it for Adam, whose steps are of much the same
    length, and call it an approximation there. Clients with equal $\tau_k$ give FedAvg. A client
    without any step has not moved: $d_k = 0$. Buffers are averaged as in FedAvg. It has no
    hyper-parameters and keeps nothing between rounds.
    """

    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average changes a step, and go the mean number of steps."""
        mean = weighted_mean(
            (float(update.num_examples), _change_a_step(server, update)) for update in updates
        )
        num_steps = mean.pop(_NUM_STEPS)
        steps = {name: num_steps * mean[name] for name in mean if name in server.trainable}
        return replace(server, model=step_from(server, mean, steps))


def _change_a_step(server: Server, update: Update) -> State:
    state = changes(server, update.state)
    for name in state.keys() & server.trainable:
        state[name] = state[name] / max(update.num_steps, 1)
    return {**state, _NUM_STEPS: torch.tensor(float(update.num_steps), dtype=torch.float64)}
