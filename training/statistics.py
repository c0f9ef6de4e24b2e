r"""Statistics of scores: intervals of a mean, a paired test, and the paper's two.

The paper's ablation (section 3.2.1) says in two sentences: no "significant variation in the prediction
scores, as established through a lower one-tailed chi-squared test with s_0 = 2.0, where s_0 is the
standard deviation threshold, for which we obtained p < 0.05 for all three classes", and "the normality
of the prediction scores is evident through the Kolmogorov-Smirnov Test". It leaves open:

- *Which scores.* We take the five mean Dice of a region, one for each row of Table 4. The Dice of
  single cases spreads over tens of points in any network, so s_0 = 2.0 would never be undercut.
- *Which unit.* Percentage points, as in Table 4. Of fractions, any scores whatever would pass.
- *Which classes.* Those of Table 4: ET, TC, WT.
- *Which normal distribution.* The one with the mean and deviation of the scores themselves; against
  the standard one, scores near 80 are nowhere near normal.

Read so, the five published rows do give p < 0.05 for all three; a test holds that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float64
from scipy import stats

THRESHOLD: Final = 2.0
"""The paper's s_0: the standard deviation that scores must stay below, in percentage points."""

NUM_RESAMPLES: Final = 5_000
"""Draws of the bootstrap."""

MOST_EXACT: Final = 50
MOST_PERMUTED: Final = 13
"""Up to so many pairs the signed-rank test is exact: without ties, and with ties by trying all signs."""


@dataclass(frozen=True)
class HypothesisTest:
    """A test statistic and how likely one at least as extreme is under the null hypothesis."""

    statistic: float
    p_value: float


def standard_deviation(scores: Sequence[float]) -> float:
    """Estimate the standard deviation of a population from a sample, with n - 1 degrees of freedom.

    Args:
        scores: At least two.

    Returns:
        In the unit of the scores; exactly 0 if all are equal.

    Raises:
        ValueError: If there are fewer than two scores.
    """
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} score(s): spread needs at least two")
    return float(np.std(scores, ddof=1)) if np.ptp(scores) > 0 else 0.0


def variance_below(scores: Sequence[float], threshold: float = THRESHOLD) -> HypothesisTest:
    r"""Test whether scores spread less than a threshold: the lower chi-squared test of a variance.

    The null hypothesis is a standard deviation of at least $s_0$. For n normal scores with sample
    deviation s,

    $$ T = (n - 1) \frac{s^2}{s_0^2}, \qquad p = P(\chi^2_{n-1} \le T) $$

    A small p says that the spread is smaller than $s_0$, not that the scores are equal.

    Args:
        scores: At least two, in percentage points.
        threshold: $s_0$, in the same unit.

    Returns:
        T and p; both 0 if all scores are equal.

    Raises:
        ValueError: If there are fewer than two scores.
    """
    freedom = len(scores) - 1
    statistic = freedom * (standard_deviation(scores) / threshold) ** 2
    return HypothesisTest(statistic, float(stats.chi2.cdf(statistic, freedom)))


def kolmogorov_smirnov(scores: Sequence[float]) -> HypothesisTest | None:
    r"""Test scores for normality: the largest gap between their distribution and a normal one.

    $$ D = \sup_x |F_n(x) - \Phi((x - \bar{x}) / s)| $$

    Two-sided, with the exact distribution of D for n values. That distribution assumes a mean and a
    deviation known beforehand; here they come from the scores, so p is too large (Lilliefors 1967,
    doi:10.1080/01621459.1967.10482916), and with five scores hardly anything is ever rejected. It is
    reported because the paper reports it: a large p is no evidence of normality.

    Args:
        scores: At least two.

    Returns:
        D and p, or None if all scores are equal: no normal distribution fits a point.

    Raises:
        ValueError: If there are fewer than two scores.
    """
    deviation = standard_deviation(scores)
    if deviation == 0:
        return None
    result = stats.kstest((np.asarray(scores) - np.mean(scores)) / deviation, "norm")
    return HypothesisTest(float(result.statistic), float(result.pvalue))


