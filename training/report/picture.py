"""A chart as a data URI, and what charts have in common: colours, bars, lines.

Matplotlib's objects only, no pyplot: nothing global, no display needed.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cache_schema.vocabulary import UNKNOWN

# All colours are of Okabe and Ito's palette, told apart by colour-blind readers too, and greys.
LABEL_COLOURS: Final = {"NEC": "#0072B2", "ED": "#E69F00", "ET": "#CC79A7"}
REGION_COLOURS: Final = {"ET": "#CC79A7", "TC": "#0072B2", "WT": "#E69F00"}
REGION_MARKERS: Final = {"ET": "o", "TC": "^", "WT": "s"}
GRADE_COLOURS: Final = {"HGG": "#D55E00", "LGG": "#56B4E9", UNKNOWN: "#BBBBBB"}
SERIES_COLOURS: Final = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#222222",
)
SERIES_DASHES: Final = ("-", "--", ":", "-.")
"""A second sign beside the colour, which twenty clients need anyway."""
INK: Final = "#222222"

CHART_INCHES: Final = (4.8, 2.9)
DPI: Final = 130

Draw = Callable[[Axes], None]


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        title: Above it.
        alternative: What it shows, for those who cannot see it.
        address: The picture itself, as a data URI.
    """

    title: str
    alternative: str
    address: str


def chart(title: str, alternative: str, draw: Draw, *, height: float = CHART_INCHES[1]) -> Picture:
    """Draw a chart; the same data give the same bytes."""
    figure = Figure(figsize=(CHART_INCHES[0], height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    return Picture(title, alternative, data_uri(figure, "svg"))


def data_uri(figure: Figure, kind: Literal["svg", "png"]) -> str:
    """Render a figure as an address that needs no network."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "fedunetmm"}):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    mime = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def draw_stack(
    axes: Axes,
    places: Sequence[int],
    heights: Mapping[str, Sequence[float]],
    colours: Mapping[str, str],
    label: str,
) -> None:
    """Draw stacked bars: the heights of each part, bottom up, and its colour."""
    below = np.zeros(len(places))
    for name, values in heights.items():
        axes.bar(places, values, bottom=below, label=name, color=colours.get(name))
        below += values
    axes.set_ylim(0, 1.25 * max(below.max(initial=0.0), 1e-9))  # room for the legend
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(frameon=False, ncols=len(heights), loc="upper right", fontsize=8)


def draw_lines(
    series: Mapping[str, Sequence[tuple[int, float]]],
    label: str,
    limits: tuple[float, float] | None = None,
) -> Draw:
    """Make a chart of lines over the rounds, with a legend below it.

    Args:
        series: Points (round, value) by name.
        label: Of the values.
        limits: Of their axis.
    """

    def draw(axes: Axes) -> None:
        for place, (name, points) in enumerate(series.items()):
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    color=SERIES_COLOURS[place % len(SERIES_COLOURS)],
                    linestyle=SERIES_DASHES[place // len(SERIES_COLOURS) % len(SERIES_DASHES)],
                    linewidth=1.2,
                    marker=".",
                    label=name,
                )
        if limits is not None:
            axes.set_ylim(*limits)
        label_axes(axes, "round", label)
        columns = min(len(series), 4)
        figure = axes.get_figure()
        if figure is not None:
            figure.legend(loc="outside lower center", ncols=columns, fontsize=7, frameon=False)

    return draw


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Name both axes of a chart whose x are whole numbers."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
