"""Tables of scores, for a terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich import box
from rich.markup import escape
from rich.table import Table

from cache_schema.leakage import describe_data
from cache_schema.manifest import LeakageRecord
from cache_schema.vocabulary import COHORTS, REGIONS, Cohort
from training.comparison import Comparison
from training.fairness import TRAINED_ON, ClientEvaluation, spread_over_clients
from training.provenance import least_known
from training.published import PUBLISHED
from training.scores import CaseScore, Evaluation

UNITS: Final = {
    "dice": ("Dice %", 100.0),
    "hd95_mm": ("HD95 mm", 1.0),
    "sensitivity": ("sens. %", 100.0),
    "specificity": ("spec. %", 100.0),
}
"""How each metric is headed, and what it is multiplied with."""


@dataclass(frozen=True)
class ScoredRun:
    """A run with its scores and its size, as it appears in the paper's tables.

    Attributes:
        name: Of the run.
        evaluation: Its scores.
        parameters: Numbers that training can change.
        flops: Of one forward pass.
    """

    name: str
    evaluation: Evaluation
    parameters: int
    flops: int


def score_table(evaluation: Evaluation, name: str = "the network", *, seed: int = 0) -> Table:
    """Show the mean of each metric with its 95 % interval, and what to know about it.

    Args:
        evaluation: The scores.
        name: Of the run.
        seed: Of the bootstrap.
    """
    table = _table(
        title=f"Scores of {escape(name)} {_describe_state(evaluation)}",
        caption=f"mean [95 % bootstrap interval over patients]; {evaluation.describe_data()}",
    )
    table.add_column("test set")
    table.add_column("metric")
    for heading in (*REGIONS, "average"):
        table.add_column(heading, justify="right", no_wrap=True)
    for test_set, group in evaluation.summary(seed).items():
        label = f"{test_set}\n{_count(group['cases'], 'case')}"
        for metric, (heading, factor) in UNITS.items():
            samples = (group[metric][column] for column in (*REGIONS, "average"))
            cells = [_interval(sample, factor, group["cases"]) for sample in samples]
            table.add_row(label, heading, *cells)
            label = ""
        table.add_section()
    return table


def _interval(sample: Mapping[str, Any], factor: float, num_cases: int) -> str:
    """Write a mean above its interval, and from how many cases it is, if not from all."""
    if sample["count"] == 0:
        return _of_cases("-", 0, num_cases)
    mean, low, high = (factor * sample[key] for key in ("mean", "low", "high"))
    text = f"{mean:.2f}\n\\[{low:.1f}, {high:.1f}]"
    return _of_cases(text, sample["count"], num_cases)


def paper_table(cohort: Cohort, runs: Sequence[ScoredRun]) -> Table:
    """Show some runs in the shape of the paper's table of a cohort, below its published rows.

    On synthetic data they stand alone: nothing published is of the same kind.

    Args:
        cohort: With test cases in every run's evaluation.
        runs: At least one; all on one cache.
    """
    published = PUBLISHED[cohort]
    num_cases = len(runs[0].evaluation.groups()[cohort])
    rules = describe_each([(run.name, describe_rules(run.evaluation)) for run in runs])
    is_synthetic = any(run.evaluation.is_synthetic for run in runs)
    leakage = least_known(run.evaluation.leakage for run in runs)
    data = describe_data(leakage, cohort, is_synthetic=is_synthetic)
    ours = f"{_count(num_cases, 'case')}, {escape(rules)}; {data}"
    table = _table(
        title=f"{cohort}: Dice (%)"
        if is_synthetic
        else f"{cohort}, as in the paper's Table {published.number}: Dice (%)",
        caption=ours
        if is_synthetic
        else f"published: the paper's own figures, on its own test cases; ours: {ours}",
    )
    table.add_column("method")
    table.add_column("scores")
    for heading in (*REGIONS, "Average", "Params (M)", "FLOPs (G)"):
        table.add_column(heading, justify="right")
    for row in () if is_synthetic else published.rows:
        cells = [f"{value:.2f}" for value in (*row.dice_percent, row.parameters_m, row.gflops)]
        table.add_row(row.method, "published", *cells, style="dim")
    table.add_section()
    for run in runs:
        means = run.evaluation.means()[cohort]
        sizes = run.parameters / 1e6, run.flops / 1e9
        counts = count_defined(run.evaluation.groups()[cohort])
        cells = [_of_cases(_percent(means[key]), counts[key], num_cases) for key in counts]
        state = "ours" if run.evaluation.round else "ours, untrained"
        table.add_row(escape(run.name), state, *cells, *(f"{size:.2f}" for size in sizes))
    return table


def paper_tables(runs: Sequence[ScoredRun]) -> list[Table]:
    """Show some runs in the shape of the paper's tables of all cohorts; see `paper_table`."""
    groups = runs[0].evaluation.groups()
    return [paper_table(cohort, runs) for cohort in COHORTS if cohort in groups]


