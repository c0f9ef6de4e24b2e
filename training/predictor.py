"""A run's network, ready for cases that no cache holds."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16, Float32, UInt8
from torch import nn

from cache_schema.preprocessing import PreprocessingRecord
from training.checkpoint import WEIGHTS_NAME
from training.config import read_config
from training.device import choose_device, keep_freed_memory
from training.models.initial import patch_of
from training.models.trained import naming, trained_model
from training.predict import drop_small_enhancing, predict_labels, predict_probabilities
from training.provenance import read_preprocessing
from training.targets import PLANES, Target, decode_prediction


@dataclass(frozen=True)
class Predictor:
    """A trained network and what it expects.

    Attributes:
        weights: The file that they come from.
        network: On the device where it computes.
        target: What its planes mean.
        preprocessing: How its training slices were made.
        batch_size: Slices at a time, for a network that takes slices.
        patch: What a network of three dimensions takes at a time.
        tta: Average over flips.
        postprocess_et: Fewer enhancing voxels than this in a case become necrosis.
        keeps_probabilities: Also give the probabilities.
    """

    weights: Path
    network: nn.Module
    target: Target
    preprocessing: PreprocessingRecord
    batch_size: int
    patch: tuple[int, int, int] | None
    tta: bool
    postprocess_et: int
    keeps_probabilities: bool

    @property
    def planes(self) -> tuple[str, ...]:
        """What the probabilities are of, in order."""
        return tuple(PLANES[self.target])

    def __call__(
        self, image: Float16[np.ndarray, "slice 4 height width"]
    ) -> tuple[
        UInt8[np.ndarray, "slice height width"],
        Float32[np.ndarray, "slice 3 height width"] | None,
    ]:
        """Segment a case's slices, normalised as in a shard.

        Returns:
            BraTS values 0, 1, 2, 4, and the probabilities of the planes or None.

        Raises:
            InputError: If the network gives NaN.
        """
        with naming(self.weights):
            return self._segment(image)

    def _segment(
        self, image: Float16[np.ndarray, "slice 4 height width"]
    ) -> tuple[
        UInt8[np.ndarray, "slice height width"],
        Float32[np.ndarray, "slice 3 height width"] | None,
    ]:
        if not self.keeps_probabilities:
            labels = predict_labels(
                self.network,
                image,
                self.target,
                batch_size=self.batch_size,
                patch=self.patch,
                tta=self.tta,
                postprocess_et=self.postprocess_et,
            )
            return labels, None
        probability = predict_probabilities(
            self.network, image, batch_size=self.batch_size, patch=self.patch, tta=self.tta
        )
        decoded = decode_prediction(torch.from_numpy(probability), self.target).numpy()
        return drop_small_enhancing(decoded, self.postprocess_et), probability


def open_predictor(
    run: Path,
    *,
    device: str = "auto",
    tta: bool = False,
    postprocess_et: int = 0,
    keeps_probabilities: bool = False,
) -> Predictor:
    """Load the network of a run; its cache is not needed.

    Args:
        run: A folder that training wrote.
        device: Where to compute.
        tta: Average over flips.
        postprocess_et: Fewer enhancing voxels than this in a case become necrosis.
        keeps_probabilities: Also give the probabilities.

    Raises:
        InputError: If the run or the device cannot be used.
    """
    config = read_config(run)
    preprocessing = read_preprocessing(run)
    network, _ = trained_model(run, config)
    place = choose_device(device)
    keep_freed_memory(place)
    return Predictor(
        run / WEIGHTS_NAME,
        network.to(place),
        config.target,
        preprocessing,
        batch_size=config.batch_size,
        patch=patch_of(config),
        tta=tta,
        postprocess_et=postprocess_et,
        keeps_probabilities=keeps_probabilities,
    )
