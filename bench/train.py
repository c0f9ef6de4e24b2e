"""The training step: what shards add to it, a naive one beside it, its memory, the paper's run in hours.

Everything is measured on the device that `train fed` would take, with random weights and phantom slices
in the paper's crop of 224. On a GPU a measurement is 50 steps of the paper's batch of 8. On a CPU one of
these takes a dozen seconds; there the share of the data is measured with single steps of batch 2, to each
of which belongs a quarter of the reading and of the arithmetic, and the naive step and ours with batches of
2 in a crop of 128. All of it takes two minutes there, and three times as long on cores that others want
too: each step waits for its slowest thread. Memory, arithmetic per second and projection are those of a
batch of 8 everywhere, fed from shards.
"""

import platform
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch

from bench.cases import Workbench, sources
from bench.naive import NaiveTraining
from bench.ours import OurTraining, from_shards, in_memory, load, make_cache
from bench.prep import prepare_anew
from bench.timing import in_turn, ratio, seconds
from cache_schema.shard import ShardReader
from pipeline.quality import BRATS_SHAPE
from training.config import TrainConfig
from training.data.slices import Slice, SliceDataset
from training.device import choose_device, choose_precision
from training.models.initial import random_model
from training.models.size import count_flops
from training.process import own_bytes

PEAK_TFLOPS: Final = {
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H200": 989,
}
"""Dense bfloat16 rate, by the name that a device gives itself: from NVIDIA's data sheets of the A100, the
H100 (SXM5) and the H200, which for the last two print twice as much, the rate with sparsity."""

FLOPS_OF_TRAINING: Final = 3
"""Times those of a forward pass: for each product of it, backward computes two."""

TOLERANCE: Final = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""By how much, relatively, losses may differ that were computed in another order."""

NUM_CASES: Final = 989
"""In the three cohorts of the paper."""
TRAINING_SHARE: Final = 0.9
"""Of the cases, in the paper."""
NUM_CLIENTS: Final = 20
"""In the paper."""

SLICES_PER_CASE: Final = 141.5
"""That hold brain, in the four real cases of part `reading`; for machines without real scans."""


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        ours: Crop and batch of the steps that are fed from shards and from memory.
        naive: Crop and batch of the naive steps and of ours beside them.
        full: Crop and batch of the steps whose memory and time stand for a whole run.
        steps: In one measurement.
        repeats: Measurements of each side.
    """

    ours: TrainConfig
    naive: TrainConfig
    full: TrainConfig
    steps: int
    repeats: int


PAPER: Final = TrainConfig()
SMALL: Final = TrainConfig(crop=32, batch_size=2)
GPU: Final = Effort(ours=PAPER, naive=PAPER, full=PAPER, steps=50, repeats=5)
CPU: Final = Effort(
    ours=TrainConfig(batch_size=2),
    naive=TrainConfig(batch_size=2, crop=128),
    full=PAPER,
    steps=1,
    repeats=7,
)
TINY: Final = Effort(ours=SMALL, naive=SMALL, full=SMALL, steps=2, repeats=1)


def measure_train(bench: Workbench) -> dict[str, object]:
    """Measure training steps on the best device of this machine."""
    device = choose_device("auto")
    effort = GPU if device.type == "cuda" else CPU
    if bench.shape != BRATS_SHAPE:
        effort = TINY
    cache = make_cache(bench)
    figures = _describe(device)
    figures |= _loader_alone(cache, effort)
    figures |= _data_share(cache, effort)
    figures |= _against_naive(cache, effort)
    figures["full_batch"] = full = _full_batch(cache, effort)
    figures["projection"] = _project(bench, full["seconds_per_step"], effort.full.batch_size)
    return figures


