"""Two runs on the same test cases: does one score better, or is it chance?"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np

from cache_schema.errors import InputError
from training.scores import CaseScore, Evaluation
from training.statistics import PairedTest, defined_mean, wilcoxon_signed_rank

FEWEST_PATIENTS: Final = 6
"""With five differing pairs the smallest two-sided p is 2 / 2^5 = 0.0625: nothing could be shown."""


class Comparison(NamedTuple):
    """A test of two runs on one test set.

    Attributes:
        first: Name of a run.
        second: Name of another.
        test_set: A cohort, or `all`.
        num_cases: With a score of both.
        test: None if there is no such case.
    """

    first: str
    second: str
    test_set: str
    num_cases: int
    test: PairedTest | None

    @property
    def verdict(self) -> str:
        """Say in words what the test shows at the level of 5 %."""
        test = self.test
        if test is None:
            return "no case has both scores"
        if test.p_value is None:
            return "no difference: all scores are equal"
        if test.num_different < FEWEST_PATIENTS:
            return f"too few to tell: {FEWEST_PATIENTS} patients whose scores differ are the least"
        if test.p_value >= 0.05:
            return "no difference shown"
        if test.median_difference == 0:
            return "they differ, though not at the median"
        better = self.second if test.median_difference > 0 else self.first
        return f"{better} scores higher"


def compare_runs(evaluations: Mapping[str, Evaluation]) -> tuple[Comparison, ...]:
    """Test every pair of runs on each cohort and on all cases together.

    Scores are the mean Dice of a case over its regions. A patient with several cases, as there are
    in `all`, has their mean: pairs must be independent of each other. p is not corrected for the number
    of pairs.

    Args:
        evaluations: By the name of the run; of the same cache, scored in the same way.

    Raises:
        InputError: If they are not; evaluate them together.
    """
    pairs = tuple(combinations(evaluations.items(), 2))
    for (first_name, first), (second_name, second) in pairs:
        _require_comparable(first_name, first, second_name, second)
    return tuple(
        _compare(first_name, second_name, test_set, scores, second.groups()[test_set])
        for (first_name, first), (second_name, second) in pairs
        for test_set, scores in first.groups().items()
    )


def _require_comparable(
    first_name: str, first: Evaluation, second_name: str, second: Evaluation
) -> None:
    """Refuse scores of other cases or by other rules."""
    cases = [{score.case_id for score in each.scores} for each in (first, second)]
    if first.manifest != second.manifest or cases[0] != cases[1]:
        raise InputError(f"{first_name} and {second_name} were scored on different caches")
    if first.rules != second.rules:
        raise InputError(f"{first_name} and {second_name} were scored in different ways")


def _compare(
    first_name: str,
    second_name: str,
    test_set: str,
    first: Sequence[CaseScore],
    second: Sequence[CaseScore],
) -> Comparison:
    others = {score.case_id: _mean_dice(score) for score in second}
    patients: dict[str, list[tuple[float, float]]] = {}
    for score in first:
        pair = _mean_dice(score), others[score.case_id]
        if not np.isnan(pair).any():
            patients.setdefault(score.patient_id, []).append(pair)
    num_cases = sum(len(pairs) for pairs in patients.values())
    if not patients:
        return Comparison(first_name, second_name, test_set, 0, None)
    means = np.array([np.mean(pairs, axis=0) for pairs in patients.values()])
    test = wilcoxon_signed_rank(means[:, 0], means[:, 1])
    return Comparison(first_name, second_name, test_set, num_cases, test)


def _mean_dice(score: CaseScore) -> float:
    return defined_mean(list(score.values["dice"].values()))
