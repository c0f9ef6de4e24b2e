"""The strategies that `--strategy` knows."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from cache_schema.errors import InputError
from training.federated.strategies.cyclic import Cyclic
from training.federated.strategies.dp_fedavg import DPFedAvg
from training.federated.strategies.fedadagrad import FedAdagrad
from training.federated.strategies.fedadam import FedAdam
from training.federated.strategies.fedavg import FedAvg
from training.federated.strategies.fedavgm import FedAvgM
from training.federated.strategies.fedbn import FedBN
from training.federated.strategies.fedcostwavg import FedCostWAvg
from training.federated.strategies.fednova import FedNova
from training.federated.strategies.fedpidavg import FedPIDAvg
from training.federated.strategies.fedprox import FedProx
from training.federated.strategies.fedyogi import FedYogi
from training.federated.strategies.krum import Krum
from training.federated.strategies.median import Median
from training.federated.strategies.scaffold import Scaffold
from training.federated.strategies.topk_mean import TopKMean
from training.federated.strategies.trimmed_mean import TrimmedMean
from training.federated.strategy import Strategy

STRATEGIES: Final[dict[str, type[Strategy]]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "fednova": FedNova,
    "scaffold": Scaffold,
    "fedbn": FedBN,
    "cyclic": Cyclic,
    "fedcostwavg": FedCostWAvg,
    "fedpidavg": FedPIDAvg,
    "median": Median,
    "trimmed-mean": TrimmedMean,
    "krum": Krum,
    "topk-mean": TopKMean,
    "dp-fedavg": DPFedAvg,
}
"""Every strategy by its name on the command line."""


def make_strategy(name: str, options: Mapping[str, str] | None = None) -> Strategy:
    """Make a strategy.

    Args:
        name: A key of `STRATEGIES`.
        options: Hyper-parameters as typed, such as `{"mu": "0.01"}`; the rest have their defaults.

    Raises:
        InputError: If there is no such strategy or hyper-parameter, or a value is not allowed.
    """
    if name not in STRATEGIES:
        raise InputError(
            f"--strategy {name}: unknown; choose one of {', '.join(sorted(STRATEGIES))}"
        )
    kind: Any = STRATEGIES[name]
    hints = get_type_hints(kind, include_extras=True)
    own = {field.name: (hints[field.name], field.default) for field in fields(kind)}
    rules = ConfigDict(extra="forbid", allow_inf_nan=False)
    model = create_model(name, __config__=rules, **own)  # type: ignore[call-overload]
    try:
        values = model.model_validate(dict(options or {})).model_dump()
    except ValidationError as error:
        problems = "; ".join(f"{p['loc'][0]}: {p['msg']}" for p in error.errors())
        known = ", ".join(own) or "none"
        raise InputError(
            f"--strategy-option of {name}: {problems}; it has these: {known}"
        ) from error
    strategy: Strategy = kind(**values)
    return strategy
