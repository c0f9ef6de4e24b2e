"""Several networks trained under one budget on one cache, and scored alike."""

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol, runtime_checkable

from rich.table import Table

from cache_schema.documents import read_record
from cache_schema.errors import InputError
from cache_schema.manifest import Manifest
from cache_schema.targets import require_writable_folder
from training.central import run_central
from training.config import CENTRAL, TrainConfig, make_config, read_config
from training.contestants import Budget, Contestant, divide
from training.cost import Cost, measured_cost, read_cost, write_cost
from training.device import choose_device
from training.evaluate import evaluate
from training.fit import CHECK_EVERY
from training.models.initial import initial_model
from training.models.registry import find_network
from training.models.smallest_batch import smallest_batch
from training.models.trained import network_size
from training.runlog import Silent
from training.score_files import write_document, write_evaluation
from training.scores import Evaluation, Scoring
from training.series import (
    finished_evaluation,
    is_begun,
    refuse_another_run,
    require_test_cases,
)
from training.show import ScoredRun

COMPARISON_NAME: Final = "comparison.json"
BUDGET_NAME: Final = "budget.json"
TRIAL_STEPS: Final = 5
"""Steps by which the time of one is measured on a CPU."""
TRIAL_GROUPS: Final = 3
"""On an accelerator, groups of steps whose losses are told together."""


@dataclass(frozen=True)
class Result:
    """A row of the comparison.

    Attributes:
        contestant: Who it is.
        config: Its settings.
        evaluation: Its scores.
        parameters: Numbers that training can change.
        flops: Of one forward pass, of a slice or a patch.
        cost: What training it took.
    """

    contestant: Contestant
    config: TrainConfig
    evaluation: Evaluation
    parameters: int
    flops: int
    cost: Cost


@runtime_checkable
class CompareObserver(Protocol):
    """Who is told how a comparison goes."""

    def started(self, name: str, folder: Path, *, is_finished: bool) -> None:
        """A network begins, or is taken as it was left by an earlier call."""

    def failed(self, name: str, reason: str) -> None:
        """A network could not be trained or scored; the others go on."""


def compare(
    contestants: Sequence[Contestant],
    cache: Path,
    out: Path,
    *,
    budget: Budget,
    settings: Mapping[str, Any],
    observer: CompareObserver,
) -> tuple[Result, ...]:
    """Train and score every network that is not finished yet, each in a process of its own.

    All are trained centrally, on the slices or patches of all clients together. A process of its own
    gives each its own peak of memory, and lets the others go on where one runs out of it.

    Args:
        contestants: Networks, in the order of the table.
        cache: A finished cache with a test set.
        out: Holds a folder for each run, in the form that `train central` and `train eval` write.
        budget: What each may spend.
        settings: Of every run, where they are not the network's; `depth` of networks of volumes alone,
            `weights` of networks of slices alone.
        observer: Told about progress.

    Returns:
        A row for each network that could be finished.

    Raises:
        InputError: If the cache, a network or an option cannot be used, or a folder holds another run;
            that is found before anything is trained.
    """
    require_writable_folder(out, "--out")
    manifest = require_test_cases(cache)
    _refuse_another_budget(out, budget)
    for contestant in {each.run_name: each for each in contestants}.values():
        config = _config(contestant, budget, settings, out)
        choose_device(config.device)
        # Finds options that it does not have, a patch, weights or batches that it cannot take.
        smallest_batch(initial_model(config), config)
        refuse_another_run(out / contestant.run_name, config, cache, manifest, "--out")
    out.mkdir(parents=True, exist_ok=True)
    write_document(out / BUDGET_NAME, asdict(budget))
    results = []
    for contestant in contestants:
        config = _config(contestant, budget, settings, out)
        finished = _finished(contestant, config, out, manifest)
        observer.started(
            contestant.name, out / contestant.run_name, is_finished=finished is not None
        )
        if finished is None:
            try:
                _in_own_process(Job(contestant, config, budget, cache, out))
            except InputError as error:
                observer.failed(contestant.name, str(error))
                continue
            config = read_config(out / contestant.run_name)
            finished = _finished(contestant, config, out, manifest)
        assert finished is not None  # noqa: S101
        results.append(finished)
    return tuple(results)


def _refuse_another_budget(out: Path, budget: Budget) -> None:
    """Make sure that what is begun in a folder had this budget.

    Raises:
        InputError: If it had another one.
    """
    path = out / BUDGET_NAME
    if not path.exists() or not any(is_begun(folder) for folder in out.iterdir()):
        return
    begun = read_record(path, Budget, "bring it back, or give another folder with --out")
    if begun != budget:
        raise InputError(
            f"{out} holds a comparison under {begun.option}, not {budget.option}: give that, or another "
            "folder with --out"
        )


def _config(
    contestant: Contestant, budget: Budget, settings: Mapping[str, Any], out: Path
) -> TrainConfig:
    """Give the settings of a network; under a budget of minutes their steps are not known before it began."""
    folder = out / contestant.run_name
    common = dict(settings)
    if find_network(contestant.model).is_3d:
        common["weights"] = None
    else:
        common.pop("depth", None)
    steps = budget.steps
    if steps is None and is_begun(folder):
        begun = read_config(folder)
        steps = begun.rounds * (begun.local_steps or 1)
    return make_config(
        **common,
        model=contestant.model,
        model_options=dict(contestant.options),
        strategy=CENTRAL,
        local_epochs=1,
        **divide(steps or 1),
    )


