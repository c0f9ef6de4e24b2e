"""The paper's Table 4: one federated run for each placement of the position embedding."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, runtime_checkable

from rich.table import Table

from cache_schema.files import write_atomically
from cache_schema.leakage import SYNTHETIC_NOTE, describe_data
from cache_schema.manifest import LeakageRecord, digest
from cache_schema.targets import require_writable_folder
from cache_schema.vocabulary import REGIONS
from training.config import TrainConfig
from training.device import choose_device
from training.evaluate import evaluate
from training.federated.engine import run_federation
from training.metrics import DEFAULT_CONVENTION
from training.runlog import Observer
from training.score_files import saved_means, write_evaluation
from training.series import finished_evaluation, is_begun, refuse_another_run, require_test_cases
from training.statistics import (
    THRESHOLD,
    kolmogorov_smirnov,
    standard_deviation,
    variance_below,
)

ABLATION_NAME: Final = "ablation.json"
PAPER_TEST_SET: Final = "brats2018"

Means = Mapping[str, Mapping[str, float]]
"""Mean Dice by test set (a cohort, or `all`) and region, from 0 to 1."""


@dataclass(frozen=True)
class Row:
    """A row of Table 4.

    Attributes:
        name: Of the row and of its run's folder.
        position: Of `TrainConfig`.
        position_levels: Of `TrainConfig`; the paper ticks Last and All where this is `all`.
        published: Dice of the regions and their average in percent, as printed.
    """

    name: str
    position: Literal["2d", "3d", "2d+3d"]
    position_levels: Literal["last", "all"]
    published: Mapping[str, float]


ROWS: Final = (
    Row("2d-last", "2d", "last", {"ET": 77.76, "TC": 84.35, "WT": 84.63, "mean": 82.25}),
    Row("2d-all", "2d", "all", {"ET": 76.89, "TC": 84.17, "WT": 84.76, "mean": 81.94}),
    Row("3d-last", "3d", "last", {"ET": 76.77, "TC": 84.42, "WT": 83.79, "mean": 81.66}),
    Row("3d-all", "3d", "all", {"ET": 76.63, "TC": 84.26, "WT": 83.97, "mean": 81.62}),
    Row("2d+3d-all", "2d+3d", "all", {"ET": 76.51, "TC": 84.31, "WT": 84.23, "mean": 81.68}),
)
"""Table 4, top to bottom; all of BraTS 2018."""


@dataclass(frozen=True)
class Ablation:
    """Scores of all rows.

    Attributes:
        config: What the rows have in common; its position embedding is replaced in each.
        means: Of each row by its name.
        leakage: Test patients that were also trained on; goes with the scores wherever they go.
        manifest: Digest of the cache's manifest.
        is_synthetic: Whether the cache holds synthetic cases; the published rows then stand nowhere.
    """

    config: TrainConfig
    means: Mapping[str, Means]
    leakage: LeakageRecord
    manifest: str
    is_synthetic: bool = False

    def test_set(self) -> str:
        """Name the scores to show: the paper's test set, or `all` cases if the cache has none of it."""
        has_cohort = all(PAPER_TEST_SET in means for means in self.means.values())
        return PAPER_TEST_SET if has_cohort else "all"

    def percent(self, row: Row) -> dict[str, float]:
        """Give the Dice of a row as Table 4 does: by region, and their `mean`."""
        means = self.means[row.name][self.test_set()]
        return {key: 100 * means[key] for key in (*REGIONS, "mean")}


@runtime_checkable
class AblationObserver(Observer, Protocol):
    """Who is told how an ablation goes, besides the training runs that it consists of."""

    def row_started(self, name: str, *, is_finished: bool) -> None:
        """A row begins, or is taken as it was left by an earlier call."""

    def case_done(self, case_id: str, num_cases: int) -> None:
        """One test case of a row is scored."""


def ablate(config: TrainConfig, cache: Path, run: Path, observer: AblationObserver) -> Ablation:
    """Train and score every row of Table 4 that is not finished yet.

    A row is finished if its folder holds scores of the last round, of a run with these very settings
    on this very cache. One that was interrupted goes on from its last round, or is only scored.

    Args:
        config: Of every row, but for its position embedding.
        cache: A finished cache with a test set.
        run: Holds a folder for each row, in the form that `train fed` and `train eval` write.
        observer: Told about progress.

    Returns:
        The scores of all rows.

    Raises:
        InputError: If the cache or an option cannot be used, or a row's folder holds another run; that
            is found before anything is trained.
    """
    require_writable_folder(run, "--run")
    choose_device(config.device)
    manifest = require_test_cases(cache)
    settings = {row.name: _settings(config, row) for row in ROWS}
    for name, row_config in settings.items():
        refuse_another_run(run / name, row_config, cache, manifest, "--run")
    means: dict[str, Means] = {}
    for name, row_config in settings.items():
        folder = run / name
        is_finished = finished_evaluation(folder, row_config, manifest) is not None
        observer.row_started(name, is_finished=is_finished)
        if not is_finished:
            _finish(folder, row_config, cache, observer)
        means[name] = saved_means(folder)
    is_synthetic = bool(manifest.synthetic)
    return Ablation(config, means, manifest.leakage, digest(manifest), is_synthetic)


