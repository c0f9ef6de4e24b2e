r"""The two statistics of the paper's ablation (section 3.2.1), on a handful of scores.

The paper says in two sentences: no "significant variation in the prediction scores, as established
through a lower one-tailed chi-squared test with s_0 = 2.0, where s_0 is the standard deviation
threshold, for which we obtained p < 0.05 for all three classes", and "the normality of the prediction
scores is evident through the Kolmogorov-Smirnov Test". It leaves open:

- *Which scores.* We take the five mean Dice of a region, one for each row of Table 4. The Dice of
  single cases spreads over tens of points in any network, so s_0 = 2.0 would never be undercut.
- *Which unit.* Percentage points, as in Table 4. Of fractions, any scores whatever would pass.
- *Which classes.* Those of Table 4: ET, TC, WT.
- *Which normal distribution.* The one with the mean and deviation of the scores themselves; against
  the standard one, scores near 80 are nowhere near normal.

Read so, the five published rows do give p < 0.05 for all three; a test holds that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

THRESHOLD: Final = 2.0
"""The paper's s_0: the standard deviation that scores must stay below, in percentage points."""


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
