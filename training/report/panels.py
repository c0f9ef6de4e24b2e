"""Test cases in pictures, as in the paper's Figure 2: truth beside prediction, each label by itself."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.figure import Figure
from torch import nn

from cache_schema.geometry import pixel_aspect, radiological
from cache_schema.vocabulary import LABELS
from training.checkpoint import WEIGHTS_NAME
from training.data.volumes import CaseVolume, VolumeDataset
from training.device import choose_device
from training.models.initial import patch_of
from training.models.trained import naming, trained_model
from training.predict import predict_labels
from training.report.picture import LABEL_COLOURS, Picture, data_uri
from training.report.record import RunRecord
from training.scores import CaseScore

CHANNELS: Final = {"FLAIR": 3, "T1CE": 1}
UNDERLAYS: Final = {"NEC": "T1CE", "ED": "FLAIR", "ET": "T1CE"}
"""Where a label is seen best."""
DIFFERENCE_COLOUR: Final = "#D55E00"

Predict = Callable[[CaseVolume, int], UInt8[np.ndarray, "height width"]]
"""Segments a slice of a case."""


def case_panels(run: RunRecord, dataset: VolumeDataset, device: str) -> list[Picture]:
    """Show the best, the median and the worst test case by Dice of the whole tumour.

    A patient of several cohorts is shown once. Cases without a Dice by the convention are left out.

    Args:
        run: With scores or without; nothing is shown without.
        dataset: The test cases.
        device: Where to compute the predictions.

    Raises:
        InputError: If the run's weights or a shard cannot be read.
    """
    if run.scored is None:
        return []
    chosen = choose_cases(run.scored.evaluation.scores)
    places = {case.case_id: place for place, case in enumerate(dataset.cases)}
    model, _ = trained_model(run.path, run.config)
    model = model.to(choose_device(device))
    return [
        _picture(rank, score, dataset[places[score.case_id]], partial(_predict, model, run))
        for rank, score in chosen.items()
    ]


def choose_cases(scores: Sequence[CaseScore]) -> dict[str, CaseScore]:
    """Pick cases by the Dice of the whole tumour: by rank, each patient once.

    The worst case is taken first, so that it is the worst whatever else its patient has; of a single
    patient it is the only one.
    """
    defined = [score for score in scores if not np.isnan(score.values["dice"]["WT"])]
    ranked = sorted(defined, key=lambda score: -score.values["dice"]["WT"])
    middle = len(ranked) // 2
    around = sorted(range(len(ranked)), key=lambda place: abs(place - middle))
    orders = {"Worst": ranked[::-1], "Best": ranked, "Median": [ranked[place] for place in around]}
    chosen: dict[str, CaseScore] = {}
    for rank, order in orders.items():
        taken = {score.patient_id for score in chosen.values()}
        if others := [score for score in order if score.patient_id not in taken]:
            chosen[rank] = others[0]
    if len(chosen) == 1:
        return {"Only": chosen["Worst"]}
    return {rank: chosen[rank] for rank in ("Best", "Median", "Worst") if rank in chosen}


def _predict(
    model: nn.Module, run: RunRecord, volume: CaseVolume, index: int
) -> UInt8[np.ndarray, "height width"]:
    """Segment a slice by the rules by which the run was scored."""
    assert run.scored is not None  # noqa: S101
    evaluation = run.scored.evaluation
    patch = patch_of(run.config)
    # A network of volumes needs all slices of a case, and so does a rule about its enhancing voxels.
    is_whole = patch is not None or evaluation.postprocess_et > 0
    start, stop = (0, len(volume.z)) if is_whole else (index, index + 1)
    with naming(run.path / WEIGHTS_NAME):
        labels = predict_labels(
            model,
            volume.image[start:stop],
            run.config.target,
            batch_size=run.config.batch_size,
            patch=patch,
            tta=evaluation.tta,
            postprocess_et=evaluation.postprocess_et,
        )
    return np.asarray(labels[index - start])


def _picture(rank: str, score: CaseScore, volume: CaseVolume, predict: Predict) -> Picture:
    index = int(np.argmax(np.count_nonzero(volume.label, axis=(1, 2))))
    planes = volume.image[index].astype(np.float32)
    images = {name: _turn(planes[channel], volume) for name, channel in CHANNELS.items()}
    truth = _turn(volume.label[index], volume)
    prediction = _turn(predict(volume, index), volume)
    aspect = pixel_aspect(volume.affine)
    dice = ", ".join(f"{region} {_percent(v)}" for region, v in score.values["dice"].items())
    place = f"{score.case_id}, slice z={volume.z[index]}"
    return Picture(
        f"{rank}: {place}; Dice {dice}",
        f"{place}: FLAIR, T1CE and where truth and prediction differ; below, NEC, ED and ET of the truth; "
        f"below these, of the prediction. {_describe_overlap(truth, prediction)}",
        data_uri(panel_figure(images, truth, prediction, aspect), "png"),
    )


def _turn(plane: np.ndarray, volume: CaseVolume) -> np.ndarray:
    """Cut a plane to the source's size and turn it as radiologists look at it."""
    i, j, _ = volume.shape
    return radiological(plane[:i, :j], volume.affine)


