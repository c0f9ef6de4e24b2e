"""One HTML page about runs: who had what, how training went, what came out. Needs no network."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cache_schema.manifest import Manifest, read_manifest
from cache_schema.vocabulary import COHORTS, LABELS, REGIONS
from training.config import TrainConfig, read_config
from training.data import CaseVolume, VolumeDataset
from training.device import choose_device
from training.evaluate import (
    EVALUATION_NAME,
    UNTRAINED_NAME,
    read_means,
    read_scores,
    trained_model,
)
from training.predict import predict_labels
from training.provenance import require_same_cache
from training.runlog import RoundRecord, first_round_at, read_rounds
from training.show import describe_leakage

# Okabe and Ito's palette, told apart by colour-blind readers too.
LABEL_COLOURS: Final = {"NEC": "#0072B2", "ED": "#E69F00", "ET": "#CC79A7"}
REGION_COLOURS: Final = {"ET": "#CC79A7", "TC": "#0072B2", "WT": "#E69F00"}
TARGETS: Final = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Mean training Dice whose first rounds are shown."""


@dataclass(frozen=True)
class RunSection:
    """What the page shows of one run; figures are data URIs."""

    name: str
    settings: dict[str, Any]
    seconds: float
    bytes_received: int
    bytes_sent: int
    rounds_to_dice: dict[str, int | None]
    curves: str
    trained: Any
    untrained: Any
    panels: str | None


def write_report(runs: Sequence[Path], cache: Path, out: Path, *, device: str = "auto") -> None:
    """Write a self-contained page about some runs on one cache.

    Args:
        runs: Folders that `train fed` wrote; scores appear where `train eval` has been run.
        cache: Their cache; its test cases are shown with truth and prediction.
        out: The page to write.
        device: Where to compute the predictions shown.

    Raises:
        InputError: If a run or the cache cannot be read, or a run was trained on another cache.
    """
    manifest = read_manifest(cache)
    for run in runs:
        require_same_cache(run, cache, manifest)
    sections = [_section(run, cache, device) for run in runs]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        manifest=manifest,
        leakage=describe_leakage(manifest.leakage),
        composition=_data_uri(composition_figure(manifest)),
        regions=list(REGIONS),
        test_sets=[*COHORTS, "all"],
        sections=sections,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")


def _section(run: Path, cache: Path, device: str) -> RunSection:
    config = read_config(run)
    rounds = read_rounds(run)
    return RunSection(
        name=run.name,
        settings=config.model_dump(),
        seconds=sum(record.seconds for record in rounds),
        bytes_received=sum(part.bytes_received for record in rounds for part in record.clients),
        bytes_sent=sum(part.bytes_sent for record in rounds for part in record.clients),
        rounds_to_dice={f"{dice:g}": first_round_at(rounds, dice) for dice in TARGETS},
        curves=_data_uri(curves_figure(rounds)),
        trained=read_means(run, EVALUATION_NAME),
        untrained=read_means(run, UNTRAINED_NAME),
        panels=_panels(run, config, VolumeDataset(cache, split="test"), device),
    )


