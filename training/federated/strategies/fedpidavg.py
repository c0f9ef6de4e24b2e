"""FedPIDAvg: weights from a client's size, the drop of its loss and the sum of its last losses."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Final, final

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from training.federated.aggregate import Server, State, Update
from training.federated.blend import Weights, blend
from training.federated.strategy import Strategy

WINDOW: Final = 6
"""Losses of a client that are summed."""

OUTLYING: Final = 2
"""Times the mean size: a larger client is an outlier."""

REST: Final = 3
"""An outlier takes part in the first of so many rounds."""


@final
@dataclass(frozen=True)
class FedPIDAvg(Strategy):
    r"""Averaging after the PID controller, Mächler et al. (2023), arXiv:2304.12117.

    $$ w^{r+1} = \sum_j \Big( \alpha \frac{n_j}{n} + \beta \frac{k_j}{\sum_i k_i}
    + \gamma \frac{m_j}{\sum_i m_i} \Big) w_j,
    \qquad k_j = \max(0, c_j^{r-1} - c_j^r), \quad m_j = \max(0, \sum_{l=0}^{5} c_j^{r-l}) $$

    with $c_j$ the mean training loss of client j. What the paper leaves open is ours:

    - A loss that rose counts as no drop; where no loss fell, the share of the drops goes by numbers
      of examples, and so does that of the sums where all are 0.
    - A client's rounds are those that it took part in: one that comes back after an absence is
      compared with its own last loss, and its sum goes over its own last six.
    - A client's first update has the weight of FedAvg, $n_j / n$, and the formula shares out what is
      left among the others. So the first round is FedAvg.
    - Shares are divided by their sum.

    The paper takes clients' sizes as Poisson distributed and uses outliers less often. `poisson` is
    our reading of this, not the paper's rule, which we have not seen: let $\lambda$ be the mean of the
    sizes that are known before a round. A Poisson variable exceeds $2 \lambda$ with a probability
    below $e^{-0.38 \lambda}$ (Chernoff's bound), so a client above that is an outlier, and left out of
    the aggregation but in rounds 1, 4, 7 and so on. Its losses are remembered all the same. Where
    nobody but outliers reports, their weights are those of FedAvg.

    The server keeps the last six losses of every client, newest last, as `losses/<client>`, and its
    number of examples as `size/<client>`.

    Attributes:
        alpha: Share of the numbers of examples, the proportional term.
        beta: Share of the drops, the derivative term.
        gamma: Share of the sums, the integral term.
        poisson: Leave outlying clients out of two rounds of three.
    """

    alpha: Annotated[float, Gt(0), Le(1)] = 0.45
    beta: Annotated[float, Ge(0), Le(1)] = 0.45
    gamma: Annotated[float, Ge(0), Le(1)] = 0.1
    poisson: bool = False

    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average the networks by examples, drops and sums of losses."""
        largest = self._largest_regular(server)
        memory = dict(server.memory)

        def terms() -> Iterator[tuple[Weights, State]]:
            for update in updates:
                size, key = float(update.num_examples), f"losses/{update.client}"
                losses = _remember(memory.get(key), update.loss)
                memory[key] = losses
                memory[f"size/{update.client}"] = torch.tensor(size, dtype=torch.float64)
                yield _weigh(size, losses, is_resting=size > largest), update.state

        model = blend(terms(), self._shares)
        return replace(server, model=model, memory=memory)

    def _largest_regular(self, server: Server) -> float:
        sizes = [float(size) for key, size in server.memory.items() if key.startswith("size/")]
        if not (self.poisson and sizes) or server.round % REST == 0:
            return float("inf")
        return OUTLYING * sum(sizes) / len(sizes)

    def _shares(self, totals: Weights) -> Weights:
        new, old = totals.get("new", 0.0), totals.get("size", 0.0)
        if not new + old:
            return {"resting": 1.0}
        known = old / (new + old)
        unit = known / (self.alpha + self.beta + self.gamma)
        drop = self.beta * unit if totals.get("drop") else 0.0
        total = self.gamma * unit if totals.get("sum") else 0.0
        return {"new": 1 - known, "size": known - drop - total, "drop": drop, "sum": total}


def _remember(losses: Tensor | None, loss: float) -> Tensor:
    newest = torch.tensor([loss], dtype=torch.float64)
    return newest if losses is None else torch.cat((losses, newest))[-WINDOW:]


def _weigh(size: float, losses: Tensor, *, is_resting: bool) -> Weights:
    if is_resting:
        return {"resting": size}
    if len(losses) == 1:
        return {"new": size}
    drop = float(losses[-2] - losses[-1])
    return {"size": size, "drop": max(0.0, drop), "sum": max(0.0, float(losses.sum()))}
