"""Averages whose weights are known only when every update has been seen."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from training.federated.aggregate import State, add_scaled, weighted_mean

Weights = Mapping[str, float]
"""Numbers, none of them negative, by the name of a term."""


def blend(
    updates: Iterable[tuple[Weights, State]], shares: Callable[[Weights], Weights]
) -> dict[str, Tensor]:
    r"""Average networks by a sum of several weightings, in one pass.

    $$ \bar w = \sum_t \lambda_t \frac{\sum_k u_{tk} w_k}{\sum_k u_{tk}} $$

    One running sum is held for each term, so memory does not grow with the number of clients. As in
    `weighted_mean` sums are float64, every tensor comes back in its own type, and of integer buffers
    the largest is kept.

    Args:
        updates: Weights u of each network in the terms that it has a part in, and the network.
        shares: Told the sum of every term's weights, gives its share; all shares add up to 1, and a
            term whose sum is 0 has none.

    Returns:
        The mean.

    Raises:
        ValueError: If there is no update, or names differ.
    """
    totals: dict[str, float] = {}
    sums: dict[str, dict[str, Tensor]] = {}
    counts: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for weights, state in updates:
        if dtypes and state.keys() != dtypes.keys():
            raise ValueError("updates have different tensors")
        dtypes = {name: tensor.dtype for name, tensor in state.items()}
        for name, tensor in state.items():
            if not tensor.is_floating_point():
                counts[name] = torch.maximum(counts.get(name, tensor), tensor)
        for term, weight in weights.items():
            totals[term] = totals.get(term, 0.0) + weight
            if weight > 0:
                _add(sums.setdefault(term, {}), weight, state)
    if not sums:
        raise ValueError("there is no update to aggregate")
    means = (
        (share, {name: total / totals[term] for name, total in sums[term].items()} | counts)
        for term, share in shares(totals).items()
        if share > 0
    )
    mean = weighted_mean(means)
    return {name: mean[name].to(dtype) for name, dtype in dtypes.items()}


def _add(sums: dict[str, Tensor], weight: float, state: State) -> None:
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        if name not in sums:
            sums[name] = torch.zeros(tensor.shape, dtype=torch.float64)
        add_scaled(sums[name], tensor, weight)
