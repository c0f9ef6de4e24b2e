"""Pictures of who got what: bars by client, the overlap of cohorts, a contact sheet of slices.

Matplotlib's objects only, no pyplot: nothing global, no display needed.
"""

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from cache_schema.leakage import SYNTHETIC_NOTE, describe_leakage
from cache_schema.manifest import CaseRecord, Manifest
from cache_schema.vocabulary import COHORTS, LABELS, UNKNOWN, Cohort
from pipeline.specimens import LABEL_COLOURS, Specimen, panels

# All colours are of Okabe and Ito's palette, told apart by colour-blind readers too, and greys.
GRADE_COLOURS: Final = {"HGG": "#D55E00", "LGG": "#56B4E9", UNKNOWN: "#BBBBBB"}
COHORT_COLOURS: Final = {"brats2018": "#56B4E9", "brats2019": "#009E73", "brats2020": "#CC79A7"}
LEAKED: Final = "test, but also\ntrained on"
SPLIT_COLOURS: Final = {"training": "#0072B2", "test": "#E69F00", LEAKED: "#D55E00"}
SITE_COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
OTHER_COLOUR: Final = "#777777"
INK: Final = "#222222"

SLIDE_INCHES: Final = (16.0, 9.0)
CHART_INCHES: Final = (4.8, 2.7)
MAX_TOTALS: Final = 12
"""Numbers are written over the bars of so many clients; those of more would touch."""

Draw = Callable[[Axes], None]


@dataclass(frozen=True)
class Stack:
    """Stacked bars: a number for each part and client, and each part's colour."""

    parts: Mapping[str, Sequence[int]]
    colours: Mapping[str, str]


def client_stacks(manifest: Manifest) -> dict[str, Stack]:
    """Count what each client trains on, in several ways.

    Args:
        manifest: Of the cache.

    Returns:
        Stacks by title.
    """
    clients = manifest.partition.clients
    grades = {g: [c.grades.get(g, 0) for c in clients] for g in GRADE_COLOURS}
    slices: dict[str, list[int]] = {cohort: [0] * len(clients) for cohort in COHORTS}
    for case in manifest.cases:
        if case.client is not None:
            slices[case.cohort][case.client] += case.num_slices
    labels = {name: [int(getattr(c.label_voxels, name)) for c in clients] for name in LABELS}
    return {
        "Training cases by grade": Stack(_occurring(grades), GRADE_COLOURS),
        "Training cases by site": _site_stack([client.sites for client in clients]),
        "Training slices by cohort": Stack(_occurring(slices), COHORT_COLOURS),
        "Tumour voxels by label": Stack(labels, LABEL_COLOURS),
    }


