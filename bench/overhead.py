"""A round of clients that do not train, in our engine and in Flower's own simulation.

A client adds a tiny number to the model that it got and sends it back, so that a round is all overhead:
carrying 20.6 million parameters to 20 clients and back, checking and averaging them. Ours saves the
model and a checkpoint besides, and syncs them; Flower's keeps nothing.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np

from bench.cases import Workbench
from bench.simulation import simulate
from bench.timing import ratio
from cache_schema.vocabulary import REGIONS
from training.checkpoint import WEIGHTS_NAME, load_weights, save_weights
from training.config import TrainConfig
from training.federated.aggregate import copy_state
from training.federated.engine import Federation
from training.federated.strategies.registry import make_strategy
from training.federated.work import Order, Reply
from training.models.initial import random_model
from training.process import own_bytes
from training.runlog import Observer, RoundRecord, Silent

NUM_CLIENTS: Final = 20
"""In the paper."""

NUDGE: Final = 2.0**-10
"""What a client adds."""

CONFIG: Final = TrainConfig(weights="none", rounds=3)

APP: Final = Path(__file__).parent / "flower_app"


@dataclass(frozen=True)
class Overhead:
    """What one side took.

    Attributes:
        ends: Seconds from its start to the first round, and to the end of each round.
        peak_bytes: Of all its processes together.
        moved: By how much the first tensor has grown, in the mean.
    """

    ends: list[float]
    peak_bytes: int
    moved: float

    @property
    def rounds(self) -> list[float]:
        """Seconds of each round."""
        return [float(taken) for taken in np.diff(self.ends)]

    def figures(self) -> dict[str, object]:
        """Give medians, under names that tell the unit.

        Raises:
            RuntimeError: If clients have not done what they should.
        """
        if not np.isclose(self.moved, NUDGE * CONFIG.rounds, rtol=1e-3):
            raise RuntimeError(f"the model has moved by {self.moved}")
        return {
            "seconds_per_round": round(median(self.rounds), 3),
            "seconds_of_each_round": [round(taken, 3) for taken in self.rounds],
            "seconds_to_start": round(self.ends[0], 1),
            "peak_megabytes": round(self.peak_bytes / 1e6),
        }


def measure_overhead(bench: Workbench) -> dict[str, object]:
    """Carry out the same idle rounds in our engine and in Flower's simulation."""
    # A process of its own, whose peak nothing else has raised.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        ours, unsaved = pool.submit(_run_ours, bench.folder("idle"), time.perf_counter()).result()
    figures: dict[str, object] = {
        "clients": NUM_CLIENTS,
        "rounds": CONFIG.rounds,
        "ours": ours.figures() | {"seconds_per_round_without_saving": round(median(unsaved), 3)},
    }
    if find_spec("flwr") is None or find_spec("ray") is None:
        print("Flower's simulation is not installed: skipped")
        return figures
    flower = _run_flower(bench.folder("flower"))
    return figures | {
        "flower": flower.figures(),
        "times_faster_than_flower": ratio(flower.rounds, ours.rounds),
        "times_faster_than_flower_without_saving": ratio(flower.rounds, unsaved),
        "whole_run_times_faster_than_flower": round(flower.ends[-1] / ours.ends[-1], 3),
        "memory_share_of_flower": round(ours.peak_bytes / flower.peak_bytes, 3),
    }


def _run_ours(run: Path, start: float) -> tuple[Overhead, list[float]]:
    """Carry out the rounds as `train fed` does, on a clock that all processes share.

    Returns:
        What they took, and the seconds of each round without saving.
    """
    model = random_model(CONFIG)
    before = copy_state(model)
    clients = list(range(NUM_CLIENTS))
    federation = Federation(CONFIG, run, clients, IdleClients(), make_strategy(CONFIG.strategy))
    clock = Clock(start)
    federation.carry_on(model, clock, resume=False, boards=())
    peak = own_bytes("VmHWM")
    name = next(iter(before))
    moved = float((load_weights(run)[0][name] - before[name]).mean())
    return Overhead(clock.ends, peak, moved), clock.unsaved


class IdleClients:
    """Clients that do not train."""

    def count_steps(self, clients: Sequence[int]) -> int:
        """Count none."""
        return 0 * len(clients)

    def train(self, clients: Sequence[int], order: Order, observer: Observer) -> Iterator[Reply]:  # noqa: ARG002
        """Send the model back, its floating-point numbers a little larger."""
        for client in clients:
            yield Reply(
                client=client,
                num_examples=100 + client,
                num_steps=1,
                loss=0.5,
                dice=dict.fromkeys(REGIONS, 0.5),
                seconds=0.0,
                keeps=False,
                fault=None,
                model={
                    name: tensor + NUDGE if tensor.is_floating_point() else tensor
                    for name, tensor in order.model.items()
                },
                extras={},
            )


@dataclass(frozen=True)
class Clock(Silent):
    """Notes when a run began its first round and when each was done and saved."""

    start: float
    ends: list[float] = field(default_factory=list)
    unsaved: list[float] = field(default_factory=list)

    def started(self, *, num_rounds: int, num_steps: int) -> None:  # noqa: ARG002
        """Note the time."""
        self.ends.append(time.perf_counter() - self.start)

    def round_done(self, record: RoundRecord) -> None:
        """Note the time, and the seconds that the engine counts: all but log and saving."""
        self.ends.append(time.perf_counter() - self.start)
        self.unsaved.append(record.seconds)


def _run_flower(folder: Path) -> Overhead:
    """Carry out the rounds by `flwr run`, from the same model."""
    save_weights(folder, copy_state(random_model(CONFIG)), round_number=0)
    config: dict[str, str | int | float] = {
        "model": str(folder / WEIGHTS_NAME),
        "clients": NUM_CLIENTS,
        "rounds": CONFIG.rounds,
        "nudge": NUDGE,
    }
    start = time.perf_counter()
    found, peak = simulate(APP, config, NUM_CLIENTS, folder)
    return Overhead([end - start for end in found["ends"]], peak, found["moved"])
