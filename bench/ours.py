"""Our training step with its data, as `train fed` and `train central` put them together."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from torch.utils.data import DataLoader, default_collate

from bench.cases import Workbench
from bench.cluster import Silence, local_cluster
from bench.naive import turn_off_dropout
from bench.timing import seconds
from pipeline.plan import make_plan
from pipeline.run import run_plan
from training.config import TrainConfig
from training.data.batches import Pass, Passes, make_loader
from training.data.slices import Slice, SliceDataset
from training.device import choose_device, compile_where_it_pays, keep_freed_memory
from training.fit import Stint, fit, make_optimizer
from training.models.initial import random_model

CLIENT: Final = 0
"""The only one of the benchmark's cache."""

ENDLESS: Final = 1000
"""Passes over the slices; more than any measurement takes."""


class OurTraining:
    """A network in training, from step 0 of a run: the only place here that calls `fit`."""

    def __init__(self, config: TrainConfig, *, dropout: bool = True) -> None:
        """Build network and optimiser on the device where they train."""
        self.config = config
        self.device = choose_device(config.device)
        keep_freed_memory(self.device)
        self._model = random_model(config)
        if not dropout:
            turn_off_dropout(self._model)
        compile_where_it_pays(self._model, config.compile, self.device)
        self._model.to(self.device)
        self._optimizer = make_optimizer(self._model, config)

    def train(self, batches: Iterator[Slice], num_steps: int) -> list[float]:
        """Train for some steps and return their losses; the device has finished by then."""
        losses: list[float] = []
        stint = Stint(stream=(), start=0, stop=num_steps, progress=0.0, progress_per_step=0.0)
        result = fit(
            self._model, self._optimizer, batches, self.config, stint=stint, on_step=losses.append
        )
        if result.fault is not None:
            raise RuntimeError(result.fault)
        return losses

    def seconds_per_step(self, batches: Iterator[Slice], num_steps: int) -> float:
        """Time some steps."""
        return seconds(lambda: self.train(batches, num_steps)) / num_steps


def make_cache(bench: Workbench) -> Path:
    """Prepare phantom archives for a single client."""
    cache = bench.scratch / "train"
    plan = make_plan([bench.phantoms()], bench.options(clients=1))
    with local_cluster(1) as cluster:
        run_plan(plan, cache, Silence(), scheduler=cluster.address)
    return cache


def load(dataset: SliceDataset, config: TrainConfig, *, num_passes: int = 1) -> DataLoader[Slice]:
    """Make the loader of a training run, for passes in random order."""
    passes = Passes(dataset, config.batch_size)
    passes.plan([Pass((CLIENT,), seed) for seed in range(num_passes)])
    is_pinned = choose_device(config.device).type == "cuda"
    return make_loader(dataset, passes, num_workers=config.loader_workers, pin_memory=is_pinned)


def from_shards(cache: Path, config: TrainConfig) -> Iterator[Slice]:
    """Load pass after pass, without the smaller batch at the end of each."""
    loader = load(SliceDataset(cache), config, num_passes=ENDLESS)
    return (batch for batch in loader if len(batch.image) == config.batch_size)


def in_memory(cache: Path, config: TrainConfig) -> Slice:
    """Read a batch of slices from all over the shards to where training takes place."""
    dataset = SliceDataset(cache)
    rows = range(0, len(dataset), len(dataset) // config.batch_size)[: config.batch_size]
    image, label = default_collate([dataset[row] for row in rows])
    device = choose_device(config.device)
    return Slice(image.to(device), label.to(device))