def _percent(value: float) -> str:
    return "none" if np.isnan(value) else f"{100 * value:.1f} %"


def _describe_overlap(
    truth: UInt8[np.ndarray, "height width"], prediction: UInt8[np.ndarray, "height width"]
) -> str:
    counts = (
        f"{name} {np.count_nonzero(truth == value)} true and {np.count_nonzero(prediction == value)} predicted"
        for name, value in LABELS.items()
    )
    return f"Voxels in the slice: {', '.join(counts)}"


def panel_figure(
    images: dict[str, Float[np.ndarray, "height width"]],
    truth: UInt8[np.ndarray, "height width"],
    prediction: UInt8[np.ndarray, "height width"],
    aspect: float = 1.0,
) -> Figure:
    """Draw three rows of three: what is seen and where labels differ, the truth, the prediction.

    Args:
        images: By modality, z-scored; rows and columns as radiologists look at them.
        truth: BraTS values.
        prediction: BraTS values.
        aspect: Height of a pixel over its width.
    """
    figure = Figure(figsize=(4.8, 5.2), layout="constrained")
    grid = figure.subplots(3, 3)
    differs = paint(images["FLAIR"], truth != prediction, DIFFERENCE_COLOUR)
    nothing = np.zeros_like(truth, dtype=np.bool_)
    plain = {name: paint(image, nothing, "#000000") for name, image in images.items()}
    rows = [{**plain, "they differ": differs}]
    for kind, label in (("truth", truth), ("prediction", prediction)):
        rows.append(
            {
                f"{name} {kind}": paint(
                    images[UNDERLAYS[name]], label == value, LABEL_COLOURS[name]
                )
                for name, value in LABELS.items()
            }
        )
    for row, pictures in zip(grid.tolist(), rows, strict=True):
        for axes, (name, picture) in zip(row, pictures.items(), strict=True):
            axes.imshow(picture, aspect=aspect)
            axes.set_title(name, fontsize=9)
            axes.set_axis_off()
    return figure


def paint(
    image: Float[np.ndarray, "height width"],
    mask: Bool[np.ndarray, "height width"],
    colour: str,
) -> Float[np.ndarray, "height width 3"]:
    """Paint a mask over a slice.

    Args:
        image: One modality, z-scored.
        mask: What to paint.
        colour: As `#RRGGBB`.

    Returns:
        Colours from 0 to 1.
    """
    brain = image != 0
    low, high = np.percentile(image[brain], (0.5, 99.5)) if brain.any() else (0.0, 1.0)
    gray = np.where(brain, 0.1 + 0.9 * np.clip((image - low) / max(high - low, 1e-6), 0, 1), 0.0)
    painted = np.repeat(gray[..., None], 3, axis=2)
    painted[mask] = 0.35 * painted[mask] + 0.65 * np.array(mpl.colors.to_rgb(colour))
    return painted
