"""A run's model on the test set of every cohort, scored per case in 3D."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from torch import nn

from cache_schema.errors import InputError
from cache_schema.manifest import LeakageRecord, digest
from cache_schema.vocabulary import COHORTS, REGIONS, Cohort
from training.checkpoint import load_weights
from training.config import TrainConfig, read_config
from training.data import VolumeDataset
from training.device import choose_device
from training.metrics import mean_dice, region_dice
from training.models.initial import initial_model, random_model
from training.predict import predict_labels
from training.provenance import require_same_cache

CONVENTION: Final = "brats2020"
"""Empty truths score 1 if the prediction is empty too, else 0; no case is dropped."""

EVALUATION_NAME: Final = "evaluation"
UNTRAINED_NAME: Final = "untrained"


@dataclass(frozen=True)
class CaseScore:
    """Dice of every region of one test case."""

    case_id: str
    patient_id: str
    cohort: Cohort
    dice: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a test set.

    Attributes:
        scores: One for each test case.
        leakage: Test patients that were also trained on; goes with the scores wherever they go.
        convention: How empty truths are scored.
        round: After which the weights were saved; 0 for the untrained network.
        manifest: Digest of the cache's manifest.
    """

    scores: tuple[CaseScore, ...]
    leakage: LeakageRecord
    convention: str
    round: int
    manifest: str

    def means(self) -> dict[str, dict[str, float]]:
        """Average the Dice of each region over the cases of each cohort, and over `all` cases."""
        groups: dict[str, list[CaseScore]] = {
            cohort: [score for score in self.scores if score.cohort == cohort] for cohort in COHORTS
        }
        groups["all"] = list(self.scores)
        return {name: _average(scores) for name, scores in groups.items() if scores}


def _average(scores: Sequence[CaseScore]) -> dict[str, float]:
    means = {r: float(np.mean([score.dice[r] for score in scores])) for r in REGIONS}
    return {**means, "mean": mean_dice(means), "cases": len(scores)}


def trained_model(run: Path, config: TrainConfig) -> tuple[nn.Module, int]:
    """Load the network of a run on the CPU, and the round after which it was saved.

    Raises:
        InputError: If the run has no weights, or they do not fit its network.
    """
    model = random_model(config)
    state, round_number = load_weights(run)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the weights of {run} do not fit its network ({reason})") from error
    return model, round_number


def evaluate(
    run: Path,
    cache: Path,
    *,
    untrained: bool = False,
    device: str = "auto",
    on_case: Callable[[str, int], None],
) -> Evaluation:
    """Score a run on a cache's test set, one case in memory at a time.

    Args:
        run: Folder that `train fed` wrote.
        cache: Folder that `prep partition` wrote.
        untrained: Score the network as it was before the first round instead.
        device: Where to compute.
        on_case: Told each case's id and the number of cases.

    Returns:
        Dice of every region and case.

    Raises:
        InputError: If run or cache cannot be used, do not belong together, or there is no test set.
    """
    config = read_config(run)
    dataset = VolumeDataset(cache, split="test")
    if len(dataset) == 0:
        raise InputError(f"{cache} has no test cases; prepare it with a larger --test-fraction")
    require_same_cache(run, cache, dataset.manifest)
    model, round_number = (initial_model(config), 0) if untrained else trained_model(run, config)
    model = model.to(choose_device(device))
    scores = []
    for index in range(len(dataset)):
        volume = dataset[index]
        prediction = predict_labels(
            model, volume.image, config.target, batch_size=config.batch_size
        )
        dice = region_dice(volume.label, prediction)
        scores.append(CaseScore(volume.case_id, volume.patient_id, volume.cohort, dice))
        on_case(volume.case_id, len(dataset))
    manifest = dataset.manifest
    return Evaluation(tuple(scores), manifest.leakage, CONVENTION, round_number, digest(manifest))


def write_evaluation(run: Path, evaluation: Evaluation) -> tuple[Path, Path]:
    """Save scores in a run's folder: a CSV line for each case, and a JSON summary.

    Returns:
        The two paths, `evaluation.*` for a trained network and `untrained.*` for one that is not.
    """
    name = EVALUATION_NAME if evaluation.round else UNTRAINED_NAME
    table, summary = run / f"{name}.csv", run / f"{name}.json"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "patient_id", "cohort", *(f"dice_{r}" for r in REGIONS)])
        for score in evaluation.scores:
            dice = [f"{score.dice[region]:.6f}" for region in REGIONS]
            writer.writerow([score.case_id, score.patient_id, score.cohort, *dice])
    document = {
        "convention": evaluation.convention,
        "leakage": evaluation.leakage.model_dump(),
        "manifest": evaluation.manifest,
        "means": evaluation.means(),
        "round": evaluation.round,
    }
    summary.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return table, summary


def read_means(run: Path, name: str) -> Mapping[str, Mapping[str, float]] | None:
    """Read the mean scores that `write_evaluation` saved, or None if there are none yet."""
    path = run / f"{name}.json"
    if not path.exists():
        return None
    means: Mapping[str, Mapping[str, float]] = json.loads(path.read_text(encoding="utf-8"))["means"]
    return means


def read_scores(run: Path) -> dict[str, dict[str, float]]:
    """Read the Dice of every region of each case, by case id; empty if none were saved."""
    path = run / f"{EVALUATION_NAME}.csv"
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {
            row["case_id"]: {region: float(row[f"dice_{region}"]) for region in REGIONS}
            for row in csv.DictReader(file)
        }
