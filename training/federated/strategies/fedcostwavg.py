"""FedCostWAvg: clients whose loss falls more count more."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Final, final

import torch
from annotated_types import Ge, Le

from training.federated.aggregate import Server, State, Update
from training.federated.blend import Weights, blend
from training.federated.strategy import Strategy

LARGEST_RATIO: Final = 1e6
"""Beyond it, or below its inverse, sums could overflow or vanish; it takes a loss of almost 0."""


@final
@dataclass(frozen=True)
class FedCostWAvg(Strategy):
    r"""Cost-weighted averaging, Mächler et al. (2021), arXiv:2111.08649.

    $$ w^{r+1} = \sum_j \Big( \alpha \frac{n_j}{n} + (1 - \alpha) \frac{k_j}{\sum_i k_i} \Big) w_j,
    \qquad k_j = \frac{c_j^{r-1}}{c_j^r} $$

    with $c_j$ the mean training loss of client j, in the round before and in this one. The paper does
    not say what a client without an earlier loss counts, so this is ours: its weight is that of
    FedAvg, $n_j / n$, and the formula shares out what is left among the others. So the first round is
    FedAvg. A client that was absent is compared with the last round that it took part in. A loss that
    is not positive has no ratio; who sends one counts as new. No loss counts as having fallen or
    risen more than a million times.

    The server keeps the last loss of every client, as `loss/<client>`.

    Attributes:
        alpha: The part of the weight that goes by numbers of examples.
    """

    alpha: Annotated[float, Ge(0), Le(1)] = 0.5

    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average the networks by examples and by how much the losses fell."""
        memory = dict(server.memory)

        def terms() -> Iterator[tuple[Weights, State]]:
            for update in updates:
                key = f"loss/{update.client}"
                ratio = _ratio(float(memory[key]), update.loss) if key in memory else None
                memory[key] = torch.tensor(update.loss, dtype=torch.float64)
                size = float(update.num_examples)
                weights = {"new": size} if ratio is None else {"size": size, "cost": ratio}
                yield weights, update.state

        model = blend(terms(), self._shares)
        return replace(server, model=model, memory=memory)

    def _shares(self, totals: Weights) -> Weights:
        new, old = totals.get("new", 0.0), totals.get("size", 0.0)
        known = old / (new + old)
        return {"new": 1 - known, "size": self.alpha * known, "cost": (1 - self.alpha) * known}


def _ratio(previous: float, present: float) -> float | None:
    if not (previous > 0 and present > 0):
        return None
    return min(max(previous / present, 1 / LARGEST_RATIO), LARGEST_RATIO)
