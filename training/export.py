"""A run's network as one file for other programs, held against the original before it gets its name."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cache_schema.errors import InputError
from cache_schema.files import replacing, reporting
from cache_schema.targets import require_writable_file
from cache_schema.vocabulary import LABELS
from training.checkpoint import WEIGHTS_NAME
from training.config import TrainConfig, read_config
from training.models.initial import patch_of
from training.models.trained import naming, trained_model
from training.onnx_format import load_onnx, require_onnx, write_onnx
from training.predict import STRIDE, require_finite
from training.provenance import read_preprocessing
from training.targets import PLANES

TOLERANCE: Final = 1e-4
"""Largest difference between two programs' probabilities that other orders of addition explain."""

MOST_STRIDES: Final = 64
"""Sides of slices go from 64 to 2048."""

SLICES_TO_CHECK: Final = ((1, 4, 96, 64), (3, 4, 64, 128))
"""Of other numbers and sizes than the traced ones."""

METADATA_NAME: Final = "metadata.json"

Network = Callable[[Float32[np.ndarray, "batch 4 *space"]], np.ndarray]


class Probabilities(nn.Module):
    """A network from its input to what inference uses: the final head after the sigmoid."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Float[Tensor, "batch 4 *space"]) -> Float[Tensor, "batch 3 *space"]:
        """Give the probability of every plane."""
        probability: Tensor = self.network(image).final.sigmoid()
        return probability


def write_pt2(path: Path, program: ExportedProgram, metadata: Mapping[str, str]) -> None:
    """Write PyTorch's own format, which needs torch alone to be run.

    It is made in memory: on a full disk PyTorch's zip writer ends the process.

    Raises:
        OSError: If the disk refuses it.
    """
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={METADATA_NAME: json.dumps(dict(metadata))})
    path.write_bytes(content.getbuffer())


def load_pt2(path: Path) -> Network:
    """Give a `.pt2` file as a function."""
    module = torch.export.load(path).module()

    def run(image: Float32[np.ndarray, "batch 4 *space"]) -> np.ndarray:
        with torch.inference_mode():
            probability: np.ndarray = module(torch.from_numpy(image)).numpy()
        return probability

    return run


@dataclass(frozen=True)
class Format:
    """How a kind of file is written, and run again to be checked."""

    write: Callable[[Path, ExportedProgram, Mapping[str, str]], None]
    load: Callable[[Path], Network]


FORMATS: Final[dict[str, Format]] = {
    ".onnx": Format(write_onnx, load_onnx),
    ".pt2": Format(write_pt2, load_pt2),
}
"""By suffix. ONNX runs without Python; `.pt2` is what PyTorch has in place of TorchScript."""


def export_run(run: Path, out: Path) -> float:
    """Write a run's network to a file and check that it computes the same.

    Args:
        run: A folder that training wrote.
        out: A name with a suffix of `FORMATS`.

    Returns:
        The largest absolute difference of a probability, on random slices or patches.

    Raises:
        InputError: If the run or the name cannot be used, the extra `onnx` is missing, or the file
            does not compute the same, or the network gives NaN; there is no file then.
    """
    if out.suffix not in FORMATS:
        raise InputError(f"--out {out}: give a name that ends in {' or '.join(FORMATS)}")
    require_writable_file(out, "--out")
    if out.suffix == ".onnx":
        require_onnx()
    config = read_config(run)
    network, round_number = trained_model(run, config)
    metadata = describe_network(run, config, round_number)
    with naming(run / WEIGHTS_NAME):
        return export_network(network, out, metadata, patch=patch_of(config))


def describe_network(run: Path, config: TrainConfig, round_number: int) -> dict[str, str]:
    """Say what a user of the file has to know: what goes in, what comes out, what it means.

    Raises:
        InputError: If the run does not tell how its slices were made.
    """
    record = read_preprocessing(run)
    patch = patch_of(config)
    batch, space = ("batch", "height, width") if patch is None else ("1", "depth, height, width")
    sides = (
        f"sides are multiples of {STRIDE} from {2 * STRIDE} to {MOST_STRIDES * STRIDE}"
        if patch is None
        else f"one patch of {' x '.join(map(str, patch))} voxels at a time"
    )
    return {
        "program": f"fedunetmm {version('fedunetmm')}",
        "model": config.model,
        "round": str(round_number),
        "input": f"image: ({batch}, 4, {space}) float32, normalised, background 0; {sides}",
        "output": f"probability: ({batch}, 3, {space}) float32, after the sigmoid",
        "modalities": json.dumps(record.modalities),
        "planes": json.dumps(
            {name: list(values) for name, values in PLANES[config.target].items()}
        ),
        "labels": json.dumps(LABELS),
        "label_convention": record.label_convention,
        "preprocessing": record.model_dump_json(),
    }


def export_network(
    network: nn.Module,
    out: Path,
    metadata: Mapping[str, str],
    *,
    patch: tuple[int, int, int] | None = None,
) -> float:
    """Write a network to a file and check that it computes the same; see `export_run`.

    Args:
        network: With the weights to be written.
        out: A name with a suffix of `FORMATS`.
        metadata: Goes into the file.
        patch: What a network of three dimensions takes; None for one that takes slices of many sizes.
    """
    model = Probabilities(network).eval()
    form = FORMATS[out.suffix]
    with (
        reporting(out, advice="choose another --out"),
        replacing(out, follows_links=True) as partial,
    ):
        form.write(partial, _trace(model, patch), metadata)
        shapes = SLICES_TO_CHECK if patch is None else ((1, 4, *patch),)
        difference = largest_difference(model, form.load(partial), shapes)
        if not difference <= TOLERANCE:
            raise InputError(
                f"{out} would differ from the network by {difference:.3g} in a probability, more "
                f"than {TOLERANCE:g}; nothing was written"
            )
    return difference


def _trace(model: nn.Module, patch: tuple[int, int, int] | None) -> ExportedProgram:
    """Record the network's operations, for any number of slices of any size that it takes, or one patch."""
    shapes: dict[str, Any] | None = None
    if patch is None:
        sides = (STRIDE * Dim(name, min=2, max=MOST_STRIDES) for name in ("rows", "columns"))
        shapes = {"image": {0: Dim("batch"), **dict(zip((2, 3), sides, strict=True))}}
        example = torch.zeros(2, 4, 2 * STRIDE, 3 * STRIDE)
    else:
        example = torch.zeros(1, 4, *patch)
    program = torch.export.export(model, (example,), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    return program


def largest_difference(
    model: nn.Module, exported: Network, shapes: Sequence[tuple[int, ...]]
) -> float:
    """Compare two programs on random images.

    Returns:
        The largest absolute difference; NaN if a value of the exported one is.

    Raises:
        NotFiniteError: If a value of the model is.
    """
    generator = torch.Generator().manual_seed(0)
    differences = []
    for shape in shapes:
        image = torch.randn(shape, generator=generator)
        with torch.inference_mode():
            expected = require_finite(model(image)).numpy()
        differences.append(np.abs(exported(image.numpy()) - expected).max())
    return float(np.max(differences))
