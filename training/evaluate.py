"""A run's model on the test set of every cohort, scored per case in 3D."""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float64, UInt8
from torch import nn

from cache_schema.errors import InputError
from cache_schema.manifest import LeakageRecord, digest, read_manifest
from cache_schema.vocabulary import COHORTS, REGIONS, Cohort
from training.checkpoint import load_weights
from training.config import TrainConfig, read_config
from training.data import CaseVolume, VolumeDataset
from training.device import choose_device
from training.metrics import (
    CONVENTIONS,
    DEFAULT_CONVENTION,
    METRICS,
    Scores,
    score_case,
)
from training.models.initial import initial_model, random_model
from training.models.size import count_flops, count_parameters
from training.models.table import SLICE_SHAPE, VARIANTS
from training.predict import predict_labels
from training.provenance import require_same_cache
from training.statistics import NUM_RESAMPLES, defined_mean, summarise
from training.surface import Spacing

EVALUATION_NAME: Final = "evaluation"
UNTRAINED_NAME: Final = "untrained"

IDENTITY: Final = ("case_id", "patient_id", "cohort")
COLUMNS: Final = tuple(f"{metric}_{region}" for metric in METRICS for region in REGIONS)

Summary = dict[str, dict[str, Any]]
"""By test set, a cohort or `all`: `cases`, and for each metric and region (or `average`) its sample."""

CaseDone = Callable[[str, int], None]
"""Is told a case's id and the number of cases."""


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
    """

    scores: tuple[CaseScore, ...]
    leakage: LeakageRecord
    convention: str
    round: int
    manifest: str
    tta: bool = False
    postprocess_et: int = 0

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


def require_runs(runs: Sequence[Path], cache: Path) -> None:
    """Make sure that all runs can be scored on one cache, before the first of them is.

    Raises:
        InputError: If a folder is named twice, is no run, or was trained on another cache.
    """
    manifest = read_manifest(cache)
    for place, run in enumerate(runs):
        if run in runs[:place]:
            raise InputError(f"{run} is named twice")
        read_config(run)
        require_same_cache(run, cache, manifest)


def network_size(run: Path) -> tuple[int, int]:
    """Count the parameters of a run's network, and the FLOPs of one forward pass.

    Raises:
        InputError: If the folder is no run.
    """
    config = read_config(run)
    model = random_model(config)
    variants = VARIANTS.get(config.model)
    shape = variants[0].shape if variants else SLICE_SHAPE
    return count_parameters(model), count_flops(model, shape)


def evaluate(
    run: Path,
    cache: Path,
    *,
    scoring: Scoring | None = None,
    untrained: bool = False,
    device: str = "auto",
    on_case: CaseDone,
) -> Evaluation:
    """Score a run on a cache's test set, one case in memory at a time.

    Args:
        run: Folder that `train fed` wrote.
        cache: Folder that `prep partition` wrote.
        scoring: How; by default as BraTS 2020 did, without anything added to the network.
        untrained: Score the network as it was before the first round instead.
        device: Where to compute.
        on_case: Told each case's id and the number of cases.

    Returns:
        Every metric of every region and case.

    Raises:
        InputError: If run or cache cannot be used, do not belong together, or there is no test set.
    """
    dataset = VolumeDataset(cache, split="test")
    if len(dataset) == 0:
        raise InputError(f"{cache} has no test cases; prepare it with a larger --test-fraction")
    return evaluate_dataset(
        run,
        cache,
        dataset,
        scoring=scoring or Scoring(),
        untrained=untrained,
        device=device,
        on_case=on_case,
    )


def evaluate_dataset(
    run: Path,
    cache: Path,
    dataset: VolumeDataset,
    *,
    scoring: Scoring,
    untrained: bool,
    device: str,
    on_case: CaseDone,
) -> Evaluation:
    """Score a run on some cases of the cache that it was trained on; see `evaluate`.

    Raises:
        InputError: If run or cache cannot be used, or do not belong together.
    """
    _require_convention(scoring.convention)
    config = read_config(run)
    require_same_cache(run, cache, dataset.manifest)
    model, round_number = (initial_model(config), 0) if untrained else trained_model(run, config)
    model = model.to(choose_device(device))
    scores = []
    for index in range(len(dataset)):
        # Nothing but the scores outlives the call, so that no two cases are in memory.
        score = score_volume(model, dataset[index], config, scoring)
        scores.append(score)
        on_case(score.case_id, len(dataset))
    return Evaluation(
        tuple(scores),
        dataset.manifest.leakage,
        scoring.convention,
        round_number,
        digest(dataset.manifest),
        scoring.tta,
        scoring.postprocess_et,
    )


def _require_convention(name: str) -> None:
    if name not in CONVENTIONS:
        raise InputError(f"--convention {name}: known are {', '.join(CONVENTIONS)}")


def score_volume(
    model: nn.Module, volume: CaseVolume, config: TrainConfig, scoring: Scoring
) -> CaseScore:
    """Segment one case and score it as the whole volume that it was cut from."""
    prediction = predict_labels(
        model,
        volume.image,
        config.target,
        batch_size=scoring.batch_size or config.batch_size,
        tta=scoring.tta,
        postprocess_et=scoring.postprocess_et,
    )
    values = score_case(
        restore_volume(volume.label, volume),
        restore_volume(prediction, volume),
        spacing_mm(volume.affine),
        scoring.convention,
    )
    return CaseScore(volume.case_id, volume.patient_id, volume.cohort, values)


def restore_volume(
    label: UInt8[np.ndarray, "slice height width"], volume: CaseVolume
) -> UInt8[np.ndarray, "z x y"]:
    """Put the kept slices of a case back to their places; all others hold no brain and no tumour.

    What slices were padded with, where a cache has larger planes than the case, is cut off.
    """
    width, height, depth = volume.shape
    whole = np.zeros((depth, width, height), np.uint8)
    whole[volume.z] = label[:, :width, :height]
    return whole


def spacing_mm(affine: Float64[np.ndarray, "4 4"]) -> Spacing:
    """Measure the voxels of a restored volume along its axes: between slices first."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return z, x, y


