"""ONNX files, written and run: the only file that knows ONNX. Imported when asked for, an extra."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float32
from torch.export import ExportedProgram

from cache_schema.errors import InputError

PACKAGES: Final = ("onnx", "onnxruntime", "onnxscript")
INPUT: Final = "image"
OUTPUT: Final = "probability"


def require_onnx() -> None:
    """Say which extra is missing before an import fails.

    Raises:
        InputError: Naming the command that installs it.
    """
    if any(find_spec(name) is None for name in PACKAGES):
        raise InputError(
            "ONNX needs the extra `onnx`: python -m pip install 'fedunetmm[onnx]'; a name that ends in "
            ".pt2 needs nothing more"
        )


def write_onnx(path: Path, program: ExportedProgram, metadata: Mapping[str, str]) -> None:
    """Translate a program's operations and write them into one file, with weights and metadata."""
    import onnx

    translated = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
    )
    if translated is None:
        raise RuntimeError("torch.onnx gave no program")
    model = translated.model_proto
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)


def load_onnx(path: Path) -> Callable[[Float32[np.ndarray, "batch 4 *space"]], np.ndarray]:
    """Give a file as a function, run by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(image: Float32[np.ndarray, "batch 4 *space"]) -> np.ndarray:
        probability: np.ndarray = session.run([OUTPUT], {INPUT: image})[0]
        return probability

    return run
