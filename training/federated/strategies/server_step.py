"""What strategies share that move the global model by a step of their own, instead of to the clients' mean."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from training.federated.aggregate import Server, State, Update, weighted_mean


def changes(server: Server, state: State) -> dict[str, Tensor]:
    """Tell how far a client's parameters moved, in float64; its buffers stay what they are.

    Means of such networks hold the mean change exactly: a change is a thousand times smaller than
    a weight, and a difference of means that were rounded to float32 would lose half its digits.

    Args:
        server: As the client found it.
        state: The client's network.
    """
    return {
        name: tensor.double() - server.model[name].double() if name in server.trainable else tensor
        for name, tensor in state.items()
    }


def step_from(server: Server, mean: State, steps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move the parameters of the global model; buffers become the clients' mean.

    Args:
        server: As the clients found it.
        mean: Holds the buffers.
        steps: How far each parameter moves, in float64.
    """
    return {
        name: (old.double() + steps[name]).to(old.dtype) if name in steps else mean[name]
        for name, old in server.model.items()
    }


def recall(memory: State, name: str, otherwise: Tensor) -> Tensor:
    """Look up what was kept after earlier rounds, in float64, or take what holds before the first."""
    return memory[name].double() if name in memory else otherwise


def stored(value: Tensor, parameter: Tensor) -> Tensor:
    """Round what is kept for a parameter to its type, but never below float32."""
    return value.to(torch.promote_types(parameter.dtype, torch.float32))


def adaptive_round(
    server: Server,
    updates: Iterable[Update],
    *,
    eta: float,
    tau: float,
    beta1: float,
    next_variance: Callable[[Tensor, Tensor], Tensor],
) -> Server:
    r"""Carry out a round of adaptive federated optimisation, Reddi et al. (2021), arXiv:2003.00295.

    Algorithm 2: the mean change of the clients is a gradient, and the server takes a step with it,

    $$ \Delta = \sum_k \frac{n_k}{n} (w_k - w), \quad m \leftarrow \beta_1 m + (1 - \beta_1) \Delta,
    \quad w \leftarrow w + \eta \frac{m}{\sqrt v + \tau} $$

    Before the first round $m = 0$ and $v = \tau^2$, the smallest value that the algorithm allows;
    it has no correction of bias. Statistics of BatchNorm take no part: such a step could carry a
    variance below zero, and every prediction after it would be NaN.

    Args:
        server: As the clients found it.
        updates: Of the round.
        eta: Step size.
        tau: Below changes of this size, steps shrink in proportion.
        beta1: Share of the old momentum.
        next_variance: From $v$ and $\Delta^2$ to the next $v$.

    Raises:
        ValueError: If there is no update.
    """
    mean = weighted_mean((float(u.num_examples), changes(server, u.state)) for u in updates)
    memory, steps = {}, {}
    for name, parameter in server.model.items():
        if name not in server.trainable:
            continue
        change = mean[name]
        momentum = recall(server.memory, f"momentum/{name}", torch.zeros_like(change))
        variance = recall(server.memory, f"variance/{name}", torch.full_like(change, tau**2))
        momentum = beta1 * momentum + (1.0 - beta1) * change
        variance = next_variance(variance, change.square())
        steps[name] = eta * momentum / (variance.sqrt() + tau)
        memory[f"variance/{name}"] = stored(variance, parameter)
        if beta1 > 0.0:
            memory[f"momentum/{name}"] = stored(momentum, parameter)
    return replace(server, model=step_from(server, mean, steps), memory=memory)
