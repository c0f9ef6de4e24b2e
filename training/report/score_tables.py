"""Tables of scores; every caption tells the protocol and the leak count."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cache_schema.errors import InputError
from cache_schema.leakage import describe_data
from cache_schema.manifest import Manifest
from cache_schema.vocabulary import COHORTS, REGIONS, Cohort
from training.comparison import compare_runs
from training.fairness import TRAINED_ON
from training.metrics import METRICS
from training.provenance import known_leakage, least_known
from training.published import PUBLISHED
from training.report.record import RunRecord, Scored
from training.report.table import (
    COLUMNS,
    NONE,
    PageTable,
    Row,
    interval,
    mean_cell,
    number,
    percent,
)
from training.scores import Evaluation
from training.show import describe_each, describe_rules, describe_scoring_by

HEADINGS: Final = {
    "dice": "Dice (%)",
    "hd95_mm": "HD95 (mm)",
    "sensitivity": "Sensitivity (%)",
    "specificity": "Specificity (%)",
}
SIDE_METRICS: Final = ("dice", "hd95_mm")
"""Those shown of several runs together; the others stand with each run."""


def metric_tables(run: RunRecord) -> list[PageTable]:
    """Show every metric of a run, if it was scored."""
    if run.scored is None:
        return []
    return [metric_table(run, run.scored, metric) for metric in METRICS]


def metric_table(run: RunRecord, scored: Scored, metric: str) -> PageTable:
    """Show a metric of each test set and region: mean with interval, median, and before training."""
    evaluation = scored.evaluation
    rows = []
    for name, group in scored.summary.items():
        cases = str(group["cases"])
        samples = [group[metric][column] for column in COLUMNS]
        means = (interval(sample, metric, group["cases"]) for sample in samples)
        rows.append(Row((name, "mean", cases, *means)))
        medians = (number(sample["median"], metric) for sample in samples)
        rows.append(Row(("", "median", "", *medians)))
        if run.untrained is not None:
            before = run.untrained.summary[name][metric]
            untrained = (number(before[column]["mean"], metric) for column in COLUMNS)
            rows.append(Row(("", "mean, untrained", "", *untrained), "published"))
    return PageTable(
        f"{HEADINGS[metric]} {_describe(evaluation)}; mean with its 95 % bootstrap interval over "
        f"patients; {evaluation.describe_data()}",
        ("test set", "", "cases", *COLUMNS),
        tuple(rows),
        text_columns=(0, 1),
        has_scores=True,
    )


def paper_tables(runs: Sequence[RunRecord]) -> list[PageTable]:
    """Show runs in the shape of the paper's tables 1 to 3, below its published rows.

    On synthetic data they stand alone: nothing published is of the same kind.
    """
    scored = [(run, run.scored) for run in runs if run.scored is not None]
    return [
        _paper_table(cohort, having)
        for cohort in COHORTS
        if (having := [(run, each) for run, each in scored if cohort in each.summary])
    ]


def _paper_table(cohort: Cohort, runs: Sequence[tuple[RunRecord, Scored]]) -> PageTable:
    published = PUBLISHED[cohort]
    is_synthetic = _is_synthetic(runs)
    rows = []
    for row in () if is_synthetic else published.rows:
        numbers = (*row.dice_percent, row.parameters_m, row.gflops)
        rows.append(Row((row.method, "published", *(f"{x:.2f}" for x in numbers)), "published"))
    for run, scored in runs:
        group = scored.summary[cohort]
        dice = (_mean(group["dice"][column], group["cases"]) for column in COLUMNS)
        sizes = f"{run.parameters / 1e6:.2f}", f"{run.flops / 1e9:.2f}"
        rows.append(Row((run.name, "ours", *dice, *sizes), "ours"))
    first = runs[0][1]
    rules = describe_each([(run.name, describe_rules(each.evaluation)) for run, each in runs])
    caption = (
        f"{cohort}: Dice (%)"
        if is_synthetic
        else f"As the paper's Table {published.number}, {cohort}: Dice (%). Published: the paper's own "
        "figures, on its own test cases"
    )
    num_cases = first.summary[cohort]["cases"]
    caption += f". Ours: {num_cases} case{'s' * (num_cases != 1)}, {rules}; {_data(runs, cohort)}"
    header = ("method", "scores", *REGIONS, "Average", "Params (M)", "FLOPs (G)")
    return PageTable(caption, header, tuple(rows), text_columns=(0, 1), has_scores=True)


def _is_synthetic(runs: Sequence[tuple[RunRecord, Scored]]) -> bool:
    return any(scored.evaluation.is_synthetic for _, scored in runs)


def _data(runs: Sequence[tuple[RunRecord, Scored]], cohort: Cohort | None = None) -> str:
    leakage = least_known(scored.evaluation.leakage for _, scored in runs)
    return describe_data(leakage, cohort, is_synthetic=_is_synthetic(runs))


def _mean(sample: Mapping[str, Any], num_cases: int) -> str:
    return mean_cell(number(sample["mean"], "dice"), sample["count"], num_cases)


def side_by_side_tables(runs: Sequence[RunRecord]) -> list[PageTable]:
    """Show mean Dice and HD95 of several runs below each other, if at least two were scored."""
    scored = [(run, run.scored) for run in runs if run.scored is not None]
    return [_side_by_side(scored, metric) for metric in SIDE_METRICS] if len(scored) > 1 else []


def _side_by_side(runs: Sequence[tuple[RunRecord, Scored]], metric: str) -> PageTable:
    rows = []
    for test_set, group in runs[0][1].summary.items():
        for place, (run, scored) in enumerate(runs):
            heading = ("", "") if place else (test_set, str(group["cases"]))
            rows.append(Row((*heading, run.name, *_intervals(scored, test_set, metric))))
    rules = dict.fromkeys(f"{run.name} {_describe(each.evaluation)}" for run, each in runs)
    return PageTable(
        f"{HEADINGS[metric]}, means with 95 % bootstrap intervals: {'; '.join(rules)}; {_data(runs)}",
        ("test set", "cases", "run", *COLUMNS),
        tuple(rows),
        text_columns=(0, 2),
        has_scores=True,
    )


def _intervals(scored: Scored, test_set: str, metric: str) -> list[str]:
    group = scored.summary.get(test_set)
    if group is None:
        return [NONE] * len(COLUMNS)
    return [interval(group[metric][column], metric, group["cases"]) for column in COLUMNS]


def paired_test_table(runs: Sequence[RunRecord]) -> PageTable | str | None:
    """Test pairs of runs on the same patients; say in words why not if they cannot be compared."""
    scored = [(run, run.scored) for run in runs if run.scored is not None]
    evaluations = {run.name: each.evaluation for run, each in scored}
    if len(evaluations) < 2:
        return None
    try:
        comparisons = compare_runs(evaluations)
    except InputError as error:
        return f"No paired test: {error}."
    rows = []
    for each in comparisons:
        test = each.test
        numbers = [str(each.num_cases), NONE, NONE, NONE]
        if test is not None:
            p = NONE if test.p_value is None else f"{test.p_value:.2g}"
            numbers[1:] = [str(test.num_patients), f"{100 * test.median_difference:+.2f}", p]
        rows.append(Row((f"{each.second} - {each.first}", each.test_set, *numbers, each.verdict)))
    return PageTable(
        "Paired Wilcoxon signed-rank tests, two-sided, of each patient's mean Dice over ET, TC and WT; p is "
        f"not corrected for the number of tests; {_data(scored)}",
        ("second - first", "test set", "cases", "patients", "median points", "p", "what it shows"),
        tuple(rows),
        text_columns=(0, 1, 6),
        has_scores=True,
    )


def fairness_table(run: RunRecord, manifest: Manifest) -> PageTable | None:
    """Show the scores of each client's own training cases, and how they spread over clients."""
    if run.clients is None:
        return None
    keys = (*REGIONS, "mean")
    leakage = known_leakage(run.provenance, manifest)
    clients = sorted(run.clients["clients"].items(), key=lambda item: int(item[0]))
    rows = []
    for client, each in clients:
        cases, dice = each["cases"], each["dice"]
        counts = run.clients.get("counts", {}).get(client, {})
        cells = (mean_cell(percent(dice[k]), counts.get(k, cases), cases) for k in keys)
        rows.append(Row((client, str(cases), *cells)))
    for heading, field in (
        ("mean over clients", "mean"),
        ("standard deviation", "standard_deviation"),
        ("worst client", "worst"),
    ):
        values = [(run.clients["spread"][key] or {}).get(field) for key in keys]
        rows.append(Row((heading, "", *map(percent, values)), "total"))
    found = [sum(each["dice"][key] is not None for _, each in clients) for key in keys]
    if set(found) != {len(clients)}:
        rows.append(Row(("clients with a value", "", *map(str, found)), "total"))
    return PageTable(
        f"Dice (%) on each client's own training cases {_describe_clients(run, run.clients)}; {TRAINED_ON}; "
        f"{describe_data(leakage, is_synthetic=manifest.synthetic)}",
        ("client", "cases", *COLUMNS),
        tuple(rows),
        has_scores=True,
    )


def _describe_clients(run: RunRecord, document: Mapping[str, Any]) -> str:
    rules = (document[key] for key in ("convention", "tta", "postprocess_et"))
    text = f"after round {document['round']}, {describe_scoring_by(*rules)}"
    last = run.rounds[-1].round if run.rounds else 0
    if last <= document["round"]:
        return text
    return f"{text}; training went on to round {last}: run train eval --clients again"


def _describe(evaluation: Evaluation) -> str:
    return f"after round {evaluation.round}, {describe_rules(evaluation)}"
