"""Scores on disk: a CSV line for each case, and a JSON summary."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cache_schema.errors import InputError
from cache_schema.files import write_atomically
from cache_schema.manifest import Manifest, digest
from cache_schema.vocabulary import REGIONS
from training.metrics import METRICS
from training.scores import CaseScore, Evaluation, Summary, describe_scoring, summary_means
from training.statistics import NUM_RESAMPLES

EVALUATION_NAME: Final = "evaluation"
UNTRAINED_NAME: Final = "untrained"

IDENTITY: Final = ("case_id", "patient_id", "cohort")
COLUMNS: Final = tuple(f"{metric}_{region}" for metric in METRICS for region in REGIONS)


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
        "synthetic": evaluation.is_synthetic,
        "summary": evaluation.summary(seed),
    }
    write_document(summary, document)
    return table, summary


def score_cells(score: CaseScore) -> list[str]:
    """Write a case as the cells of a line: `IDENTITY`, then `COLUMNS`, empty where it is NaN."""
    values = [score.values[metric][region] for metric in METRICS for region in REGIONS]
    cells = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
    return [score.case_id, score.patient_id, score.cohort, *cells]


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Save a CSV file.

    Raises:
        InputError: If it cannot be written; an older one is still there.
    """
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    write_atomically(path, text.getvalue())


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Save a JSON file; NaN, which JSON lacks, becomes null.

    Raises:
        InputError: If it cannot be written; an older one is still there.
    """
    text = json.dumps(_replace(document, math.nan, None), indent=1, sort_keys=True) + "\n"
    write_atomically(path, text)


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


def load_evaluation(
    run: Path, manifest: Manifest, name: str = EVALUATION_NAME
) -> Evaluation | None:
    """Read back what `write_evaluation` saved of a run on this cache, or None if there is nothing."""
    document, scores = read_evaluation(run, name), read_scores(run, name)
    if document is None or not scores or document["manifest"] != digest(manifest):
        return None
    rules = {key: document[key] for key in ("convention", "manifest", "round")}
    extras = {key: document[key] for key in ("tta", "postprocess_et")}
    extras["is_synthetic"] = bool(manifest.synthetic)
    return Evaluation(scores=scores, leakage=manifest.leakage, **rules, **extras)


def read_summary(run: Path, name: str) -> Summary | None:
    """Read the summary of scores that `write_evaluation` saved, or None if there is none."""
    document = read_evaluation(run, name)
    return None if document is None else document["summary"]


def saved_means(run: Path) -> dict[str, dict[str, float]]:
    """Read the mean Dice that `write_evaluation` saved of a run, by test set and region.

    Raises:
        InputError: If there is none.
    """
    document = read_evaluation(run)
    if document is None:
        raise InputError(f"{run} has no scores; `train eval` makes them")
    return summary_means(document["summary"])


def untrained_means(run: Path, evaluation: Evaluation) -> dict[str, dict[str, float]] | None:
    """Read the mean Dice of a run's untrained network, or None if it was not scored in the same way."""
    document = read_evaluation(run, UNTRAINED_NAME)
    same = ("convention", "manifest", "postprocess_et", "tta")
    asked = describe_scoring(evaluation)
    if document is None or any(document.get(key) != asked[key] for key in same):
        return None
    return summary_means(document["summary"])


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
