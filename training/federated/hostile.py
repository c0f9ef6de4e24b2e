"""Simulated trouble, for studies of robustness: clients that are not asked, fail to report, or lie."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from cache_schema.errors import InputError
from training.config import TrainConfig
from training.federated.aggregate import State, Update
from training.seeds import generator

SELECTION, DROPOUT, LIARS, LIES = range(2**31, 2**31 + 4)
"""First words of their random streams; those of training begin with a round, which is smaller."""


@dataclass(frozen=True)
class Turnout:
    """Who takes part in a round.

    Attributes:
        present: Clients that train and report, ascending.
        absent: Clients that were asked and fail to report.
    """

    present: tuple[int, ...]
    absent: tuple[int, ...]


def draw_turnout(members: Sequence[int], round_number: int, config: TrainConfig) -> Turnout:
    """Draw who is asked to train in a round, and who of them fails to report.

    `config.fraction` of the members is asked, at least one, without replacement. Each of them is lost
    with probability `config.dropout_rate`; if all are, the one that was nearest to reporting does.
    """
    num_asked = max(1, round(config.fraction * len(members)))
    order = torch.randperm(len(members), generator=generator(config.seed, SELECTION, round_number))
    asked = sorted(members[index] for index in order[:num_asked].tolist())
    luck = torch.rand(len(asked), generator=generator(config.seed, DROPOUT, round_number))
    reports = luck >= config.dropout_rate
    reports[luck.argmax()] = True
    present = tuple(k for k, is_there in zip(asked, reports.tolist(), strict=True) if is_there)
    return Turnout(present, tuple(k for k in asked if k not in present))


@dataclass(frozen=True)
class Liars:
    """Clients whose updates are falsified on their way out, the same in every round.

    Attributes:
        kind: A key of `LIES_BY_KIND`.
        clients: Who they are.
        seed: Of the run.
        scale: How many times as large as the honest change a lie is; by default what `DEFAULT_SCALES` says.
    """

    kind: str
    clients: frozenset[int]
    seed: int
    scale: float | None = None

    def falsify(self, update: Update, model: State, round_number: int) -> Update:
        """Replace a liar's network by a lie; leave those of the others as they are.

        Args:
            update: What the client has trained.
            model: Where it started from.
            round_number: From 1.
        """
        if update.client not in self.clients:
            return update
        lie, source = (
            LIES_BY_KIND[self.kind],
            generator(self.seed, LIES, round_number, update.client),
        )
        scale = DEFAULT_SCALES[self.kind] if self.scale is None else self.scale
        # In an order of its own: that of the tensors depends on how the network travelled.
        lies = {
            name: lie(model[name], tensor, scale, source)
            for name, tensor in sorted(update.state.items())
            if tensor.is_floating_point()
        }
        return replace(update, state={**update.state, **lies})


def _flip(start: Tensor, trained: Tensor, scale: float, _: torch.Generator) -> Tensor:
    return start - scale * (trained - start)


def _add_noise(start: Tensor, trained: Tensor, scale: float, source: torch.Generator) -> Tensor:
    noise = torch.randn(start.shape, generator=source).to(start.dtype)
    return start + noise * scale * (trained - start).square().mean().sqrt()


def _break(start: Tensor, _: Tensor, __: float, ___: torch.Generator) -> Tensor:
    return torch.full_like(start, torch.nan)


LIES_BY_KIND: Final[dict[str, Callable[[Tensor, Tensor, float, torch.Generator], Tensor]]] = {
    "sign-flip": _flip,
    "noise": _add_noise,
    "nan": _break,
}
"""What becomes of each floating-point tensor: `sign-flip` sends the change with the opposite sign,
`noise` a Gaussian one instead, `nan` no number at all."""

DEFAULT_SCALES: Final = {"sign-flip": 1.0, "noise": 10.0, "nan": 1.0}
"""How many times as large as the honest change, where nobody says otherwise."""


def choose_liars(members: Sequence[int], config: TrainConfig) -> Liars:
    """Draw the liars of a run, from `config.byzantine` such as `sign-flip:2` or `sign-flip:2:4`.

    Raises:
        InputError: If there are to be more of them than clients.
    """
    if config.byzantine is None:
        return Liars("sign-flip", frozenset(), config.seed)
    kind, count, *scale = config.byzantine.split(":")
    if int(count) > len(members):
        raise InputError(f"--byzantine {config.byzantine}: there are {len(members)} clients")
    order = torch.randperm(len(members), generator=generator(config.seed, LIARS))
    chosen = frozenset(members[index] for index in order[: int(count)].tolist())
    return Liars(kind, chosen, config.seed, *map(float, scale))