def composition_figure(manifest: Manifest) -> Figure:
    """Draw what each client holds: cases by grade, and tumour volume by label."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    grades, volumes = figure.subplots(1, 2)
    clients = manifest.partition.clients
    numbers = [record.client for record in clients]
    names = sorted({grade for record in clients for grade in record.grades})
    cases = {name: [float(c.grades.get(name, 0)) for c in clients] for name in names}
    _stack(grades, numbers, cases, {})
    grades.set_ylabel("training cases")
    volume = {
        name: [getattr(record.label_voxels, name) / 1e3 for record in clients] for name in LABELS
    }
    _stack(volumes, numbers, volume, LABEL_COLOURS)
    volumes.set_ylabel("tumour, thousand voxels")
    return figure


def _stack(
    axes: Axes, places: Sequence[int], heights: dict[str, list[float]], colours: dict[str, str]
) -> None:
    below = np.zeros(len(places))
    for name, values in heights.items():
        axes.bar(places, values, bottom=below, label=name, color=colours.get(name))
        below += values
    axes.set_xlabel("client")
    axes.set_xticks(places)
    axes.legend(frameon=False)


def curves_figure(rounds: Sequence[RoundRecord]) -> Figure:
    """Draw loss and training Dice over the rounds; thin lines are single clients."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    loss, dice = figure.subplots(1, 2)
    numbers = [record.round for record in rounds]
    for client in sorted({entry.client for record in rounds for entry in record.clients}):
        points = [
            (record.round, entry.loss)
            for record in rounds
            for entry in record.clients
            if entry.client == client and entry.loss is not None
        ]
        loss.plot(*zip(*points, strict=True), color="#bbbbbb", linewidth=0.8)
    loss.plot(numbers, [record.loss for record in rounds], color="black", marker=".")
    loss.set_ylabel("training loss")
    for region, colour in REGION_COLOURS.items():
        values = [record.dice[region] for record in rounds]
        dice.plot(numbers, values, color=colour, marker=".", label=region)
    dice.set_ylim(0, 1)
    dice.set_ylabel("Dice on augmented training batches")
    dice.legend(frameon=False)
    for axes in (loss, dice):
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _panels(run: Path, config: TrainConfig, dataset: VolumeDataset, device: str) -> str | None:
    """Show the best, the median and the worst test case by whole-tumour Dice."""
    scores = read_scores(run)
    # A patient of several cohorts is shown once.
    patients = {
        case.patient_id: place for place, case in enumerate(dataset.cases) if case.case_id in scores
    }
    ranked = sorted(
        patients.values(), key=lambda place: -scores[dataset.cases[place].case_id]["WT"]
    )
    if not ranked:
        return None
    chosen = sorted({0, len(ranked) // 2, len(ranked) - 1})
    model, _ = trained_model(run, config)
    model = model.to(choose_device(device))
    figure = Figure(figsize=(9, 2.6 * len(chosen)), layout="constrained")
    grid = figure.subplots(len(chosen), 4, squeeze=False)
    for row, place in zip(grid.tolist(), chosen, strict=True):
        volume = dataset[ranked[place]]
        z = int(np.argmax(np.count_nonzero(volume.label, axis=(1, 2))))
        prediction = predict_labels(model, volume.image[z : z + 1], config.target, batch_size=1)[0]
        title = f"{volume.case_id}, WT {100 * scores[volume.case_id]['WT']:.1f} %"
        _draw_case(row, volume, z, prediction, title)
    return _data_uri(figure, "png")


def _draw_case(
    row: Sequence[Axes],
    volume: CaseVolume,
    z: int,
    prediction: UInt8[np.ndarray, "height width"],
    title: str,
) -> None:
    t1ce, flair = (volume.image[z, channel].astype(np.float32) for channel in (1, 3))
    plain = np.zeros_like(prediction)
    columns = (
        ("FLAIR", flair, plain),
        ("T1CE", t1ce, plain),
        ("truth", flair, volume.label[z]),
        ("prediction", flair, prediction),
    )
    for axes, (name, image, label) in zip(row, columns, strict=True):
        axes.imshow(overlay(image, label))
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    row[0].text(
        0.0, -0.08, f"{title}, slice z={volume.z[z]}", transform=row[0].transAxes, fontsize=8
    )


def overlay(
    image: Float[np.ndarray, "height width"], label: UInt8[np.ndarray, "height width"]
) -> Float[np.ndarray, "width height 3"]:
    """Paint labels over a slice in radiological orientation: front up, the patient's right on the left.

    Args:
        image: One modality, z-scored; voxel axes run to the patient's left and back.
        label: BraTS values.

    Returns:
        Colours from 0 to 1, rows from front to back.
    """
    brain = image != 0
    low, high = np.percentile(image[brain], (0.5, 99.5)) if brain.any() else (0.0, 1.0)
    gray = np.where(brain, 0.1 + 0.9 * np.clip((image - low) / max(high - low, 1e-6), 0, 1), 0.0)
    painted = np.repeat(gray[..., None], 3, axis=2)
    for name, value in LABELS.items():
        colour = np.array(mpl.colors.to_rgb(LABEL_COLOURS[name]))
        painted[label == value] = 0.35 * painted[label == value] + 0.65 * colour
    return painted.transpose(1, 0, 2)


def _data_uri(figure: Figure, kind: str = "svg") -> str:
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "fedunetmm"}):
        metadata = {"Date": None} if kind == "svg" else None  # the same run gives the same page
        figure.savefig(buffer, format=kind, dpi=110, metadata=metadata)
    mime = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"