def _finished(
    contestant: Contestant, config: TrainConfig, out: Path, manifest: Manifest
) -> Result | None:
    run = out / contestant.run_name
    evaluation = finished_evaluation(
        run, config, manifest, scores=out / contestant.name, tta=contestant.tta
    )
    cost = read_cost(run)
    if evaluation is None or cost is None:
        return None
    return Result(contestant, config, evaluation, *network_size(run), cost)


@dataclass(frozen=True)
class Job:
    """What a process is to do: train a network as far as it is not, and score it."""

    contestant: Contestant
    config: TrainConfig
    budget: Budget
    cache: Path
    out: Path


def _in_own_process(job: Job) -> None:
    """Do a job in a new process.

    Raises:
        InputError: As the job does, or if the process was killed.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            pool.submit(do, job).result()
        except BrokenProcessPool as error:
            raise InputError(
                f"{job.contestant.name}: its process was killed, perhaps for want of memory; try a smaller "
                "--batch-size or --crop; what it had saved is gone on with"
            ) from error


def do(job: Job) -> None:
    """Train a network as far as it is not, and score it.

    Raises:
        InputError: If the run cannot be used, the device has too little memory, or whatever else fails.
    """
    run, device = job.out / job.contestant.run_name, job.config.device
    try:
        if read_cost(run) is None:
            _train(job, run)
        scoring = Scoring(tta=job.contestant.tta)
        evaluation = evaluate(
            run, job.cache, scoring=scoring, device=device, on_case=lambda *_: None
        )
    except InputError:
        raise
    except Exception as error:  # of whatever kind: the others go on
        reason = str(error).partition("\n")[0]
        raise InputError(f"{job.contestant.name}: {type(error).__name__}: {reason}") from error
    scores = job.out / job.contestant.name
    scores.mkdir(parents=True, exist_ok=True)
    write_evaluation(scores, evaluation)


def _train(job: Job, run: Path) -> None:
    """Train a network to its end, and write beside it what that took."""
    config, device, resumes = job.config, choose_device(job.config.device), is_begun(run)
    if job.budget.minutes is not None and not resumes:
        trial = TRIAL_STEPS if device.type == "cpu" else TRIAL_GROUPS * CHECK_EVERY
        per_step = seconds_per_step(config, job.cache, trial)
        steps = max(1, math.floor(60 * job.budget.minutes / per_step))
        config = config.model_copy(update=divide(steps))
    run_central(config, job.cache, run, Silent(), resume=resumes)
    write_cost(run, measured_cost(run, device))


class _Clock(Silent):
    """Notes when each step was told."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self, **_: object) -> None:
        self.times.append(time.perf_counter())


def seconds_per_step(config: TrainConfig, cache: Path, num_steps: int) -> float:
    """Measure what a step of a network takes, by a few of them that are thrown away.

    The first step is not counted, nor what is told together with it: a GPU's first group of steps, in
    which the network is compiled.
    """
    clock = _Clock()
    trial = config.model_copy(update={"rounds": 1, "local_steps": num_steps})
    with TemporaryDirectory(prefix="trial-") as folder:
        run_central(trial, cache, Path(folder, "run"), clock)
    first = clock.times[0]
    later = [moment for moment in clock.times if moment - first > 1e-3] or clock.times
    return (clock.times[-1] - first) / len(later)


def cost_table(results: Sequence[Result]) -> Table:
    """Show what each network is and what training it took, beside its mean Dice over all test cases."""
    data = results[0].evaluation.describe_data()
    table = Table(
        title="Under one budget, on one cache",
        caption="Dice: mean over regions and all test cases; FLOPs of one forward pass of a slice or a "
        f"patch; {data}",
    )
    table.add_column("network", overflow="fold")
    headings = ("Dice %", "params M", "FLOPs G", "steps", "seconds", "s a step", "memory GB")
    for heading in headings:
        table.add_column(heading, justify="right")
    for each in results:
        memory = each.cost.peak_bytes
        table.add_row(
            each.contestant.name,
            f"{100 * each.evaluation.means()['all']['mean']:.2f}",
            f"{each.parameters / 1e6:.2f}",
            f"{each.flops / 1e9:.2f}",
            str(each.cost.steps),
            f"{each.cost.seconds:.1f}",
            f"{each.cost.seconds / each.cost.steps:.3f}",
            "-" if memory is None else f"{memory / 1e9:.2f}",
        )
    return table


def scored_runs(results: Sequence[Result]) -> list[ScoredRun]:
    """Give the rows of the paper's tables."""
    return [
        ScoredRun(each.contestant.name, each.evaluation, each.parameters, each.flops)
        for each in results
    ]


def write_comparison(out: Path, results: Sequence[Result]) -> Path:
    """Save all rows as JSON.

    Returns:
        The file.
    """
    first = results[0].evaluation
    rows = [
        {
            "name": each.contestant.name,
            "settings": each.config.model_dump(),
            "means": each.evaluation.means(),
            "parameters": each.parameters,
            "flops": each.flops,
            **asdict(each.cost),
        }
        for each in results
    ]
    path = out / COMPARISON_NAME
    about = {"leakage": first.leakage.model_dump(), "synthetic": first.is_synthetic}
    write_document(path, {**about, "manifest": first.manifest, "rows": rows})
    return path
