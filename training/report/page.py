"""The page itself: what it shows in which order, as one file that needs no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from cache_schema.errors import InputError
from cache_schema.files import write_atomically
from cache_schema.leakage import SYNTHETIC_NOTE, SiteLeakage, describe_leakage
from cache_schema.manifest import Manifest, digest, read_manifest
from cache_schema.targets import require_writable_file
from training.config import TrainConfig
from training.data import VolumeDataset
from training.provenance import known_leakage, least_known, require_same_cache
from training.report.charts import (
    client_charts,
    comparison_charts,
    composition_charts,
    training_charts,
)
from training.report.data_tables import client_table, cohort_table, omission_tables
from training.report.panels import DIFFERENCE_COLOUR, case_panels
from training.report.picture import LABEL_COLOURS, Picture
from training.report.record import RunRecord, read_runs
from training.report.run_tables import (
    difference_table,
    round_table,
    settings_table,
    target_table,
    trouble_table,
)
from training.report.score_tables import (
    fairness_table,
    metric_tables,
    paired_test_table,
    paper_tables,
    side_by_side_tables,
)
from training.report.strips import strip_charts
from training.report.table import PageTable, duration


@dataclass(frozen=True)
class RunSection:
    """What the page shows of one run."""

    run: RunRecord
    pace: str
    time: str
    charts: Sequence[Picture]
    client_charts: Sequence[Picture]
    rounds: PageTable
    targets: PageTable
    trouble: PageTable | None
    scores: Sequence[PageTable]
    strips: Sequence[Picture]
    panels: Sequence[Picture]
    fairness: PageTable | None
    settings: PageTable


@dataclass(frozen=True)
class ComparisonSection:
    """What the page shows of several runs together.

    Attributes:
        differences: Settings in which they differ, and their cost.
        charts: Curves of all runs in one chart.
        scores: Of all runs; none if fewer than two were scored.
        test: The paired tests, or why there are none; None if fewer than two were scored.
    """

    differences: PageTable
    charts: Sequence[Picture]
    scores: Sequence[PageTable]
    test: PageTable | str | None


def write_report(runs: Sequence[Path], cache: Path, out: Path, *, device: str = "auto") -> None:
    """Write a self-contained page about some runs on one cache.

    Args:
        runs: Folders of federated or central runs; scores appear where `train eval` has been run.
        cache: Their cache; its test cases are shown with truth and prediction.
        out: The page to write.
        device: Where to compute the predictions shown.

    Raises:
        InputError: If a run or the cache cannot be read, a run is named twice or was trained on another
            cache, or the page cannot be written.
    """
    require_writable_file(out, "--out")
    manifest = read_manifest(cache)
    for place, run in enumerate(runs):
        if run in runs[:place]:
            raise InputError(f"{run} is named twice; name each run once")
        require_same_cache(run, cache, manifest)
    records = read_runs(runs, manifest)
    dataset = VolumeDataset(cache, split="test")
    page = _render(manifest, records, [_section(run, dataset, device) for run in records])
    write_atomically(out, page, option="--out", advice="name a file that can be")


def _render(manifest: Manifest, runs: Sequence[RunRecord], sections: Sequence[RunSection]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    leakage = least_known(known_leakage(run.provenance, manifest) for run in runs)
    return environment.get_template("report.html.j2").render(
        manifest=manifest,
        identity=digest(manifest),
        leakage=describe_leakage(leakage),
        synthetic_note=SYNTHETIC_NOTE,
        knows_all=not isinstance(leakage, SiteLeakage),
        num_patients=len({case.patient_id for case in manifest.cases}),
        num_test=sum(case.split == "test" for case in manifest.cases),
        cohorts=cohort_table(manifest, leakage),
        clients=client_table(manifest),
        composition=composition_charts(manifest),
        omissions=omission_tables(manifest),
        comparison=_comparison(runs) if len(runs) > 1 else None,
        paper=paper_tables(runs),
        sections=sections,
        labels=LABEL_COLOURS,
        difference_colour=DIFFERENCE_COLOUR,
    )


def _section(run: RunRecord, dataset: VolumeDataset, device: str) -> RunSection:
    return RunSection(
        run=run,
        pace=describe_pace(run.config),
        time=duration(run.seconds),
        charts=training_charts(run),
        client_charts=client_charts(run.rounds),
        rounds=round_table(run),
        targets=target_table(run),
        trouble=trouble_table(run),
        scores=metric_tables(run),
        strips=strip_charts(run.scored.evaluation.scores) if run.scored else [],
        panels=case_panels(run, dataset, device),
        fairness=fairness_table(run, dataset.manifest),
        settings=settings_table(run),
    )


def _comparison(runs: Sequence[RunRecord]) -> ComparisonSection:
    return ComparisonSection(
        differences=difference_table(runs),
        charts=comparison_charts(runs),
        scores=side_by_side_tables(runs),
        test=paired_test_table(runs),
    )


def describe_pace(config: TrainConfig) -> str:
    """Say how long clients train in a round."""
    if config.local_steps:
        return f"{_count(config.local_steps, 'local step')} each"
    most = "at most " if config.epoch_schedule == "adaptive" else ""
    return f"{most}{_count(config.local_epochs, 'local epoch')} each"


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