def _settings(config: TrainConfig, row: Row) -> TrainConfig:
    return config.model_copy(
        update={"position": row.position, "position_levels": row.position_levels}
    )


def _finish(folder: Path, config: TrainConfig, cache: Path, observer: AblationObserver) -> None:
    """Do what is left of a row: the rounds that it lacks, if any, and its scores."""
    run_federation(config, cache, folder, observer, resume=is_begun(folder))
    evaluation = evaluate(folder, cache, device=config.device, on_case=observer.case_done)
    write_evaluation(folder, evaluation)


def ablation_statistics(ablation: Ablation) -> dict[str, dict[str, dict[str, Any]]]:
    """Compute the paper's two statistics for our scores and for those it prints.

    `training.statistics` says how they are defined and what the paper leaves open.

    Returns:
        By `ours` and `published`, which is not there if our data are synthetic, then region: the
        standard deviation of the rows in percentage points, and each test's statistic and p; null where
        all rows score the same.
    """
    sources: dict[str, list[Mapping[str, float]]]
    sources = {"ours": [ablation.percent(row) for row in ROWS]}
    if not ablation.is_synthetic:
        sources["published"] = [row.published for row in ROWS]
    return {
        source: {region: _spread([scores[region] for scores in rows]) for region in REGIONS}
        for source, rows in sources.items()
    }


def _spread(scores: list[float]) -> dict[str, Any]:
    normality = kolmogorov_smirnov(scores)
    return {
        "standard_deviation": standard_deviation(scores),
        "chi_squared": asdict(variance_below(scores)),
        "kolmogorov_smirnov": None if normality is None else asdict(normality),
    }


def write_ablation(run: Path, ablation: Ablation) -> Path:
    """Save scores and statistics beside the published ones, or alone if they are of synthetic data.

    Returns:
        The file.
    """
    document = {
        "convention": DEFAULT_CONVENTION,
        "leakage": ablation.leakage.model_dump(),
        "manifest": ablation.manifest,
        "rows": [_document(row, ablation) for row in ROWS],
        "settings": ablation.config.model_dump(exclude={"position", "position_levels"}),
        "statistics": ablation_statistics(ablation),
        "synthetic": ablation.is_synthetic,
        "test_set": ablation.test_set(),
        "threshold": THRESHOLD,
    }
    path = run / ABLATION_NAME
    write_atomically(path, json.dumps(document, indent=1, sort_keys=True) + "\n")
    return path


def _document(row: Row, ablation: Ablation) -> dict[str, Any]:
    document = {
        "name": row.name,
        "position": row.position,
        "position_levels": row.position_levels,
        "means": ablation.means[row.name],
    }
    return document if ablation.is_synthetic else {**document, "published_percent": row.published}


def ablation_table(ablation: Ablation) -> Table:
    """Show the scores of every row in the shape of Table 4, above the published ones if data are real."""
    published = "" if ablation.is_synthetic else f" (published: {PAPER_TEST_SET})"
    table = Table(
        title=f"Position embeddings, Dice (%) on {ablation.test_set()}{published}, "
        f"convention {DEFAULT_CONVENTION}",
        caption=describe_data(ablation.leakage, is_synthetic=ablation.is_synthetic),
    )
    table.add_column("embedding")
    table.add_column("levels")
    table.add_column("scores")
    for heading in (*REGIONS, "average"):
        table.add_column(heading, justify="right")
    for row in ROWS:
        table.add_row(row.position, row.position_levels, "ours", *_cells(ablation.percent(row)))
        if not ablation.is_synthetic:
            cells = _cells(row.published)
            table.add_row("", "", "published", *cells, style="dim", end_section=True)
    return table


def _cells(percent: Mapping[str, float]) -> list[str]:
    return [f"{percent[key]:.2f}" for key in (*REGIONS, "mean")]


def statistics_table(ablation: Ablation) -> Table:
    """Show both statistics by region, for our scores and, beside real data, the published ones."""
    note = f"{SYNTHETIC_NOTE}; " if ablation.is_synthetic else ""
    table = Table(
        title=f"Spread of the {len(ROWS)} rows",
        caption=f"{note}p of s >= {THRESHOLD:g} points (chi-squared, lower tail) and of normal scores "
        "(Kolmogorov-Smirnov)",
    )
    table.add_column("scores")
    table.add_column("region")
    for heading in ("s", "chi-squared", "p", "D", "p"):
        table.add_column(heading, justify="right")
    for source, regions in ablation_statistics(ablation).items():
        for region, spread in regions.items():
            variance, normality = spread["chi_squared"], spread["kolmogorov_smirnov"]
            table.add_row(
                source,
                region,
                f"{spread['standard_deviation']:.2f}",
                f"{variance['statistic']:.3f}",
                f"{variance['p_value']:.2g}",
                "-" if normality is None else f"{normality['statistic']:.3f}",
                "-" if normality is None else f"{normality['p_value']:.2g}",
                style="dim" if source == "published" else None,
            )
        table.add_section()
    return table