def defined_mean(values: list[float]) -> float:
    """Average the values that are not NaN; NaN if there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


@dataclass(frozen=True)
class Sample:
    """What a metric was over some cases; NaN, but for the count, if no case has a value.

    Attributes:
        mean: Of the cases with a value.
        median: Of the same.
        low: Lower end of the 95 % bootstrap interval of the mean.
        high: Upper end.
        count: Cases with a value.
    """

    mean: float
    median: float
    low: float
    high: float
    count: int


def summarise(
    values: Float64[np.ndarray, "case column"], patients: Sequence[str], *, seed: int
) -> tuple[Sample, ...]:
    r"""Summarise the columns of a table of scores, and their average.

    The interval is that of the percentile bootstrap (Efron and Tibshirani 1993, ISBN 0-412-04231-2):
    patients are drawn with replacement, as many as there are, with all their cases, and the mean is
    taken; its 2.5th and 97.5th percentile over many draws are the ends. Cases of one patient, who may
    be in several cohorts, are no independent evidence; where everybody has one case it is the
    bootstrap over cases. The spread of runs with other seeds is not in it.

    Args:
        values: NaN where a case has no value; left out of every mean.
        patients: Whose case each row is.
        seed: Of the draws.

    Returns:
        One for each column, and last that of the columns' average: its mean is the mean of their
        means, its median is over the averages of single cases, which leave NaN out.
    """
    _, owner = np.unique(list(patients), return_inverse=True)
    num_patients = int(owner.max()) + 1
    generator = np.random.default_rng(seed)
    share = np.full(num_patients, 1 / num_patients)
    weights = generator.multinomial(num_patients, share, size=NUM_RESAMPLES)[:, owner]
    means = _weighted_means(weights.astype(np.float64), values)
    columns = [*values.T, _mean_defined(values)]
    draws = [*means.T, _mean_defined(means)]
    centres = [defined_mean(column) for column in values.T.tolist()]
    centres.append(defined_mean(centres))
    return tuple(map(_sample, columns, centres, draws))


def _sample(
    values: Float64[np.ndarray, " case"], mean: float, draws: Float64[np.ndarray, " draw"]
) -> Sample:
    defined = values[~np.isnan(values)]
    if defined.size == 0:
        return Sample(math.nan, math.nan, math.nan, math.nan, 0)
    low, high = np.percentile(draws[~np.isnan(draws)], (2.5, 97.5))
    return Sample(mean, float(np.median(defined)), float(low), float(high), defined.size)


def _weighted_means(
    weights: Float64[np.ndarray, "draw case"], values: Float64[np.ndarray, "case column"]
) -> Float64[np.ndarray, "draw column"]:
    """Average each column with the cases weighted, without NaN; NaN if no weight is left."""
    is_defined = ~np.isnan(values)
    totals = weights @ np.where(is_defined, values, 0.0)
    counts = weights @ is_defined.astype(np.float64)
    means = np.full(totals.shape, np.nan)
    np.divide(totals, counts, out=means, where=counts > 0)
    return means


def _mean_defined(
    values: Float64[np.ndarray, "row column"],
) -> Float64[np.ndarray, " row"]:
    return np.asarray(_weighted_means(np.ones((1, values.shape[1])), values.T)[0])


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same patients.

    Attributes:
        num_patients: With a score of both.
        num_different: Of these, whose two scores differ.
        median_difference: Of the second model's score minus the first's.
        p_value: Two-sided; None if no two scores differ.
    """

    num_patients: int
    num_different: int
    median_difference: float
    p_value: float | None


def wilcoxon_signed_rank(
    first: Float64[np.ndarray, " patient"], second: Float64[np.ndarray, " patient"]
) -> PairedTest:
    """Test whether paired scores differ, by the ranks of their differences.

    Equal pairs are left out, as Wilcoxon (1945), doi:10.2307/3001968, did. With few pairs p is exact:
    over all ways to give the differences their signs.

    Args:
        first: Scores of one model; at least one.
        second: Scores of another, of the same patients in the same order.
    """
    differences = second - first
    nonzero = differences[differences != 0]
    p_value = None if nonzero.size == 0 else _wilcoxon_p(nonzero)
    return PairedTest(first.size, nonzero.size, float(np.median(differences)), p_value)


def _wilcoxon_p(differences: Float64[np.ndarray, " patient"]) -> float:
    has_ties = np.unique(np.abs(differences)).size < differences.size
    if not has_ties:
        method: Any = "exact" if differences.size <= MOST_EXACT else "approx"
    elif differences.size <= MOST_PERMUTED:
        method = stats.PermutationMethod(n_resamples=2**MOST_PERMUTED)  # with that many, every sign
    else:
        method = "approx"
    return float(stats.wilcoxon(differences, method=method).pvalue)