def _describe(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    precision = str(choose_precision(PAPER.precision, device)).removeprefix("torch.")
    return {"device": device.type, "device_name": name, "precision": precision}


def _size(config: TrainConfig) -> dict[str, int]:
    return {"crop": config.crop, "batch_size": config.batch_size}


def _loader_alone(cache: Path, effort: Effort) -> dict[str, object]:
    """Take all slices in random order from the loader, with nothing to do meanwhile."""
    dataset = SliceDataset(cache)
    loader = load(dataset, effort.full)
    taken = in_turn({"loader": lambda: seconds(lambda: sum(1 for _ in loader))}, effort.repeats)
    return {
        "loader_workers": effort.full.loader_workers,
        "loader_slices_per_second": round(len(dataset) / median(taken["loader"])),
    }


def _data_share(cache: Path, effort: Effort) -> dict[str, object]:
    """Feed one training from shards and from a batch that lies where it takes place, in turn."""
    ours = OurTraining(effort.ours)
    loaded, kept = from_shards(cache, effort.ours), repeat(in_memory(cache, effort.ours))
    taken = in_turn(
        {
            "shards": lambda: ours.seconds_per_step(loaded, effort.steps),
            "memory": lambda: ours.seconds_per_step(kept, effort.steps),
        },
        effort.repeats,
    )
    return {
        **_size(effort.ours),
        "steps": effort.steps,
        "repeats": effort.repeats,
        "seconds_per_step_from_shards": round(median(taken["shards"]), 4),
        "seconds_per_step_in_memory": round(median(taken["memory"]), 4),
        "data_share_percent": round(100 * (ratio(taken["shards"], taken["memory"]) - 1), 1),
        "data_share_percent_of_each": [
            round(100 * (a / b - 1), 1)
            for a, b in zip(taken["shards"], taken["memory"], strict=True)
        ],
    }


def _against_naive(cache: Path, effort: Effort) -> dict[str, object]:
    """Train the same weights on the same batch by the naive step and by ours, without dropout."""
    batch = in_memory(cache, effort.naive)
    ours = OurTraining(effort.naive, dropout=False)
    trainings: dict[str, OurTraining | NaiveTraining] = {
        "naive_float32": NaiveTraining(effort.naive, torch.float32)
    }
    if ours.device.type == "cuda":
        trainings["naive_bfloat16"] = NaiveTraining(effort.naive, torch.bfloat16)
    trainings["ours"] = ours
    _check_same_losses(trainings, batch, choose_precision(effort.naive.precision, ours.device))
    taken = in_turn(
        {
            name: partial(_seconds_per_step, training, batch, effort.steps)
            for name, training in trainings.items()
        },
        effort.repeats,
    )
    against = [name for name in trainings if name != "ours"]
    return {
        "beside_naive": _size(effort.naive)
        | {f"seconds_per_step_{name}": round(median(taken[name]), 4) for name in trainings},
        **{f"times_faster_than_{name}": ratio(taken[name], taken["ours"]) for name in against},
    }


def _seconds_per_step(training: OurTraining | NaiveTraining, batch: Slice, num_steps: int) -> float:
    return seconds(lambda: training.train(repeat(batch), num_steps)) / num_steps


def _check_same_losses(
    trainings: Mapping[str, OurTraining | NaiveTraining], batch: Slice, precision: torch.dtype
) -> None:
    """Make sure that all take the same first two steps: the second loss has felt every gradient."""
    losses = {name: each.train(repeat(batch), 2) for name, each in trainings.items()}
    for name, found in losses.items():
        if not np.allclose(found, losses["naive_float32"], rtol=TOLERANCE[precision]):
            raise RuntimeError(f"{name} computes something else: {losses}")


def _full_batch(cache: Path, effort: Effort) -> dict[str, Any]:
    """Train as a run does: peak memory, seconds and arithmetic of a step."""
    config = effort.full
    device = choose_device(config.device)
    if device.type == "cuda":
        peak_bytes, per_step = _on_gpu(cache, config, effort.steps)
    else:
        # A process of its own, whose peak nothing else has raised.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            peak_bytes, per_step = pool.submit(_on_cpu, cache, config).result()
    shape = (config.batch_size, 4, config.crop, config.crop)
    tflop = FLOPS_OF_TRAINING * count_flops(random_model(config), shape) / 1e12
    peak = PEAK_TFLOPS.get(_describe(device)["device_name"])
    return {
        **_size(config),
        "peak_megabytes": round(peak_bytes / 1e6),
        "seconds_per_step": round(per_step, 4),
        "tflop_per_step": round(tflop, 3),
        "tflops": round(tflop / per_step, 3),
        "percent_of_peak_bfloat16": peak and round(100 * tflop / per_step / peak, 1),
    }


def _on_gpu(cache: Path, config: TrainConfig, num_steps: int) -> tuple[int, float]:
    """Return the most bytes that tensors took, network and optimiser included, and a step's seconds."""
    ours, batches = OurTraining(config), from_shards(cache, config)
    ours.train(batches, 2)
    torch.cuda.reset_peak_memory_stats()
    per_step = ours.seconds_per_step(batches, num_steps)
    return torch.cuda.max_memory_allocated(), per_step


def _on_cpu(cache: Path, config: TrainConfig) -> tuple[int, float]:
    """Return by how many bytes two steps have made this process grow, and the second one's seconds."""
    ours, batches = OurTraining(config), from_shards(cache, config)
    before = own_bytes("VmRSS")
    ours.train(batches, 1)
    per_step = ours.seconds_per_step(batches, 1)
    return own_bytes("VmHWM") - before, per_step


def _project(bench: Workbench, seconds_per_step: float, batch_size: int) -> dict[str, object]:
    """Multiply a step to the paper's whole run, whose clients train one after another here."""
    slices_per_case, origin = _slices_per_case(bench)
    steps_per_epoch = NUM_CASES * TRAINING_SHARE * slices_per_case / batch_size
    num_steps = PAPER.rounds * PAPER.local_epochs * steps_per_epoch
    return {
        "cases": NUM_CASES,
        "training_share": TRAINING_SHARE,
        "slices_per_case": slices_per_case,
        "slices_per_case_from": origin,
        "batch_size": batch_size,
        "steps_per_epoch": round(steps_per_epoch),
        "clients": NUM_CLIENTS,
        "rounds": PAPER.rounds,
        "local_epochs": PAPER.local_epochs,
        "steps": round(num_steps),
        "seconds_per_step": seconds_per_step,
        "hours": round(num_steps * seconds_per_step / 3600, 1),
    }


def _slices_per_case(bench: Workbench) -> tuple[float, str]:
    """Count the slices of real cases; a phantom's head is smaller."""
    cases = sources(bench).get("real")
    if cases is None:
        return SLICES_PER_CASE, "four real cases, kept from part reading"
    shard = bench.folder("train-real") / "shard-000.h5"
    prepare_anew(cases, shard, bench.settings)
    with ShardReader(shard) as reader:
        return len(reader) / len(cases), f"{len(cases)} real cases, prepared in this run"
