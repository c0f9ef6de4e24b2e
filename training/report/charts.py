"""Charts of a cache and of training: who holds what, and loss, Dice, bytes and time over the rounds."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from cache_schema.manifest import Manifest
from cache_schema.vocabulary import LABELS, REGIONS
from training.report.picture import (
    CHART_INCHES,
    GRADE_COLOURS,
    INK,
    LABEL_COLOURS,
    REGION_COLOURS,
    REGION_MARKERS,
    Picture,
    chart,
    draw_lines,
    draw_stack,
    label_axes,
)
from training.report.record import RunRecord
from training.runlog import EVERYBODY, RoundRecord


def composition_charts(manifest: Manifest) -> list[Picture]:
    """Draw what each client holds: cases by grade, and tumour volume by label."""
    clients = manifest.partition.clients
    numbers = [record.client for record in clients]
    grades = {name: [float(c.grades.get(name, 0)) for c in clients] for name in GRADE_COLOURS}
    grades = {name: counts for name, counts in grades.items() if any(counts)}
    volumes = {name: [float(getattr(c.label_voxels, name)) for c in clients] for name in LABELS}

    def draw_grades(axes: Axes) -> None:
        draw_stack(axes, numbers, grades, GRADE_COLOURS, "client")
        axes.set_ylabel("training cases")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

    def draw_volumes(axes: Axes) -> None:
        draw_stack(axes, numbers, volumes, LABEL_COLOURS, "client")
        axes.set_ylabel("tumour, voxels")
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))

    words = "a bar for each client; numbers in the table below"
    return [
        chart("Training cases by grade", f"Training cases by grade, {words}", draw_grades),
        chart("Tumour volume by label", f"Tumour volume by label, {words}", draw_volumes),
    ]


def training_charts(run: RunRecord) -> list[Picture]:
    """Draw loss, Dice, bytes and time over the rounds of a run."""
    rounds = run.rounds
    if not rounds:
        return []
    numbers = [record.round for record in rounds]

    def draw_loss(axes: Axes) -> None:
        axes.plot(numbers, [record.loss for record in rounds], color=INK, marker=".")
        label_axes(axes, "round", "training loss")

    def draw_dice(axes: Axes) -> None:
        for region, colour in REGION_COLOURS.items():
            values = [record.dice_of(region) for record in rounds]
            marker = REGION_MARKERS[region]
            axes.plot(numbers, values, color=colour, marker=marker, markersize=4, label=region)
        axes.set_ylim(0, 1)
        axes.legend(frameon=False, ncols=3, fontsize=8)
        label_axes(axes, "round", "Dice, augmented batches")

    def draw_time(axes: Axes) -> None:
        axes.bar(numbers, [record.seconds for record in rounds], color="#56B4E9")
        label_axes(axes, "round", "seconds")

    first, last = rounds[0], rounds[-1]
    loss = f"from {first.loss:.3f} to {last.loss:.3f}"
    dice = ", ".join(f"{r} {first.dice_of(r):.2f} to {last.dice_of(r):.2f}" for r in REGIONS)
    charts = [
        chart("Training loss", f"Training loss over the rounds, {loss}", draw_loss),
        chart("Training Dice", f"Training Dice over the rounds, {dice}", draw_dice),
        chart("Time", f"Seconds of each round, {run.seconds:.0f} in all", draw_time),
    ]
    return charts + (_exchange_charts(rounds) if last.total_bytes else [])


def _exchange_charts(rounds: Sequence[RoundRecord]) -> list[Picture]:
    numbers = [record.round for record in rounds]
    parts = {
        "received": [float(sum(c.bytes_received for c in record.clients)) for record in rounds],
        "sent": [float(sum(c.bytes_sent for c in record.clients)) for record in rounds],
    }

    def draw_each(axes: Axes) -> None:
        draw_stack(axes, numbers, parts, {"received": "#0072B2", "sent": "#E69F00"}, "round")
        axes.set_ylabel("bytes")
        axes.yaxis.set_major_formatter(EngFormatter(unit="B"))

    def draw_total(axes: Axes) -> None:
        axes.plot(numbers, [record.total_bytes for record in rounds], color=INK, marker=".")
        axes.set_ylim(bottom=0)
        label_axes(axes, "round", "bytes since round 1")
        axes.yaxis.set_major_formatter(EngFormatter(unit="B"))

    last = rounds[-1]
    return [
        chart(
            "Exchanged in each round",
            f"Bytes that clients received and sent in each round, {last.num_bytes} in the last",
            draw_each,
        ),
        chart(
            "Exchanged in all", f"Bytes exchanged so far, {last.total_bytes} at the end", draw_total
        ),
    ]


def client_charts(rounds: Sequence[RoundRecord]) -> list[Picture]:
    """Draw loss and mean Dice of each client over the rounds, a line a client."""
    clients = sorted({part.client for record in rounds for part in record.clients} - {EVERYBODY})
    if not clients:
        return []
    losses = {
        f"client {client}": [
            (record.round, part.loss)
            for record in rounds
            for part in record.clients
            if part.client == client and part.loss is not None
        ]
        for client in clients
    }
    dice = {
        f"client {client}": [
            (record.round, float(np.mean(list(part.dice.values()))))
            for record in rounds
            for part in record.clients
            if part.client == client and part.dice
        ]
        for client in clients
    }
    words = f"over the rounds, a line for each of {len(clients)} clients"
    height = CHART_INCHES[1] + 0.2 * -(-len(clients) // 4)
    return [
        chart(
            "Loss by client",
            f"Training loss {words}",
            draw_lines(losses, "training loss"),
            height=height,
        ),
        chart(
            "Mean Dice by client",
            f"Mean training Dice of the three regions {words}",
            draw_lines(dice, "mean training Dice", (0.0, 1.0)),
            height=height,
        ),
    ]


def comparison_charts(runs: Sequence[RunRecord]) -> list[Picture]:
    """Draw loss and mean Dice of several runs in one chart each."""
    losses = {run.name: [(record.round, record.loss) for record in run.rounds] for run in runs}
    dice = {run.name: [(record.round, record.mean_dice) for record in run.rounds] for run in runs}
    words = f"over the rounds, a line for each run: {', '.join(losses)}"
    return [
        chart("Training loss", f"Training loss {words}", draw_lines(losses, "training loss")),
        chart(
            "Mean training Dice",
            f"Mean training Dice of the three regions {words}",
            draw_lines(dice, "mean training Dice", (0.0, 1.0)),
        ),
    ]
