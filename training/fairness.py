"""How evenly a model serves the clients that trained it: its scores on their own training cases."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cache_schema.documents import places_of, read_object
from cache_schema.errors import InputError
from cache_schema.manifest import Manifest, digest
from cache_schema.vocabulary import REGIONS
from training.data import VolumeDataset
from training.evaluate import CaseDone, evaluate_dataset
from training.score_files import (
    COLUMNS,
    EVALUATION_NAME,
    IDENTITY,
    UNTRAINED_NAME,
    ScoresDocument,
    score_cells,
    write_document,
    write_table,
)
from training.scores import CaseScore, Evaluation, Scoring, average_dice, describe_scoring

_log = logging.getLogger(__name__)

CLIENTS_PREFIX: Final = "clients-"

DICE_KEYS: Final = (*REGIONS, "mean")

TRAINED_ON: Final = (
    "these are the clients' own training cases, which the model was trained on: they compare clients "
    "and say nothing of new patients"
)


@dataclass(frozen=True)
class ClientEvaluation:
    """Scores of every client's training cases; never to be mixed with those of a test set.

    Attributes:
        evaluation: Of all training cases.
        owners: Client of each of its cases.
    """

    evaluation: Evaluation
    owners: tuple[int, ...]

    def clients(self) -> dict[int, dict[str, float]]:
        """Average the Dice of each client's cases: by region, and their `mean`."""
        scores: dict[int, list[CaseScore]] = {owner: [] for owner in sorted(set(self.owners))}
        for owner, score in zip(self.owners, self.evaluation.scores, strict=True):
            scores[owner].append(score)
        return {client: average_dice(cases) for client, cases in scores.items()}


@dataclass(frozen=True)
class Spread:
    """How the mean Dice of clients, each counted once whatever its size, spreads.

    Attributes:
        mean: Over clients.
        standard_deviation: Over clients, which are all there are: their number divides, not one less.
        worst: Of any client.
        worst_client: Whose that is.
    """

    mean: float
    standard_deviation: float
    worst: float
    worst_client: int


def spread_over_clients(clients: Mapping[int, Mapping[str, float]]) -> dict[str, Spread | None]:
    """Summarise clients' mean Dice for each region and for `mean`; None if no client has a value.

    Mean, deviation and worst over clients are how Li et al. (2020), arXiv:1905.10497, measure fairness.
    """
    return {key: _spread_of({c: means[key] for c, means in clients.items()}) for key in DICE_KEYS}


def _spread_of(dice: Mapping[int, float]) -> Spread | None:
    defined = {client: value for client, value in dice.items() if not np.isnan(value)}
    if not defined:
        return None
    values = list(defined.values())
    worst = min(defined, key=lambda client: defined[client])
    return Spread(float(np.mean(values)), float(np.std(values)), defined[worst], worst)


def evaluate_clients(
    run: Path,
    cache: Path,
    *,
    scoring: Scoring,
    untrained: bool = False,
    device: str = "auto",
    on_case: CaseDone,
) -> ClientEvaluation:
    """Score a run on the training cases of every client, one case in memory at a time.

    Args:
        run: Folder that `train fed` wrote.
        cache: The cache that it was trained on.
        scoring: How.
        untrained: Score the network as it was before the first round instead.
        device: Where to compute.
        on_case: Told each case's id and the number of cases.

    Raises:
        InputError: If run or cache cannot be used, or do not belong together.
    """
    dataset = VolumeDataset(cache, split="train")
    evaluation = evaluate_dataset(
        run,
        cache,
        dataset,
        scoring=scoring,
        untrained=untrained,
        device=device,
        on_case=on_case,
    )
    owners = tuple(case.client for case in dataset.cases if case.client is not None)
    return ClientEvaluation(evaluation, owners)


def write_client_evaluation(run: Path, result: ClientEvaluation) -> tuple[Path, Path]:
    """Save the scores of clients' training cases in files of their own.

    Returns:
        A CSV file with a line for each case, and a JSON file with the means of each client.
    """
    name = EVALUATION_NAME if result.evaluation.round else UNTRAINED_NAME
    table, summary = (run / f"{CLIENTS_PREFIX}{name}.{kind}" for kind in ("csv", "json"))
    rows = [
        [str(owner), *score_cells(score)]
        for owner, score in zip(result.owners, result.evaluation.scores, strict=True)
    ]
    write_table(table, ("client", *IDENTITY, *COLUMNS), rows)
    write_document(summary, _document(result))
    return table, summary


class _Means(BaseModel):
    model_config = ConfigDict(strict=True)

    cases: Annotated[int, Ge(1)]
    dice: dict[Literal["ET", "TC", "WT", "mean"], float | None] = Field(min_length=len(DICE_KEYS))


class _Spread(BaseModel):
    model_config = ConfigDict(strict=True)

    mean: float
    standard_deviation: float
    worst: float
    worst_client: int


class _Document(ScoresDocument):
    """What is read of a run's scores on its clients' training cases."""

    clients: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], _Means] = Field(min_length=1)
    spread: dict[Literal["ET", "TC", "WT", "mean"], _Spread | None] = Field(
        min_length=len(DICE_KEYS)
    )


def read_client_evaluation(run: Path, manifest: Manifest) -> dict[str, Any] | None:
    """Read the means of each client that `write_client_evaluation` saved.

    Returns:
        The document; None if there is none, or it is that of another cache, which is said.

    Raises:
        InputError: If it is damaged.
    """
    path = run / f"{CLIENTS_PREFIX}{EVALUATION_NAME}.json"
    if not path.exists():
        return None
    advice = "score the clients again with `train eval --clients`"
    document = read_object(path, advice)
    try:
        _Document.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{path} is damaged: {places_of(error)}; {advice}") from error
    if document["manifest"] != digest(manifest):
        _log.warning("%s holds scores on another cache: they are left out", path)
        return None
    return document


def _document(result: ClientEvaluation) -> dict[str, Any]:
    clients = result.clients()
    spread = spread_over_clients(clients)
    return {
        **describe_scoring(result.evaluation),
        "clients": {
            str(client): {
                "cases": means["cases"],
                "dice": {key: means[key] for key in DICE_KEYS},
            }
            for client, means in clients.items()
        },
        "note": TRAINED_ON,
        "synthetic": result.evaluation.is_synthetic,
        "spread": {key: found and asdict(found) for key, found in spread.items()},
    }
