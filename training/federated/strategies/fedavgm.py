"""FedAvgM: the server goes on in the direction of earlier rounds."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, final

import torch
from annotated_types import Ge, Gt, Lt

from training.federated.aggregate import Server, Update, weighted_mean
from training.federated.strategies.server_step import changes, recall, step_from, stored
from training.federated.strategy import Strategy


@final
@dataclass(frozen=True)
class FedAvgM(Strategy):
    r"""Federated averaging with server momentum, Hsu et al. (2019), arXiv:1909.06335.

    $$ v \leftarrow \beta v + \sum_k \frac{n_k}{n} (w_k - w), \quad w \leftarrow w + \gamma v $$

    Buffers are averaged as in FedAvg. The server keeps $v$, one tensor a parameter; a client that is
    absent has no part in the round's mean, and the parts that it had before fade like all others.

    Attributes:
        momentum: $\beta$; 0 with a learning rate of 1 is FedAvg. Clients that always pull the same way
            move the model $1 / (1 - \beta)$ times as far as they moved themselves, and the direction
            of a round lasts about as many rounds. Values of 0.9 and above suit hundreds of rounds; in
            tens of rounds they overshoot and have no time to come back, hence the default.
        learning_rate: $\gamma$.
    """

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.5
    learning_rate: Annotated[float, Gt(0)] = 1.0

    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Add the mean change to the velocity and move by it."""
        mean = weighted_mean((float(u.num_examples), changes(server, u.state)) for u in updates)
        memory, steps = {}, {}
        for name, parameter in server.model.items():
            if name not in server.trainable:
                continue
            old = recall(server.memory, f"velocity/{name}", torch.zeros_like(mean[name]))
            velocity = self.momentum * old + mean[name]
            steps[name] = self.learning_rate * velocity
            memory[f"velocity/{name}"] = stored(velocity, parameter)
        return replace(server, model=step_from(server, mean, steps), memory=memory)