def comparison_table(
    comparisons: Sequence[Comparison], leakage: LeakageRecord, *, is_synthetic: bool = False
) -> Table:
    """Show paired tests of runs.

    Args:
        comparisons: Of all pairs.
        leakage: What is known of it for all of them.
        is_synthetic: Whether their cache holds synthetic cases.
    """
    table = _table(
        title="Paired Wilcoxon signed-rank tests, two-sided",
        caption="mean Dice of each patient's cases over ET, TC and WT; p is not corrected for the number "
        f"of tests; {describe_data(leakage, is_synthetic=is_synthetic)}",
    )
    for heading in ("second - first", "test set"):
        table.add_column(heading)
    for heading in ("cases", "patients", "median points", "p"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for each in comparisons:
        test = each.test
        table.add_row(
            escape(f"{each.second} - {each.first}"),
            each.test_set,
            str(each.num_cases),
            "0" if test is None else str(test.num_patients),
            "-" if test is None else f"{100 * test.median_difference:+.2f}",
            "-" if test is None or test.p_value is None else f"{test.p_value:.2g}",
            escape(each.verdict),
        )
    return table


def fairness_table(result: ClientEvaluation, name: str = "the network") -> Table:
    """Show the mean Dice of each client's training cases, and how it spreads over clients."""
    evaluation = result.evaluation
    table = _table(
        title=f"Clients' own TRAINING cases: Dice (%) of {escape(name)} {_describe_state(evaluation)}",
        caption=f"{TRAINED_ON}; {evaluation.describe_data()}",
    )
    table.add_column("client")
    for heading in ("cases", *REGIONS, "average"):
        table.add_column(heading, justify="right")
    keys = (*REGIONS, "mean")
    clients = result.clients()
    for client, means in clients.items():
        num_cases = int(means["cases"])
        pairs = zip(result.owners, evaluation.scores, strict=True)
        counts = count_defined([score for owner, score in pairs if owner == client])
        cells = [_of_cases(_percent(means[key]), counts[key], num_cases) for key in keys]
        table.add_row(str(client), str(num_cases), *cells)
    table.add_section()
    spread = spread_over_clients(clients)
    for heading, field in (
        ("mean over clients", "mean"),
        ("standard deviation", "standard_deviation"),
        ("worst client", "worst"),
    ):
        values = [getattr(spread[key], field, math.nan) for key in keys]
        table.add_row(heading, "", *map(_percent, values))
    counts = {key: sum(not math.isnan(means[key]) for means in clients.values()) for key in keys}
    if set(counts.values()) != {len(clients)}:
        table.add_row("clients with a value", "", *map(str, counts.values()))
    return table


def _table(title: str, caption: str) -> Table:
    """Make a table without lines between columns: numbers with intervals fill 80 characters."""
    return Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=0)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _percent(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:.2f}"


def _of_cases(text: str, count: int, num_cases: int) -> str:
    """Write below a mean from how many cases it is, if not from all."""
    if count == num_cases:
        return text
    return f"{text}\nof {_count(count, 'case') if count else 'no case'}"


def count_defined(scores: Sequence[CaseScore]) -> dict[str, int]:
    """Count the cases that have a Dice of each region, and those that have one of any: `mean`."""
    defined = [[not math.isnan(score.values["dice"][r]) for r in REGIONS] for score in scores]
    counts = {region: sum(case[i] for case in defined) for i, region in enumerate(REGIONS)}
    return {**counts, "mean": sum(map(any, defined))}


def _describe_state(evaluation: Evaluation) -> str:
    state = f"after round {evaluation.round}" if evaluation.round else "untrained"
    return f"{state}, {describe_rules(evaluation)}"


def describe_rules(evaluation: Evaluation) -> str:
    """Tell everything that scores of the same network depend on."""
    return describe_scoring_by(*evaluation.rules)


def describe_scoring_by(convention: str, tta: bool, postprocess_et: int) -> str:
    """Tell the rules of scores, in the order of `Evaluation.rules`."""
    rules = [f"convention {convention}"]
    if tta:
        rules.append("averaged over flips")
    if postprocess_et:
        rules.append(f"fewer than {postprocess_et} ET voxels made NEC")
    return ", ".join(rules)


def describe_each(texts: Sequence[tuple[str, str]]) -> str:
    """Say once what holds of all runs, or with its name what holds of each.

    Args:
        texts: Names of runs, at least one, with what is to be said of them.
    """
    if len({text for _, text in texts}) == 1:
        return texts[0][1]
    return "; ".join(f"{name} {text}" for name, text in texts)


def describe_gain(evaluation: Evaluation, untrained: Mapping[str, Mapping[str, float]]) -> str:
    """Say in a line what training gained: the mean Dice over all test cases, before and after."""
    after = evaluation.means()["all"]
    gains = (f"{r} {untrained['all'][r]:.3f} to {after[r]:.3f}" for r in REGIONS)
    return f"Dice untrained to trained: {', '.join(gains)}"