def _occurring(parts: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    return {name: numbers for name, numbers in parts.items() if any(numbers)}


def _site_stack(sites: Sequence[Mapping[str, int]]) -> Stack:
    """Give the sites with most cases a colour each; the rest, if any, are put together."""
    total: Counter[str] = Counter()
    for counts in sites:
        total.update(counts)
    known = sorted((name for name in total if name != UNKNOWN), key=lambda n: (-total[n], n))
    named, rest = known[: len(SITE_COLOURS)], known[len(SITE_COLOURS) :]
    other = f"{len(rest)} other sites"
    parts = {
        **{name: [counts.get(name, 0) for counts in sites] for name in named},
        other: [sum(counts.get(name, 0) for name in rest) for counts in sites],
        UNKNOWN: [counts.get(UNKNOWN, 0) for counts in sites],
    }
    colours = dict(zip(named, SITE_COLOURS, strict=False))
    return Stack(_occurring(parts), {**colours, other: OTHER_COLOUR, UNKNOWN: "#BBBBBB"})


def cohort_combinations(cases: Sequence[CaseRecord]) -> dict[tuple[Cohort, ...], int]:
    """Count patients by the cohorts that they are in, no more and no fewer.

    Args:
        cases: Stored cases, whatever their split.

    Returns:
        Patients by combination, the most frequent first; they sum up to all patients.
    """
    found: dict[str, set[Cohort]] = {}
    for case in cases:
        found.setdefault(case.patient_id, set()).add(case.cohort)
    counts = Counter(tuple(c for c in COHORTS if c in cohorts) for cohorts in found.values())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def split_stack(manifest: Manifest) -> Stack:
    """Count the cases of each cohort, in the order of `manifest.cohorts`, by what they are for."""
    trained = {case.patient_id for case in manifest.cases if case.split == "train"}
    kinds = Counter(
        (case.cohort, _kind(case, is_trained=case.patient_id in trained)) for case in manifest.cases
    )
    parts = {kind: [kinds[cohort, kind] for cohort in _cohorts(manifest)] for kind in SPLIT_COLOURS}
    return Stack(_occurring(parts), SPLIT_COLOURS)


def _kind(case: CaseRecord, *, is_trained: bool) -> str:
    if case.split == "train":
        return "training"
    return LEAKED if is_trained else "test"


def _cohorts(manifest: Manifest) -> list[Cohort]:
    return [cohort for cohort in COHORTS if cohort in manifest.cohorts]


def client_charts(manifest: Manifest) -> dict[str, Draw]:
    """Return what draws each chart about clients, by title."""
    return {
        title: partial(_draw_clients, stack=stack)
        for title, stack in client_stacks(manifest).items()
    }


def cohort_charts(manifest: Manifest) -> dict[str, Draw]:
    """Return what draws each chart about cohorts, by title."""
    return {
        "Patients by the cohorts they are in": partial(
            _draw_overlap,
            combinations=cohort_combinations(manifest.cases),
            cohorts=_cohorts(manifest),
        ),
        "Cases of each cohort": partial(
            _draw_split, stack=split_stack(manifest), cohorts=_cohorts(manifest)
        ),
    }


def _draw_clients(axes: Axes, stack: Stack) -> None:
    num_clients = max((len(numbers) for numbers in stack.parts.values()), default=0)
    places, below = np.arange(num_clients), np.zeros(num_clients)
    write = EngFormatter(sep="", places=1)
    for name, numbers in stack.parts.items():
        bars = axes.bar(
            places,
            numbers,
            width=min(0.8, 0.25 + 0.11 * num_clients),  # a lone bar is no wall
            bottom=below,
            label=name,
            color=stack.colours[name],
            edgecolor="white",
            linewidth=0.4,
        )
        below += numbers
    if stack.parts and num_clients <= MAX_TOTALS:
        labels = [f"{n:.0f}" if n < 10_000 else write(n) for n in below]
        axes.bar_label(bars, labels, fontsize=7, padding=1)
    axes.set_ylim(0, 1.12 * max(below.max(initial=0), 1))
    axes.set_xlim(-0.6, num_clients - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(24, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("client", fontsize=8)
    _tidy(axes)
    _legend(axes, reverse=True)


def _draw_overlap(
    axes: Axes, combinations: Mapping[tuple[Cohort, ...], int], cohorts: Sequence[Cohort]
) -> None:
    """Draw an UpSet plot (Lex et al. 2014, doi:10.1109/TVCG.2014.2346248): bars over a matrix of dots."""
    places = np.arange(len(combinations))
    counts = np.array(list(combinations.values()))
    bars = axes.bar(places, counts, width=0.5, color="#0072B2")
    axes.bar_label(bars, fontsize=8, padding=1)
    top = max(int(counts.max(initial=0)), 1)
    heights = {cohort: -top * (0.15 + 0.18 * row) for row, cohort in enumerate(cohorts)}
    for place, members in enumerate(combinations):
        for cohort, height in heights.items():
            axes.plot(place, height, "o", color=INK if cohort in members else "#DDDDDD")
        axes.plot([place] * len(members), [heights[cohort] for cohort in members], color=INK)
    ticks = [tick for tick in MaxNLocator(4, integer=True).tick_values(0, top) if tick <= top]
    names = [*(f"{tick:.0f}" for tick in ticks), *heights]
    axes.set_yticks([*ticks, *heights.values()], names)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    axes.set_xlim(-0.6, max(len(combinations), 3) - 0.4)
    axes.set_ylim(min(heights.values(), default=0) - 0.15 * top, 1.15 * top)
    axes.spines.bottom.set_position(("data", 0))
    axes.spines.left.set_bounds(0, top)
    _tidy(axes)


def _draw_split(axes: Axes, stack: Stack, cohorts: Sequence[Cohort]) -> None:
    before = np.zeros(len(cohorts))
    for name, numbers in stack.parts.items():
        bars = axes.barh(
            cohorts, numbers, 0.55, before, label=name, color=stack.colours[name], edgecolor="white"
        )
        shown = [str(number) if number else "" for number in numbers]
        ink = "white" if name == "training" else "black"
        axes.bar_label(bars, shown, label_type="center", fontsize=8, color=ink)
        before += numbers
    axes.set_ylim(len(cohorts) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("cases", fontsize=8)
    _tidy(axes)
    _legend(axes)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _legend(axes: Axes, *, reverse: bool = False) -> None:
    axes.legend(
        frameon=False,
        fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1, 1),
        reverse=reverse,
        borderpad=0,
    )


def chart_figure(draw: Draw) -> Figure:
    """Draw one chart by itself; its title belongs to the page."""
    figure = Figure(figsize=CHART_INCHES, layout="constrained")
    draw(figure.subplots())
    return figure


def strip_figure(specimen: Specimen) -> Figure:
    """Draw one specimen by itself: its modalities and its labels, side by side."""
    num_rows, num_columns = _strip(specimen).shape[:2]
    figure = Figure(figsize=(9, 9 * specimen.aspect * num_rows / num_columns))
    draw_specimen(figure.add_axes((0, 0, 1, 1)), specimen, fontsize=16)
    return figure


def draw_specimen(axes: Axes, specimen: Specimen, fontsize: int) -> None:
    """Draw the modalities of a slice and its labels as one strip, each with its name in it.

    Args:
        axes: Where.
        specimen: What.
        fontsize: Of the names, in points.
    """
    axes.imshow(_strip(specimen), aspect=specimen.aspect)
    axes.set_axis_off()
    height, width = specimen.label.shape
    for number, (name, picture) in enumerate(panels(specimen)):
        left = number * (width + _gap(specimen)) - 0.5
        place = (left + 0.03 * width, 0.02 * height)
        axes.text(*place, name, color="white", fontsize=fontsize, va="top")
        if picture is None:
            axes.text(
                left + width / 2,
                height / 2,
                "absent",
                color="#BBBBBB",
                fontsize=fontsize,
                ha="center",
            )


def _strip(specimen: Specimen) -> np.ndarray:
    gap = np.ones((specimen.label.shape[0], _gap(specimen), 3))
    black = np.zeros((*specimen.label.shape, 3))
    pictures = [black if picture is None else picture for _, picture in panels(specimen)]
    parts = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(parts[1:], axis=1)


def _gap(specimen: Specimen) -> int:
    return 1 + int(specimen.label.shape[1]) // 60


def caption(specimen: Specimen) -> str:
    """Say whose slice it is."""
    case = specimen.case
    return f"{specimen.owner}: {case.case_id}, {case.grade}, z={specimen.z}"


def summary_figure(manifest: Manifest, specimens: Sequence[Specimen]) -> Figure:
    """Put everything on one slide.

    Args:
        manifest: Of the cache.
        specimens: For the contact sheet.

    Returns:
        A figure of 16 by 9.
    """
    figure = Figure(figsize=SLIDE_INCHES, layout="constrained")
    options, patients = manifest.options, {case.patient_id for case in manifest.cases}
    leakage = describe_leakage(manifest.leakage)
    note = f"\n{SYNTHETIC_NOTE}" if manifest.synthetic else ""
    figure.suptitle(
        f"{len(manifest.cases)} cases of {len(patients)} patients, {options.clients} clients "
        f"(alpha {options.alpha:g}, skew {options.skew}, seed {options.seed}); {leakage}{note}",
        fontsize=13,
    )
    halves = figure.add_gridspec(2, 1, height_ratios=(4.2, 4.6))
    above, below = (figure.add_subfigure(halves[row, 0]) for row in (0, 1))
    charts = client_charts(manifest) | cohort_charts(manifest)
    for axes, (title, draw) in zip(above.subplots(2, 3).flat, charts.items(), strict=True):
        draw(axes)
        axes.set_title(title, fontsize=9, weight="bold", loc="left")
    _draw_sheet(below, specimens)
    return figure


def _draw_sheet(figure: SubFigure, specimens: Sequence[Specimen]) -> None:
    # Strips are about six times as wide as high: with so many beside each other they fill a slide.
    num_columns = 3 if len(specimens) > 4 else max(1, (len(specimens) + 1) // 2)
    num_rows = max(1, -(-len(specimens) // num_columns))
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, specimen in zip(grid.flat, specimens, strict=False):
        draw_specimen(axes, specimen, fontsize=7)
        axes.set_title(caption(specimen), fontsize=8, loc="left", pad=2)
    key = [Patch(color=colour, label=name) for name, colour in LABEL_COLOURS.items()]
    key.append(Patch(alpha=0, label="front up, the patient's right on the left"))
    figure.legend(handles=key, loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def image_bytes(figure: Figure, kind: Literal["png", "svg"], dpi: int = 110) -> bytes:
    """Render a figure; the same figure gives the same bytes.

    Args:
        figure: What to render.
        kind: File format.
        dpi: Pixels an inch.

    Returns:
        A whole file, without date or version in it.
    """
    buffer = io.BytesIO()
    silent = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]
    with mpl.rc_context({"svg.hashsalt": "fedunetmm"}):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=silent)
    return buffer.getvalue()
