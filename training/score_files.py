"""Scores on disk: a CSV line for each case, and a JSON summary."""

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, ValidationError

from cache_schema.documents import digest_of, places_of, read_object, reason_of
from cache_schema.errors import InputError
from cache_schema.files import write_atomically
from cache_schema.manifest import Manifest, digest
from cache_schema.reading import read_text
from cache_schema.vocabulary import COHORTS, REGIONS
from training.metrics import METRICS
from training.scores import CaseScore, Evaluation, Summary, describe_scoring, summary_means
from training.statistics import NUM_RESAMPLES, defined_mean

EVALUATION_NAME: Final = "evaluation"
UNTRAINED_NAME: Final = "untrained"

SCORE_AGAIN: Final = "score the run again with `train eval`"
"""What to do about scores that cannot be used."""

_log = logging.getLogger(__name__)

DIGEST_KEY: Final = "summary_digest"
"""Of the summary, as it is saved; earlier releases wrote none."""

IDENTITY: Final = ("case_id", "patient_id", "cohort")
COLUMNS: Final = tuple(f"{metric}_{region}" for metric in METRICS for region in REGIONS)


class _Sample(BaseModel):
    """See `training.statistics.Sample`; null stands for NaN."""

    model_config = ConfigDict(strict=True)

    mean: float | None
    median: float | None
    low: float | None
    high: float | None
    count: Annotated[int, Ge(0)]


class ScoresDocument(BaseModel):
    """What is read of any document of scores: by which rules they are, and of what; it may say more."""

    model_config = ConfigDict(strict=True)

    convention: str
    manifest: str
    postprocess_et: Annotated[int, Ge(0)]
    round: Annotated[int, Ge(0)]
    tta: bool


class _Document(ScoresDocument):
    """What is read of a run's scores on the test set."""

    summary: dict[str, dict[str, Annotated[int, Ge(1)] | dict[str, _Sample]]]


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
    means = _replace(evaluation.summary(seed), math.nan, None)
    document = {
        **describe_scoring(evaluation),
        "bootstrap": {"resamples": NUM_RESAMPLES, "seed": seed},
        "leakage": evaluation.leakage.model_dump(),
        "synthetic": evaluation.is_synthetic,
        "summary": means,
        DIGEST_KEY: digest_of(means),
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
        The document; None also if it is that of an earlier release, or damaged, which is said.
    """
    try:
        return require_evaluation(run, name)
    except InputError as error:
        _log.warning("%s", error)
        return None


def require_evaluation(run: Path, name: str = EVALUATION_NAME) -> dict[str, Any] | None:
    """Read what `write_evaluation` says of a run besides single cases.

    Args:
        run: Folder of the run.
        name: `evaluation` or `untrained`.

    Returns:
        The document; None if there is none, or only that of an earlier release.

    Raises:
        InputError: If it is damaged.
    """
    path = run / f"{name}.json"
    if not path.exists():
        return None
    document = read_object(path, SCORE_AGAIN)
    if "summary" not in document and "means" in document:
        return None
    try:
        _Document.model_validate(document)
        _require_all_means(document["summary"])
        if DIGEST_KEY in document and document[DIGEST_KEY] != digest_of(document["summary"]):
            raise ValueError("its summary has changed since it was written")  # noqa: TRY301
    except ValidationError as error:
        raise InputError(f"{path} is damaged: {places_of(error)}; {SCORE_AGAIN}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; {SCORE_AGAIN}") from error
    document["summary"] = _replace(document["summary"], None, math.nan)
    return document


def _require_all_means(summary: Mapping[str, Any]) -> None:
    """Make sure that a summary tells every metric of every region.

    Raises:
        ValueError: If one is missing.
    """
    for test_set, group in summary.items():
        if not isinstance(group.get("cases"), int):
            raise ValueError(f"summary.{test_set} does not tell its cases")  # noqa: TRY004 - of a file
        for metric in METRICS:
            columns = group.get(metric)
            if not isinstance(columns, dict) or not columns.keys() >= {*REGIONS, "average"}:
                raise ValueError(f"summary.{test_set} does not tell {metric} of every region")


def load_evaluation(
    run: Path, manifest: Manifest, name: str = EVALUATION_NAME
) -> Evaluation | None:
    """Read back what `write_evaluation` saved of a run on this cache, or None if there is nothing.

    Raises:
        InputError: If it is damaged, or its two files do not tell the same.
    """
    document = require_evaluation(run, name)
    if document is None:
        return None
    if document["manifest"] != digest(manifest):
        _log.warning("%s holds scores on another cache: they are left out", run / f"{name}.json")
        return None
    scores = read_scores(run, name)
    rules = {key: document[key] for key in ("convention", "manifest", "round")}
    extras = {key: document[key] for key in ("tta", "postprocess_et")}
    extras["is_synthetic"] = bool(manifest.synthetic)
    evaluation = Evaluation(scores=scores, leakage=manifest.leakage, **rules, **extras)
    if not _agree(document["summary"], evaluation):
        raise InputError(f"{run / name}.json and .csv tell different scores; {SCORE_AGAIN}")
    return evaluation


def _agree(summary: Summary, evaluation: Evaluation) -> bool:
    """Tell whether the means of a summary are those of single cases, as far as these are written out."""
    groups = evaluation.groups()
    if summary.keys() != groups.keys():
        return False
    pairs = [
        (
            summary[name][metric][region]["mean"],
            defined_mean([score.values[metric][region] for score in scores]),
        )
        for name, scores in groups.items()
        for metric in METRICS
        for region in REGIONS
    ]
    is_complete = all(summary[name]["cases"] == len(scores) for name, scores in groups.items())
    told, counted = np.array(pairs).T
    return is_complete and bool(np.allclose(told, counted, atol=1e-5, equal_nan=True))


def read_summary(run: Path, name: str) -> Summary | None:
    """Read the summary of scores that `write_evaluation` saved, or None if there is none."""
    document = read_evaluation(run, name)
    return None if document is None else document["summary"]


def saved_means(run: Path) -> dict[str, dict[str, float]]:
    """Read the mean Dice that `write_evaluation` saved of a run, by test set and region.

    Raises:
        InputError: If there is none, or it is damaged.
    """
    document = require_evaluation(run)
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

    Raises:
        InputError: If the file is damaged.
    """
    path = run / f"{name}.csv"
    if not path.exists():
        return ()
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True))
        scores = tuple(map(_parse, rows))
        if len({score.case_id for score in scores}) < len(scores):
            raise ValueError("a case stands there twice")  # noqa: TRY301
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({reason_of(error)}); {SCORE_AGAIN}") from error
    return scores


def _parse(row: Mapping[str, Any]) -> CaseScore:
    """Take a line apart.

    Raises:
        ValueError: If a cell is missing, or no number; KeyError if a column is.
    """
    if None in row or None in row.values():
        raise ValueError("a line has more or fewer cells than the first")
    if row["cohort"] not in COHORTS:
        raise ValueError(f"{row['cohort'][:20]} is no cohort")
    values = {m: {r: _number(row.get(f"{m}_{r}", "")) for r in REGIONS} for m in METRICS}
    return CaseScore(row["case_id"], row["patient_id"], row["cohort"], values)


def _number(cell: str) -> float:
    value = float(cell) if cell else math.nan
    if cell and not math.isfinite(value):
        raise ValueError(f"{cell[:20]} is no finite number")
    return value
