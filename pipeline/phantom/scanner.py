"""How the scanners of the phantom sites show an anatomy in the four MR sequences.

A magnitude image is `gain * |bias * signal**gamma + complex noise|`. Gain alone would vanish in
z-scores; contrast, bias field and noise stay and make sites differ after preprocessing too.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int16, Integer

from cache_schema.vocabulary import MODALITIES, Modality
from pipeline.phantom.brain import Head, Voxels, smooth_field, smooth_in_brain
from pipeline.phantom.tumour import TISSUES, Anatomy

SIGNALS: Final[dict[Modality, tuple[float, ...]]] = {
    #         csf   gm    wm    ed    et    nec
    "t1": (0.30, 0.66, 0.90, 0.62, 0.58, 0.42),
    "t1ce": (0.32, 0.68, 0.90, 0.62, 1.30, 0.42),
    "t2": (1.30, 0.74, 0.54, 0.98, 0.84, 1.15),
    "flair": (0.22, 0.64, 0.52, 1.02, 0.82, 0.40),
}
"""Signal of each of `TISSUES`, 1 being bright.

The order is the one by which BraTS raters tell a tumour's parts, Menze et al. (2015),
doi:10.1109/TMI.2014.2377694: oedema bright in T2 and FLAIR, the rim bright in T1CE and not in T1,
necrosis dark in T1CE. The numbers are ours.
"""

_GAINS: Final = (260.0, 340.0, 430.0, 520.0, 680.0, 2600.0)
_GAMMAS: Final = (0.75, 0.85, 0.95, 1.05, 1.15, 1.3)
_BIASES: Final = (0.03, 0.05, 0.07, 0.09, 0.11, 0.13)
_NOISES: Final = (0.02, 0.025, 0.03, 0.035, 0.04, 0.05)


@dataclass(frozen=True)
class Scanner:
    """What a site does to a signal.

    Attributes:
        gain: Intensity of signal 1, in arbitrary scanner units.
        gamma: Exponent of the signal: contrast.
        bias: Standard deviation of the logarithm of the coil's smooth field.
        noise: Standard deviation of the complex noise, relative to signal 1.
    """

    gain: float
    gamma: float
    bias: float
    noise: float


def draw_scanners(rng: np.random.Generator) -> tuple[Scanner, ...]:
    """Draw six scanners that differ from each other in every respect.

    A Latin hypercube: each list of settings is shuffled on its own and dealt out.
    """
    lists = (_GAINS, _GAMMAS, _BIASES, _NOISES)
    shuffled = [rng.permutation(settings).tolist() for settings in lists]
    return tuple(Scanner(*drawn) for drawn in zip(*shuffled, strict=True))


def scan(
    rng: np.random.Generator, anatomy: Anatomy, scanner: Scanner
) -> dict[Modality, Integer[np.ndarray, "i j k"]]:
    """Image an anatomy in the four sequences.

    Args:
        rng: Consumed.
        anatomy: Of the patient.
        scanner: Of the patient's site.

    Returns:
        int16 volumes in scanner units, at least 1 inside the brain and exactly 0 outside.
    """
    return {
        modality: anatomy.place(_magnitude(rng, anatomy, scanner, modality))
        for modality in MODALITIES
    }


def _magnitude(
    rng: np.random.Generator, anatomy: Anatomy, scanner: Scanner, modality: Modality
) -> Int16[np.ndarray, "voxel"]:
    """Measure one sequence with Rician noise, Gudbjartsson & Patz (1995), doi:10.1002/mrm.1910340618."""
    jitter = rng.uniform(0.97, 1.03, size=len(TISSUES))
    signals = (np.array(SIGNALS[modality]) * jitter).astype(np.float32)
    image = signals @ anatomy.fractions
    image *= 1 + 0.035 * _texture(rng, anatomy.head)
    image **= np.float32(scanner.gamma)
    image *= np.exp(np.float32(scanner.bias) * smooth_in_brain(rng, anatomy.head, 2))
    noise = scanner.noise * rng.standard_normal((2, len(image)), dtype=np.float32)
    image = np.hypot(image + noise[0], noise[1])
    image *= scanner.gain * math.exp(rng.normal(0, 0.1))
    return np.asarray(np.rint(image).clip(1, np.iinfo(np.int16).max), np.int16)


def _texture(rng: np.random.Generator, head: Head) -> Voxels:
    """Draw the grain of tissue: a field that varies over about two voxels."""
    i, j, k = head.brain.shape
    grain: Voxels = smooth_field(rng, (i, j, k), (i // 2, j // 2, k // 2))[head.brain]
    return grain
