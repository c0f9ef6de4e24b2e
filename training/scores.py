"""Scores of cases, as an evaluation keeps and summarises them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cache_schema.leakage import describe_data
from cache_schema.manifest import LeakageRecord
from cache_schema.vocabulary import COHORTS, REGIONS, Cohort
from training.metrics import DEFAULT_CONVENTION, METRICS, Scores
from training.statistics import defined_mean, summarise

Summary = dict[str, dict[str, Any]]
"""By test set, a cohort or `all`: `cases`, and for each metric and region (or `average`) its sample."""


@dataclass(frozen=True)
class Scoring:
    """How a network is asked and its answers are scored.

    Attributes:
        convention: A key of `training.metrics.CONVENTIONS`.
        tta: Average the network's probabilities over flips of the slices.
        postprocess_et: Fewer enhancing voxels than this in a case become necrosis.
        batch_size: Slices at a time; that of the run's training by default.
    """

    convention: str = DEFAULT_CONVENTION
    tta: bool = False
    postprocess_et: int = 0
    batch_size: int | None = None


@dataclass(frozen=True)
class CaseScore:
    """Every metric of every region of one case.

    Attributes:
        case_id: Name of the scan session.
        patient_id: Name of the person.
        cohort: Archive that it comes from.
        values: By metric, in the order of `METRICS`, then region; NaN where a convention has no value.
    """

    case_id: str
    patient_id: str
    cohort: Cohort
    values: Scores


@dataclass(frozen=True)
class Evaluation:
    """Scores of a test set.

    Attributes:
        scores: One for each test case.
        leakage: Test patients that were also trained on; goes with the scores wherever they go.
        convention: How cases are scored.
        round: After which the weights were saved; 0 for the untrained network.
        manifest: Digest of the cache's manifest.
        tta: Whether probabilities were averaged over flips.
        postprocess_et: Fewer enhancing voxels than this in a case were made necrosis; 0 for none.
        is_synthetic: Whether the cache holds cases that `prep phantom` made; False also if nobody knows.
            No published score may stand beside such scores.
    """

    scores: tuple[CaseScore, ...]
    leakage: LeakageRecord
    convention: str
    round: int
    manifest: str
    tta: bool = False
    postprocess_et: int = 0
    is_synthetic: bool = False

    @property
    def rules(self) -> tuple[str, bool, int]:
        """What must be the same for two networks' scores to be compared."""
        return self.convention, self.tta, self.postprocess_et

    def describe_data(self, cohort: Cohort | None = None) -> str:
        """Say in a line what to know of the test patients, beside every score."""
        return describe_data(self.leakage, cohort, is_synthetic=self.is_synthetic)

    def means(self) -> dict[str, dict[str, float]]:
        """Average the Dice of each region over the cases of each cohort, and over `all` cases."""
        return {name: average_dice(scores) for name, scores in self.groups().items()}

    def summary(self, seed: int = 0) -> Summary:
        """Summarise each metric over the cases of each cohort, and over `all` cases.

        Args:
            seed: Of the bootstrap.
        """
        return {name: _summary(scores, seed) for name, scores in self.groups().items()}

    def groups(self) -> dict[str, list[CaseScore]]:
        """Sort the scores by cohort, and put `all` together."""
        groups: dict[str, list[CaseScore]] = {
            cohort: [score for score in self.scores if score.cohort == cohort] for cohort in COHORTS
        }
        groups["all"] = list(self.scores)
        return {name: scores for name, scores in groups.items() if scores}


def average_dice(scores: Sequence[CaseScore]) -> dict[str, float]:
    """Average the Dice of each region over some cases, without NaN, and those averages: `mean`."""
    means = {r: defined_mean([score.values["dice"][r] for score in scores]) for r in REGIONS}
    return {**means, "mean": defined_mean(list(means.values())), "cases": len(scores)}


def _summary(scores: Sequence[CaseScore], seed: int) -> dict[str, Any]:
    patients = [score.patient_id for score in scores]
    summary: dict[str, Any] = {"cases": len(scores)}
    for metric in METRICS:
        table = np.array([[score.values[metric][region] for region in REGIONS] for score in scores])
        samples = summarise(table, patients, seed=seed)
        columns = zip((*REGIONS, "average"), samples, strict=True)
        summary[metric] = {name: asdict(sample) for name, sample in columns}
    return summary


def describe_scoring(evaluation: Evaluation) -> dict[str, Any]:
    """Tell what must be the same for scores to be compared, for a JSON document."""
    return {
        "convention": evaluation.convention,
        "manifest": evaluation.manifest,
        "postprocess_et": evaluation.postprocess_et,
        "round": evaluation.round,
        "tta": evaluation.tta,
    }


def summary_means(summary: Summary) -> dict[str, dict[str, float]]:
    """Pick the mean Dice of each test set from a summary, in the form of `Evaluation.means`."""
    keys = {**{region: region for region in REGIONS}, "mean": "average"}
    return {
        name: {key: group["dice"][column]["mean"] for key, column in keys.items()}
        | {"cases": group["cases"]}
        for name, group in summary.items()
    }
