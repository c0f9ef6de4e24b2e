"""How much test Dice liars cost: ten clients of UNetMM, two of whom send four times the opposite change.

Every rule trains the same network on the same shards, and the phantom's test set is scored by
`training.evaluate`. The baseline is `fedavg` with honest clients. A run is a process; on a GPU all train at
once and share the cores, on a processor there is one a core. On two cores that takes two hours, so this part
is measured only when asked for by name.
"""

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import torch

from bench.cases import Workbench
from bench.cluster import Silence, local_cluster
from cache_schema.machine import usable_cores
from cache_schema.vocabulary import REGIONS
from pipeline.phantom.archives import write_phantom
from pipeline.plan import make_plan
from pipeline.quality import BRATS_SHAPE
from pipeline.run import run_plan
from training.config import TrainConfig
from training.device import choose_device
from training.evaluate import evaluate
from training.federated.engine import run_federation
from training.runlog import Silent, read_rounds

NUM_CLIENTS: Final = 10
LIARS: Final = "sign-flip:2:4"
"""Two clients, and so large a lie that the mean with eight honest ones gets nowhere: 0.8 - 0.2 * 4 = 0."""

HONEST: Final = "fedavg_honest"


@dataclass(frozen=True)
class Study:
    """What is trained.

    Attributes:
        num_patients: Of the phantom.
        shape: Of its volumes.
        config: Of the run with honest clients.
    """

    num_patients: int
    shape: tuple[int, int, int]
    config: TrainConfig


FULL: Final = Study(
    num_patients=40,
    shape=(64, 64, 40),
    config=TrainConfig(
        weights="none",
        rounds=36,
        local_steps=6,
        batch_size=4,
        learning_rate=1e-3,
        crop=64,
        slices="tumour",
        loader_workers=0,
        precision="float32",
        compile="off",
    ),
)
TINY: Final = Study(
    num_patients=16,
    shape=(32, 32, 20),
    config=FULL.config.model_copy(update={"rounds": 1, "crop": 32}),
)


@dataclass(frozen=True)
class Rule:
    """A strategy under attack.

    Attributes:
        strategy: Its name.
        options: Its hyper-parameters.
        byzantine: Who lies, as `--byzantine` takes it.
    """

    strategy: str
    options: Mapping[str, str] = field(default_factory=dict)
    byzantine: str | None = LIARS


RULES: Final = {
    HONEST: Rule("fedavg", byzantine=None),
    "fedavg": Rule("fedavg"),
    "median": Rule("median"),
    "trimmed_mean": Rule("trimmed-mean", {"trim": "0.2"}),
    "krum": Rule("krum", {"byzantine": "2"}),
    "multi_krum": Rule("krum", {"byzantine": "2", "keep": "6"}),
}


def measure_robustness(bench: Workbench) -> dict[str, object]:
    """Train by every rule and tell what each loses against the run in which nobody lies."""
    study = FULL if bench.shape == BRATS_SHAPE else TINY
    cache = _make_cache(bench, study)
    device = choose_device("auto").type
    cores = usable_cores()
    at_once = len(RULES) if device == "cuda" else cores
    threads = max(1, cores // at_once)
    train = partial(_train_and_score, study, cache, bench.folder("robustness"), threads)
    with ProcessPoolExecutor(at_once, get_context("spawn")) as pool:
        scores = dict(zip(RULES, pool.map(train, RULES), strict=True))
    clean = scores[HONEST]["mean"]
    return {
        "computed_on": device,
        "clients": NUM_CLIENTS,
        "byzantine": LIARS,
        "patients": study.num_patients,
        "shape": study.shape,
        "rounds": study.config.rounds,
        "local_steps": study.config.local_steps,
        "batch_size": study.config.batch_size,
        "learning_rate": study.config.learning_rate,
        "test_cases": scores[HONEST]["cases"],
        "test_dice": {
            name: {key: round(means[key], 4) for key in (*REGIONS, "mean")}
            for name, means in scores.items()
        },
        "dice_lost": {
            name: round(clean - means["mean"], 4)
            for name, means in scores.items()
            if name != HONEST
        },
        "training_dice_of_each_round": {
            name: means["training_dice"] for name, means in scores.items()
        },
    }


def _make_cache(bench: Workbench, study: Study) -> Path:
    """Prepare a phantom for clients of about equal size, each patient in one scan only."""
    root, cache = bench.scratch / "robustness-data", bench.scratch / "robustness-cache"
    write_phantom(root, num_patients=study.num_patients, shape=study.shape)
    options = bench.options(
        clients=NUM_CLIENTS, alpha=100.0, test_fraction=0.15, geometry="any", duplicates="latest"
    )
    plan = make_plan([root], options)
    with local_cluster(1) as cluster:
        run_plan(plan, cache, Silence(), scheduler=cluster.address)
    return cache


def _train_and_score(
    study: Study, cache: Path, runs: Path, threads: int, name: str
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    rule = RULES[name]
    config = study.config.model_copy(
        update={
            "strategy": rule.strategy,
            "strategy_options": dict(rule.options),
            "byzantine": rule.byzantine,
        }
    )
    run_federation(config, cache, runs / name, Silent())
    means = evaluate(runs / name, cache, on_case=lambda *_: None).means()["all"]
    dice = [round(record.mean_dice, 3) for record in read_rounds(runs / name)]
    return {**means, "training_dice": dice}
