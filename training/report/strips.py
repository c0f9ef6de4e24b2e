"""Charts of scores: a point for each test case."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes

from cache_schema.vocabulary import COHORTS, REGIONS
from training.report.picture import (
    INK,
    REGION_COLOURS,
    REGION_MARKERS,
    Draw,
    Picture,
    chart,
)
from training.scores import CaseScore


def strip_charts(scores: Sequence[CaseScore]) -> list[Picture]:
    """Draw the Dice and the HD95 of every test case, by cohort and region."""
    words = "a point for each test case by cohort and region, a line at the median"
    return [
        chart("Dice of each test case", f"Dice, {words}", draw_strips(scores, "dice", "Dice")),
        chart(
            "HD95 of each test case",
            f"95th percentile of the surface distance, {words}",
            draw_strips(scores, "hd95_mm", "HD95, mm; log above 10"),
        ),
    ]


def draw_strips(scores: Sequence[CaseScore], metric: str, label: str) -> Draw:
    """Make a chart of a metric: points by cohort and region, and their medians."""
    cohorts = [name for name in COHORTS if any(score.cohort == name for score in scores)]

    def draw(axes: Axes) -> None:
        for place, cohort in enumerate(cohorts):
            for offset, region in zip((-0.27, 0.0, 0.27), REGIONS, strict=True):
                values = [s.values[metric][region] for s in scores if s.cohort == cohort]
                _strip(axes, place + offset, np.array(values), region, is_named=place == 0)
        axes.set_xticks(range(len(cohorts)), cohorts)
        axes.set_xlim(-0.5, len(cohorts) - 0.5)
        axes.set_ylabel(label)
        if metric == "hd95_mm":
            axes.set_yscale("symlog", linthresh=10)
            axes.set_yticks([0, 5, 10, 30, 100, 300], ["0", "5", "10", "30", "100", "300"])
            axes.set_ylim(-1, 500)
        else:
            axes.set_ylim(-0.03, 1.03)
        figure = axes.get_figure()
        if figure is not None:
            figure.legend(loc="outside upper right", ncols=3, fontsize=8, frameon=False)

    return draw


def _strip(
    axes: Axes, place: float, values: Float64[np.ndarray, " case"], region: str, *, is_named: bool
) -> None:
    defined = np.sort(values[~np.isnan(values)])
    if defined.size == 0:
        return
    # Golden-ratio steps spread neighbours apart, the same way every time.
    spread = 0.16 * ((np.arange(defined.size) * 0.618034) % 1.0 - 0.5)
    axes.scatter(
        place + spread,
        defined,
        s=24,
        marker=REGION_MARKERS[region],
        color=REGION_COLOURS[region],
        alpha=0.75,
        linewidths=0,
        label=region if is_named else None,
    )
    middle = float(np.median(defined))
    axes.plot([place - 0.13, place + 0.13], [middle, middle], color=INK, linewidth=1.2, zorder=0)