def write_evaluation(run: Path, evaluation: Evaluation, *, seed: int = 0) -> tuple[Path, Path]:
    """Save scores in a run's folder: a CSV line for each case, and a JSON summary.

    Args:
        run: The folder.
        evaluation: Replaces what an earlier one left.
        seed: Of the bootstrap.

    Returns:
        The two paths, `evaluation.*` for a trained network and `untrained.*` for one that is not.
    """
    name = EVALUATION_NAME if evaluation.round else UNTRAINED_NAME
    table, summary = run / f"{name}.csv", run / f"{name}.json"
    write_table(table, (*IDENTITY, *COLUMNS), [score_cells(each) for each in evaluation.scores])
    document = {
        **describe_scoring(evaluation),
        "bootstrap": {"resamples": NUM_RESAMPLES, "seed": seed},
        "leakage": evaluation.leakage.model_dump(),
        "summary": evaluation.summary(seed),
    }
    write_document(summary, document)
    return table, summary


def describe_scoring(evaluation: Evaluation) -> dict[str, Any]:
    """Tell what must be the same for scores to be compared, for a JSON document."""
    return {
        "convention": evaluation.convention,
        "manifest": evaluation.manifest,
        "postprocess_et": evaluation.postprocess_et,
        "round": evaluation.round,
        "tta": evaluation.tta,
    }


def score_cells(score: CaseScore) -> list[str]:
    """Write a case as the cells of a line: `IDENTITY`, then `COLUMNS`, empty where it is NaN."""
    values = [score.values[metric][region] for metric in METRICS for region in REGIONS]
    cells = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
    return [score.case_id, score.patient_id, score.cohort, *cells]


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Save a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Save a JSON file; NaN, which JSON lacks, becomes null."""
    text = json.dumps(_replace(document, math.nan, None), indent=1, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8")


def _replace(node: Any, old: float | None, new: float | None) -> Any:  # noqa: ANN401 - any JSON
    """Replace the numbers of a document that are NaN, or those that are null, all through it."""
    if isinstance(node, Mapping):
        return {key: _replace(value, old, new) for key, value in node.items()}
    is_found = node is None if old is None else isinstance(node, float) and math.isnan(node)
    return new if is_found else node


def read_evaluation(run: Path, name: str = EVALUATION_NAME) -> dict[str, Any] | None:
    """Read all that `write_evaluation` says of a run besides single cases, or None if it says nothing.

    Args:
        run: Folder of the run.
        name: `evaluation` or `untrained`.

    Returns:
        The document; None also if it is that of an earlier release, or was cut off.
    """
    try:
        document: dict[str, Any] = json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(document.get("summary"), dict):
        return None
    document["summary"] = _replace(document["summary"], None, math.nan)
    return document


def read_summary(run: Path, name: str) -> Summary | None:
    """Read the summary of scores that `write_evaluation` saved, or None if there is none."""
    document = read_evaluation(run, name)
    return None if document is None else document["summary"]


def untrained_means(run: Path, evaluation: Evaluation) -> dict[str, dict[str, float]] | None:
    """Read the mean Dice of a run's untrained network, or None if it was not scored in the same way."""
    document = read_evaluation(run, UNTRAINED_NAME)
    same = ("convention", "manifest", "postprocess_et", "tta")
    asked = describe_scoring(evaluation)
    if document is None or any(document.get(key) != asked[key] for key in same):
        return None
    return summary_means(document["summary"])


def summary_means(summary: Summary) -> dict[str, dict[str, float]]:
    """Pick the mean Dice of each test set from a summary, in the form of `Evaluation.means`."""
    keys = {**{region: region for region in REGIONS}, "mean": "average"}
    return {
        name: {key: group["dice"][column]["mean"] for key, column in keys.items()}
        | {"cases": group["cases"]}
        for name, group in summary.items()
    }


def read_scores(run: Path, name: str = EVALUATION_NAME) -> tuple[CaseScore, ...]:
    """Read the scores of single cases; empty if none were saved.

    Args:
        run: Folder of the run.
        name: `evaluation` or `untrained`.

    Returns:
        One for each test case; NaN where the file has no value.
    """
    path = run / f"{name}.csv"
    if not path.exists():
        return ()
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(_parse(row) for row in csv.DictReader(file))


def _parse(row: Mapping[str, Any]) -> CaseScore:
    values = {m: {r: float(row.get(f"{m}_{r}") or "nan") for r in REGIONS} for m in METRICS}
    return CaseScore(row["case_id"], row["patient_id"], row["cohort"], values)
