"""Peak memory of `train eval` over a few cases and over ten times as many.

The network is one convolution of 1 x 1, so that what is measured is the evaluation: reading a case,
putting it back into its volume, and every metric. Training cases stand in for test cases, which
the phantom has fewer of; they are read and scored in the same way.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from bench.cases import MANY_PATIENTS, Workbench
from bench.cluster import Silence, local_cluster
from cache_schema.manifest import read_manifest
from cache_schema.vocabulary import LABELS, MODALITIES
from pipeline.plan import make_plan
from pipeline.run import run_plan
from training.config import TrainConfig, write_config
from training.data import VolumeDataset
from training.evaluate import evaluate_dataset
from training.metrics import DEFAULT_CONVENTION
from training.models.logits import SCALE_RATIOS, Logits
from training.models.registry import MODELS, Network
from training.process import own_bytes
from training.provenance import write_provenance
from training.scores import Scoring

REPEATS: Final = 3
FEW, MANY = 4, 40
NETWORK: Final = "pointwise"
CONFIG: Final = TrainConfig(model=NETWORK, weights="none", device="cpu")

THRESHOLDS: Final = {"ED": (MODALITIES.index("flair"), 1.5), "ET": (MODALITIES.index("t1ce"), 2.5)}
"""Channel and z-score above which a pixel is of a label: masks of about a tumour's size."""


class Pointwise(nn.Module):
    """Takes bright FLAIR for oedema and very bright T1CE for enhancing tumour."""

    def __init__(self, num_classes: int, **_: object) -> None:
        super().__init__()
        self.layer = nn.Conv2d(len(MODALITIES), num_classes, 1)
        weight = torch.zeros(num_classes, len(MODALITIES), 1, 1)
        bias = torch.full((num_classes,), -10.0)
        for label, (channel, threshold) in THRESHOLDS.items():
            plane = list(LABELS).index(label)
            weight[plane, channel], bias[plane] = 1.0, -threshold
        self.layer.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, image: Tensor) -> Logits:
        """Give the same planes at every scale."""
        planes = self.layer(image)
        return Logits(planes, (planes,) * len(SCALE_RATIOS), SCALE_RATIOS)


def measure_scoring(bench: Workbench) -> dict[str, object]:
    """Compare the peak of a fresh process after 4 cases with another's after 40."""
    cache, run = _prepare(bench), bench.folder("scoring-run")
    write_config(run, CONFIG)
    write_provenance(run, read_manifest(cache), device="cpu")
    found: dict[int, list[tuple[int, float]]] = {FEW: [], MANY: []}
    for _ in range(REPEATS):
        for count, measured in found.items():
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                measured.append(pool.submit(_score, run, cache, count).result())
    few, many = (_middle([peak for peak, _ in found[count]]) for count in (FEW, MANY))
    return {
        "cases": [FEW, min(MANY, len(VolumeDataset(cache, split="train")))],
        "convention": DEFAULT_CONVENTION,
        "repeats": REPEATS,
        "peak_megabytes_4_cases": round(few / 1e6, 1),
        "peak_megabytes_40_cases": round(many / 1e6, 1),
        "ratio_40_to_4": round(many / few, 3),
        "seconds_per_case": round(_middle([taken for _, taken in found[MANY]]), 3),
    }


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _prepare(bench: Workbench) -> Path:
    """Prepare more than 40 cases, as the training cases of a single client."""
    cache = bench.scratch / "scoring"
    options = bench.options(clients=1, test_fraction=0.0)
    plan = make_plan([bench.phantoms(MANY_PATIENTS)], options)
    with local_cluster(1) as cluster:
        run_plan(plan, cache, Silence(), scheduler=cluster.address)
    return cache


def _score(run: Path, cache: Path, num_cases: int) -> tuple[int, float]:
    """Score the first cases in a process of its own; give its peak, and the seconds of a case."""
    MODELS[NETWORK] = Network(Pointwise)
    dataset = VolumeDataset(cache, split="train")
    dataset.cases = dataset.cases[:num_cases]
    start = time.perf_counter()
    evaluation = evaluate_dataset(
        run,
        cache,
        dataset,
        scoring=Scoring(DEFAULT_CONVENTION),
        untrained=True,
        device="cpu",
        on_case=lambda *_: None,
    )
    evaluation.summary()
    return own_bytes("VmHWM"), (time.perf_counter() - start) / len(dataset)
