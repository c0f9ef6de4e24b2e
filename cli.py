"""The command line: console commands `prep` and `train`. Parse, call, print; no logic.

Heavy imports happen inside commands, so that `--help` and completion answer at once.
"""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from click import FloatRange
from click.core import ParameterSource
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cache_schema.errors import InputError
from cache_schema.machine import complete_environment

if TYPE_CHECKING:
    from cache_schema.vocabulary import Split
    from training.config import TrainConfig
    from training.runlog import Board, RoundRecord

EXIT_FAILED = 1
EXIT_QUARANTINED = 3
INTERRUPTED = 130  # what typer makes of Ctrl-C
BEGINS_ANEW = "there is nothing to go on from: the same command begins anew"

prep = typer.Typer(
    name="prep",
    help="BraTS archives to leak-free federated slice shards.",
    epilog="Any command takes --debug to show a traceback when it fails.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
train = typer.Typer(
    name="train",
    help="Train and score multi-modal segmentation models on shards.",
    epilog="Any command takes --debug to show a traceback when it fails.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
site = typer.Typer(
    help="A hospital's place in a federation across machines, see docs/deployment.md.",
    no_args_is_help=True,
)
train.add_typer(site, name="site")
export = typer.Typer(help="A cache for other programs.", no_args_is_help=True)
prep.add_typer(export, name="export")
console = Console()
errors = Console(stderr=True, soft_wrap=True, highlight=False)


def _say(text: str) -> None:
    """Print a line as it is: brackets in it are no markup, and only a terminal breaks it."""
    console.print(text, markup=False, emoji=False, soft_wrap=True)


def _warn(text: str) -> None:
    """Print a line on stderr as it is."""
    errors.print(text, markup=False)


def run_prep() -> None:
    """Enter the console command `prep`."""
    _run(prep)


def run_train() -> None:
    """Enter the console command `train`."""
    _run(train)


def _run(app: typer.Typer) -> None:
    """Run an app; whatever goes wrong becomes one line on stderr and exit code 1."""
    complete_environment()
    debug = "--debug" in sys.argv
    try:
        app(_arguments())
    except InputError as error:
        if debug:
            raise
        errors.print(f"error: {error}", markup=False)
        sys.exit(EXIT_FAILED)
    except _InterruptedError as stop:
        errors.print(f"interrupted; {stop}", markup=False)
        sys.exit(EXIT_FAILED)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        errors.print(f"interrupted; {BEGINS_ANEW}", markup=False)
        sys.exit(EXIT_FAILED)
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split())
        errors.print(f"error: {type(error).__name__}: {text} (--debug shows where)", markup=False)
        sys.exit(EXIT_FAILED)


def _arguments() -> list[str]:
    return [argument for argument in sys.argv[1:] if argument != "--debug"]


class _InterruptedError(Exception):
    """Ctrl-C in a command that can go on; says how."""


@contextmanager
def _goes_on(how: str = "the same command goes on from what is finished") -> Iterator[None]:
    """Say at Ctrl-C how a command goes on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise _InterruptedError(how) from stop


@contextmanager
def _goes_on_with_resume(run: Path) -> Iterator[None]:
    """Say at Ctrl-C how a run goes on, which has settings to go on with as soon as its folder is made."""
    from training.config import CONFIG_NAME

    try:
        yield
    except KeyboardInterrupt as stop:
        if not (run / CONFIG_NAME).exists():
            raise
        words = ["train", *(word for word in _arguments() if word != "--resume"), "--resume"]
        raise _InterruptedError(f"`{shlex.join(words)}` goes on") from stop


class _RateColumn(ProgressColumn):
    """Items a second, such as `3.1 cases/s`."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """Show the speed of a task."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.2f} {self._unit}/s")


@contextmanager
def _progress(unit: str) -> Iterator[Progress]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(unit),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


class _CaseBar:
    """Shows a preparation on a progress bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting workers", total=None)

    def started(self, *, num_cases: int, num_workers: int, dashboard: str) -> None:
        """Name the cluster and start counting."""
        self._progress.print(f"{num_workers} workers, dashboard {dashboard}")
        self._progress.reset(self._task, description="cases", total=num_cases)

    def case_done(self, case_id: str) -> None:
        """Count one case."""
        self._progress.update(self._task, advance=1, description=case_id)


@contextmanager
def _counting(unit: str) -> Iterator[Callable[[str, int], None]]:
    """Show a progress bar; what it gives is told each item's name and their number."""
    with _progress(unit) as progress:
        task = progress.add_task(unit, total=None)
        yield lambda name, total: progress.update(task, advance=1, total=total, description=name)


Cache = Annotated[Path, typer.Option(help="Folder of the cache.")]
CacheArgument = Annotated[Path, typer.Argument(help="Folder of a finished cache.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Worker processes on this machine; all cores by default.")
]
Geometry = Annotated[
    Literal["brats", "any"],
    typer.Option(
        help="brats refuses anything but 240 x 240 x 155 voxels of 1 mm; any takes every grid and brings "
        "its axes to those of BraTS."
    ),
]


@prep.command("phantom")
def prep_phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write the three archives into.")],
    patients: Annotated[int, typer.Option(help="Patients of the largest cohort, 2020.")] = 12,
    shape: Annotated[tuple[int, int, int], typer.Option(help="Voxels along the three axes.")] = (
        240,
        240,
        155,
    ),
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
) -> None:
    """Write synthetic BraTS 2018, 2019 and 2020 archives."""
    from pipeline.phantom.archives import write_phantom

    with _goes_on(), _progress("cases") as progress:
        task = progress.add_task("phantom cases", total=None)
        summary = write_phantom(
            out,
            num_patients=patients,
            seed=seed,
            shape=shape,
            on_case=lambda case_id: progress.update(task, advance=1, description=case_id),
        )
    cohorts = ", ".join(f"{count} of {cohort}" for cohort, count in summary.num_cases.items())
    _say(f"{summary.num_patients} patients in {out}: cases {cohorts}")


@prep.command("scan")
def prep_scan(
    roots: Annotated[list[Path], typer.Argument(help="Folders that hold the archives.")],
    geometry: Geometry = "brats",
    json: Annotated[Path | None, typer.Option(help="Also write the report as JSON.")] = None,
    workers: Workers = None,
) -> None:
    """Take stock of archives and read every voxel; writes nothing but --json FILE."""
    from json import dumps

    from cache_schema.files import write_atomically
    from cache_schema.targets import require_writable_file
    from pipeline.cohorts import discover
    from pipeline.identity import identify
    from pipeline.run import inspect_cases
    from pipeline.scan import summarise
    from pipeline.show import scan_tables

    if json is not None:
        require_writable_file(json, "--json")
    with console.status("looking for cases and patients"):
        inventory = discover(roots)
        cases = identify(inventory)
    with _progress("cases") as progress:
        reports = inspect_cases(cases, geometry, _CaseBar(progress), num_workers=workers)
    report = summarise(cases, reports, inventory.overlooked)
    console.print(*scan_tables(report), sep="\n")
    if json is not None:
        document = dumps(report.document(), indent=1, sort_keys=True) + "\n"
        write_atomically(json, document, option="--json", advice="name a file that can be")


@prep.command("partition")
def prep_partition(
    roots: Annotated[
        list[Path] | None, typer.Argument(help="Folders that hold the archives; data by default.")
    ] = None,
    cache: Cache = Path("cache"),
    clients: Annotated[int, typer.Option(help="Number of clients.")] = 20,
    alpha: Annotated[
        float, typer.Option(help="Concentration of the Dirichlet distribution.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and the partition.")] = 0,
    test_fraction: Annotated[float, typer.Option(help="Of each cohort.")] = 0.1,
    protocol: Annotated[
        Literal["patient", "paper"],
        typer.Option(help="patient keeps test patients out of training, paper does not."),
    ] = "patient",
    skew: Annotated[
        Literal["quantity", "grade", "site"], typer.Option(help="What differs between clients.")
    ] = "quantity",
    min_cases: Annotated[int, typer.Option(help="Least training cases of a client.")] = 1,
    duplicates: Annotated[
        Literal["keep", "latest"],
        typer.Option(help="Train on all years of a patient, or on the latest cohort alone."),
    ] = "keep",
    missing: Annotated[
        Literal["refuse", "zero", "quarantine"],
        typer.Option(
            help="What to do about absent modalities: refuse to begin, store zeros, or leave such cases out."
        ),
    ] = "refuse",
    bias_correct: Annotated[bool, typer.Option(help="Run N4 first (slow).")] = False,
    normalize: Annotated[
        Literal["zscore", "percentile"], typer.Option(help="How to scale intensities.")
    ] = "zscore",
    geometry: Geometry = "brats",
    shard_cases: Annotated[int, typer.Option(min=1, help="Most cases in a shard.")] = 16,
    workers: Workers = None,
    scheduler: Annotated[
        str | None, typer.Option(help="tcp://HOST:PORT of a Dask cluster that already runs.")
    ] = None,
    reuse: Annotated[
        Path | None, typer.Option(help="Another cache of these cases: copy its slices.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a cache of other options or other cases.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Print who would get what; write nothing.")] = False,
    allow_quarantined: Annotated[
        bool, typer.Option(help="Exit with 0 even if cases were quarantined.")
    ] = False,
) -> None:
    """Scan, split, partition and write the shards of every client: the main job."""
    from cache_schema.manifest import Options
    from cache_schema.targets import require_writable_folder
    from pipeline.overlooked import describe_overlooked
    from pipeline.plan import make_plan
    from pipeline.run import run_plan
    from pipeline.show import client_table, cohort_table, plan_table

    options = Options(
        clients=clients,
        alpha=alpha,
        seed=seed,
        test_fraction=test_fraction,
        protocol=protocol,
        skew=skew,
        min_cases=min_cases,
        missing=missing,
        bias_correct=bias_correct,
        normalize=normalize,
        geometry=geometry,
        shard_cases=shard_cases,
        duplicates=duplicates,
    )
    if not dry_run:
        require_writable_folder(cache, "--cache")
    with console.status("looking for cases and patients"):
        plan = make_plan(roots or [Path("data")], options)
    if plan.overlooked:
        _warn(f"{describe_overlooked(plan.overlooked)}; `prep scan` names them")
    if dry_run:
        console.print(plan_table(plan))
        for case, reason in plan.excluded:
            errors.print(f"would be quarantined: {case.case_id}: {reason}", markup=False)
        return
    with _goes_on(), _progress("cases") as progress:
        result = run_plan(
            plan,
            cache,
            _CaseBar(progress),
            num_workers=workers,
            scheduler=scheduler,
            reuse=reuse,
            replace=replace,
            warn=_warn,
        )
    console.print(cohort_table(result.manifest), client_table(result.manifest))
    num_shards = len(result.manifest.shards)
    _say(f"{num_shards} shards in {cache}, {result.num_reused} of them kept as they were")
    for name in result.removed:
        _say(f"removed {name}: it belonged to an earlier partition")
    for entry in result.manifest.quarantined:
        errors.print(f"quarantined {entry.case_id}: {entry.reason}", markup=False)
    for client, count in result.short_clients.items():
        errors.print(
            f"client {client} is left with {count} cases, fewer than --min-cases {min_cases}"
        )
    if result.manifest.quarantined and not allow_quarantined:
        raise typer.Exit(EXIT_QUARANTINED)


@prep.command("verify")
def prep_verify(
    cache: CacheArgument,
    deep: Annotated[bool, typer.Option("--deep", help="Also decode every slice.")] = False,
) -> None:
    """Hold every shard against the manifest."""
    from cache_schema.verify import verify_cache

    with _progress("shards") as progress:
        task = progress.add_task("shards", total=None)
        problems = verify_cache(
            cache,
            deep=deep,
            on_shard=lambda path, total: progress.update(
                task, advance=1, total=total, description=path
            ),
        )
    for problem in problems:
        _say(problem)
    if problems:
        raise InputError(
            f"{cache} has {len(problems)} problem(s), first {problems[0]}; `prep partition` with the "
            "options it was made with rebuilds what is damaged"
        )
    _say(f"{cache} agrees with its manifest")


@prep.command("show")
def prep_show(
    cache: CacheArgument,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page of pictures and tables.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Also write all pictures as one, for a slide.")
    ] = None,
) -> None:
    """Show who got what, and by which options."""
    from cache_schema.manifest import read_manifest
    from pipeline.show import client_table, cohort_table, describe_options

    manifest = read_manifest(cache)
    _say(describe_options(manifest.options))
    console.print(cohort_table(manifest), client_table(manifest))
    if html is not None or png is not None:
        from pipeline.page import write_pictures

        for path in write_pictures(cache, manifest, html=html, png=png):
            _say(f"written: {path}")


@export.command("nnunet")
def prep_export_nnunet(
    cache: CacheArgument,
    out: Annotated[Path, typer.Option(help="New folder DatasetXXX_NAME, in nnU-Net's nnUNet_raw.")],
    regions: Annotated[
        bool, typer.Option("--regions", help="Train on WT, TC and ET instead of labels.")
    ] = False,
) -> None:
    """Write all cases as a raw dataset of nnU-Net v2."""
    from pipeline.nnunet import export_nnunet

    with _goes_on(), _counting("cases") as on_case:
        summary = export_nnunet(cache, out, regions=regions, on_case=on_case)
    _say(
        f"{summary.training_cases} training and {summary.test_cases} test cases in {out}, "
        f"{summary.folds} folds by patient"
    )


class _TrainingBar:
    """Shows a training run on a progress bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("loading", total=None)
        self._num_rounds = 0

    def started(self, *, num_rounds: int, num_steps: int) -> None:
        """Start counting steps over all rounds."""
        self._num_rounds = num_rounds
        self._progress.reset(self._task, total=num_steps)

    def step(self, *, round_number: int, client: int, loss: float) -> None:
        """Count one step and show its loss."""
        who = f" client {client}" if client >= 0 else ""
        text = f"round {round_number}/{self._num_rounds}{who} loss {loss:.3f}"
        self._progress.update(self._task, advance=1, description=text)

    def round_done(self, record: "RoundRecord") -> None:
        """Print a line about a round."""
        dice = " ".join(f"{region} {value:.3f}" for region, value in record.dice.items())
        refused = sum(client.refused is not None for client in record.clients)
        note = f", {refused} updates refused" if refused else ""
        note += f", {len(record.absent)} clients absent" if record.absent else ""
        note += "".join(f", {name} {value:.3g}" for name, value in record.figures.items())
        if record.num_bytes:
            sizes = (decimal(record.num_bytes), decimal(record.total_bytes))
            note += ", {} exchanged, {} in all".format(*sizes)
        self._progress.print(
            f"round {record.round}: loss {record.loss:.4f}, training Dice {dice}, "
            f"{record.seconds:.1f} s{note}"
        )


Run = Annotated[Path, typer.Argument(help="Folder that `train fed` or `train central` wrote.")]
NewRun = Annotated[Path, typer.Option(help="New folder for settings, log and weights.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --run, with its settings.")
]
Model = Annotated[str, typer.Option(help="Network; `train models` lists them.")]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="An option of the network, or size=tiny; repeatable."),
]
Position = Annotated[Literal["none", "2d", "3d", "2d+3d"], typer.Option(help="Position embedding.")]
PositionLevels = Annotated[
    Literal["last", "all"], typer.Option(help="Levels of the encoder that get it.")
]
FuseEn2 = Annotated[bool, typer.Option(help="Cross-modal attention at en2 too.")]
Weights = Annotated[
    str | None,
    typer.Option(
        help="imagenet, none, or a file with a ResNet18 state dict.",
        show_default="imagenet; none in 3D",
    ),
]
Target = Annotated[
    Literal["labels", "regions"], typer.Option(help="Predict NEC, ED, ET or ET, TC, WT.")
]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Slices, or patches in 3D.", show_default="8; 2 in 3D"),
]
LearningRate = Annotated[float, typer.Option(help="Of Adam, before cosine decay.")]
Crop = Annotated[
    int | None,
    typer.Option(
        help="Side of the training crop; a multiple of 32.", show_default="224; 128 in 3D"
    ),
]
Depth = Annotated[int | None, typer.Option(help="Slices of a patch in 3D; as many as --crop.")]
RotationDeg = Annotated[float, typer.Option(help="Largest random rotation.")]
NoiseStd = Annotated[float, typer.Option(help="Random noise, in z-scores.")]
ModalityDropout = Annotated[
    float, typer.Option(help="Probability that a training slice loses a modality.")
]
Slices = Annotated[
    Literal["all", "tumour"], typer.Option(help="Train on all slices or those with tumour.")
]
TumourShare = Annotated[
    float | None,
    typer.Option(help="Share of slices drawn from those with tumour; in 3D of patches around it."),
]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
LoaderWorkers = Annotated[int, typer.Option(help="Processes that read shards.")]
TrustCache = Annotated[
    bool,
    typer.Option("--trust-cache", help="Do not hash the shards before they are read."),
]
Device = Annotated[
    str,
    typer.Option(help="auto, cpu, cuda, cuda:1, mps; `train fed` takes several: cuda:0,cuda:1."),
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(help="Of the network; auto is bfloat16 on a GPU."),
]
Compile = Annotated[
    Literal["auto", "on", "off"],
    typer.Option(help="torch.compile, on a GPU with CUDA graphs; auto does so there."),
]
Mlflow = Annotated[
    str | None,
    typer.Option(
        help="Also show the run in MLflow: http://HOST:PORT, sqlite:///FILE.", metavar="URI"
    ),
]


@contextmanager
def _boards(mlflow: str | None) -> "Iterator[Sequence[Board]]":
    """Reach MLflow if it is asked for, and say at the end what it was not told."""
    if mlflow is None:
        yield ()
        return
    from training.mlflow_board import MlflowBoard

    board = MlflowBoard(mlflow)
    try:
        yield (board,)
    finally:
        if board.problem is not None:
            errors.print(board.problem, markup=False)


def _require_whole_shards(cache: Path, *splits: "Split", trusted: bool) -> None:
    """Hash the shards that a command will open, once, unless the cache is trusted."""
    from cache_schema.admission import require_whole_splits

    if not trusted:
        with _counting("shards") as count:
            require_whole_splits(cache, *splits, on_shard=count)


_PARAMETERS = {
    "strategy_options": "strategy_option",
    "model_options": "model_option",
    "rounds": "epochs",  # of `train central` alone
}
"""Settings that have another name on the command line."""


def _is_given(context: typer.Context, setting: str) -> bool:
    other = _PARAMETERS.get(setting)
    parameter = other if other in context.params else setting
    return context.get_parameter_source(parameter) is ParameterSource.COMMANDLINE


def _settings(context: typer.Context) -> dict[str, object]:
    """Pick the options of a command that are settings of a run."""
    from training.config import TrainConfig, named_values

    settings = {n: value for n, value in context.params.items() if n in TrainConfig.model_fields}
    for name in ("strategy", "model"):
        if f"{name}_option" in context.params:
            texts = context.params[f"{name}_option"] or ()
            settings[f"{name}_options"] = named_values(f"--{name}-option", texts)
    if "epochs" in context.params:
        settings["rounds"] = context.params["epochs"]
    return settings


def _training_config(context: typer.Context, run: Path, **fixed: object) -> "TrainConfig":
    """Check the settings on the command line, or with --resume those that it changes."""
    from training.config import CENTRAL, make_config, read_config

    given = _settings(context)
    if not context.params["resume"]:
        return make_config(**given, **fixed)
    saved = read_config(run).model_dump()
    own = "central" if saved["strategy"] == CENTRAL else "fed"
    if context.command.name != own:
        raise InputError(f"{run} is a run of `train {own}`; go on with it by that command")
    named = {name: value for name, value in given.items() if _is_given(context, name)}
    return make_config(**{**saved, **named})


@train.command("fed")
def train_fed(
    context: typer.Context,
    cache: Cache = Path("cache"),
    run: NewRun = Path("runs/fed"),
    resume: Resume = False,
    model: Model = "unetmm",
    model_option: ModelOption = None,
    position: Position = "2d",
    position_levels: PositionLevels = "last",
    fuse_en2: FuseEn2 = False,
    weights: Weights = None,
    target: Target = "labels",
    strategy: Annotated[str, typer.Option(help="How updates become the next model.")] = "fedavg",
    strategy_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A hyper-parameter of the strategy; repeatable."),
    ] = None,
    fraction: Annotated[float, typer.Option(help="Share of the clients in each round.")] = 1.0,
    dropout_rate: Annotated[
        float, typer.Option(help="Simulate: probability that a client fails to report.")
    ] = 0.0,
    byzantine: Annotated[
        str | None,
        typer.Option(
            metavar="KIND:COUNT[:SCALE]",
            help="Simulate: clients that lie; sign-flip, noise or nan, such as sign-flip:2, or sign-flip:2:4 "
            "for lies four times as large.",
        ),
    ] = None,
    exchange: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="Numbers between server and clients.")
    ] = "fp32",
    rounds: Annotated[int, typer.Option(help="Communication rounds.")] = 30,
    local_epochs: Annotated[int, typer.Option(help="Passes over a client's slices a round.")] = 3,
    local_steps: Annotated[
        int | None, typer.Option(help="Instead: optimiser steps of every client a round.")
    ] = None,
    epoch_schedule: Annotated[
        Literal["constant", "adaptive"],
        typer.Option(help="Adaptive: fewer passes a round as the loss falls."),
    ] = "constant",
    target_dice: Annotated[
        float | None,
        typer.Option(
            click_type=FloatRange(0, 1, min_open=True, max_open=True),
            help="Tell the first round whose mean Dice over the regions reaches this, on augmented "
            "training batches; the test set is not touched. Decides nothing.",
        ),
    ] = None,
    batch_size: BatchSize = None,
    learning_rate: Annotated[float, typer.Option(help="Of Adam, at the start.")] = 1e-4,
    lr_schedule: Annotated[
        Literal["cosine", "plateau", "constant"],
        typer.Option(help="Plateau: a fifth whenever training Dice has stopped rising."),
    ] = "cosine",
    lr_patience: Annotated[
        int, typer.Option(help="Rounds without a better Dice that are a plateau.")
    ] = 20,
    crop: Crop = None,
    depth: Depth = None,
    rotation_deg: RotationDeg = 15.0,
    noise_std: NoiseStd = 0.01,
    modality_dropout: ModalityDropout = 0.0,
    slices: Slices = "all",
    tumour_share: TumourShare = None,
    seed: Seed = 0,
    loader_workers: LoaderWorkers = 1,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Compile = "auto",
    mlflow: Mlflow = None,
    trust_cache: TrustCache = False,
) -> None:
    """Train one model over all clients of a cache, on this machine."""
    from training.federated.engine import run_federation
    from training.runlog import record_target

    if local_steps is not None and _is_given(context, "local_epochs"):
        raise InputError(
            "--local-epochs and --local-steps exclude each other; leave one of them out"
        )
    config = _training_config(context, run)
    with _goes_on_with_resume(run):
        _require_whole_shards(cache, "train", trusted=trust_cache)
        with _boards(mlflow) as boards, _progress("steps") as progress:
            run_federation(config, cache, run, _TrainingBar(progress), resume=resume, boards=boards)
    if target_dice is not None:
        reached = record_target(run, target_dice)
        when = "no round" if reached is None else f"round {reached} first"
        _say(f"{when} reached a mean training Dice of {target_dice:g}")
    _say(f"{run} is finished; `train eval {run} --cache {cache}` scores it")


@train.command("central")
def train_central(
    context: typer.Context,
    cache: Cache = Path("cache"),
    run: NewRun = Path("runs/central"),
    resume: Resume = False,
    model: Model = "unetmm",
    model_option: ModelOption = None,
    position: Position = "2d",
    position_levels: PositionLevels = "last",
    fuse_en2: FuseEn2 = False,
    weights: Weights = None,
    target: Target = "labels",
    epochs: Annotated[int, typer.Option(help="Passes over everybody's slices.")] = 90,
    checkpoint_steps: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 500,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = 1e-4,
    crop: Crop = None,
    depth: Depth = None,
    rotation_deg: RotationDeg = 15.0,
    noise_std: NoiseStd = 0.01,
    modality_dropout: ModalityDropout = 0.0,
    slices: Slices = "all",
    tumour_share: TumourShare = None,
    seed: Seed = 0,
    loader_workers: LoaderWorkers = 1,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Compile = "auto",
    mlflow: Mlflow = None,
    trust_cache: TrustCache = False,
) -> None:
    """Train one model on everybody's slices together, as if there were no clients."""
    from training.central import run_central
    from training.config import CENTRAL

    config = _training_config(context, run, strategy=CENTRAL, local_epochs=1)
    with _goes_on_with_resume(run):
        _require_whole_shards(cache, "train", trusted=trust_cache)
        with _boards(mlflow) as boards, _progress("steps") as progress:
            run_central(config, cache, run, _TrainingBar(progress), resume=resume, boards=boards)
    _say(f"{run} is finished; `train eval {run} --cache {cache}` scores it")


Tta = Annotated[bool, typer.Option("--tta", help="Average probabilities over flips of the slices.")]
PostprocessEt = Annotated[
    int,
    typer.Option(min=0, metavar="VOXELS", help="Fewer enhancing voxels in a case become necrosis."),
]


@train.command("eval")
def train_eval(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders that `train fed` or `train central` wrote; several are compared.",
        ),
    ],
    cache: Cache = Path("cache"),
    convention: Annotated[
        str,
        typer.Option(
            help="brats2020, nan-drop or lesionwise2023: what empty masks score, see docs/evaluation.md."
        ),
    ] = "brats2020",
    tta: Tta = False,
    postprocess_et: PostprocessEt = 0,
    clients: Annotated[
        bool,
        typer.Option(
            "--clients", help="Also score each client's own training cases, for fairness."
        ),
    ] = False,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Score the network before its first round.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Slices at a time; by default as in training.")
    ] = None,
    device: Device = "auto",
    trust_cache: TrustCache = False,
) -> None:
    """Score runs on the test set of every cohort, per case in 3D: Dice, HD95, sensitivity, specificity."""
    from training.comparison import compare_runs
    from training.evaluate import evaluate, require_runs
    from training.fairness import evaluate_clients, write_client_evaluation
    from training.models.trained import network_size
    from training.provenance import least_known
    from training.score_files import untrained_means, write_evaluation
    from training.scores import Scoring
    from training.show import (
        ScoredRun,
        comparison_table,
        describe_gain,
        fairness_table,
        paper_tables,
        score_table,
    )

    scoring = Scoring(convention, tta, postprocess_et, batch_size)
    require_runs(runs, cache, untrained=untrained)
    splits: Sequence[Split] = ("test", "train") if clients else ("test",)
    _require_whole_shards(cache, *splits, trusted=trust_cache)
    scored = []
    for run in runs:
        with _counting("cases") as count:
            evaluation = evaluate(
                run, cache, scoring=scoring, untrained=untrained, device=device, on_case=count
            )
        paths = write_evaluation(run, evaluation, seed=seed)
        console.print(score_table(evaluation, str(run), seed=seed))
        before = untrained_means(run, evaluation)
        if before is not None and not untrained:
            _say(describe_gain(evaluation, before))
        _say(f"written: {paths[0]}, {paths[1]}")
        if clients:
            with _counting("training cases") as count:
                fairness = evaluate_clients(
                    run, cache, scoring=scoring, untrained=untrained, device=device, on_case=count
                )
            paths = write_client_evaluation(run, fairness)
            console.print(fairness_table(fairness, str(run)))
            _say(f"written: {paths[0]}, {paths[1]}")
        scored.append(ScoredRun(str(run), evaluation, *network_size(run)))
    console.print(*paper_tables(scored))
    if len(scored) > 1:
        comparisons = compare_runs({each.name: each.evaluation for each in scored})
        leakage = least_known(each.evaluation.leakage for each in scored)
        is_synthetic = any(each.evaluation.is_synthetic for each in scored)
        console.print(comparison_table(comparisons, leakage, is_synthetic=is_synthetic))


@train.command("predict")
def train_predict(
    run: Run,
    case: Annotated[
        Path | None,
        typer.Argument(help="A case's folder as in BraTS, or a folder that holds such."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Mask to write, .nii.gz; of several cases the folder of masks.")
    ] = Path("mask.nii.gz"),
    t1: Annotated[Path | None, typer.Option(help="Instead of CASE: its T1.")] = None,
    t1ce: Annotated[Path | None, typer.Option(help="Its T1 with contrast agent.")] = None,
    t2: Annotated[Path | None, typer.Option(help="Its T2.")] = None,
    flair: Annotated[Path | None, typer.Option(help="Its FLAIR.")] = None,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Also write the network's planes beside the mask."),
    ] = False,
    tta: Tta = False,
    postprocess_et: PostprocessEt = 0,
    device: Device = "auto",
) -> None:
    """Segment raw scans: labels 0, 1, 2, 4 in the scans' own grid. Needs the run, not its cache."""
    from pipeline.raw_case import recall_preprocessing
    from pipeline.segment import plan_requests, segment, summarise
    from training.predictor import open_predictor

    files = {"t1": t1, "t1ce": t1ce, "t2": t2, "flair": flair}
    requests = plan_requests(case, files, out, warn=_warn)
    predictor = open_predictor(
        run,
        device=device,
        tta=tta,
        postprocess_et=postprocess_et,
        keeps_probabilities=probabilities,
    )
    settings = recall_preprocessing(predictor.preprocessing)
    outcomes = []
    with _progress("cases") as progress:
        task = progress.add_task("cases", total=len(requests))
        for outcome in segment(requests, settings, predictor, predictor.planes):
            progress.update(task, advance=1, description=outcome.case_id)
            for line in outcome.warnings(is_one_of_many=len(requests) > 1):
                errors.print(line, markup=False)
            for path, content in outcome.written.items():
                line = f"written: {path} ({content})"
                progress.print(line, markup=False, emoji=False, soft_wrap=True)
            outcomes.append(outcome)
    if (problem := summarise(outcomes)) is not None:
        raise InputError(problem)


@train.command("export")
def train_export(
    run: Run,
    out: Annotated[
        Path, typer.Option(help="File to write: .onnx, with the extra `onnx`, or .pt2.")
    ] = Path("model.onnx"),
) -> None:
    """Write a run's network for other programs, and check that it computes the same."""
    from training.export import TOLERANCE, export_run

    with console.status("exporting and comparing"):
        difference = export_run(run, out)
    _say(
        f"written: {out}; on random slices its probabilities differ by at most {difference:.2g} from the "
        f"network's ({TOLERANCE:g} is allowed)"
    )


@train.command("report")
def train_report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders that `train fed` or `train central` wrote; several are compared.",
        ),
    ],
    cache: Cache = Path("cache"),
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("report.html"),
    device: Device = "auto",
) -> None:
    """Write one self-contained HTML page about runs."""
    from training.report.page import write_report

    write_report(runs, cache, out, device=device)
    _say(f"written: {out}")


@train.command("watch")
def train_watch(
    run: Run,
    once: Annotated[
        bool, typer.Option("--once", help="Show the run as it is now, and end.")
    ] = False,
) -> None:
    """Watch a run from its log, also from another machine; ends with it, with 1 if it failed."""
    from training.watch import watch

    state = watch(run, console, once=once)
    if not once and state.status in {"failed", "killed"}:
        raise typer.Exit(EXIT_FAILED)


@train.command("models")
def train_models(
    model: Annotated[
        list[str] | None, typer.Option(help="Network; may be repeated. All by default.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the table as JSON.")] = None,
) -> None:
    """Count parameters and FLOPs of the networks, beside the paper's figures."""
    from cache_schema.targets import require_writable_file
    from training.models.table import measure_models, remarks, size_table, write_sizes

    if json is not None:
        require_writable_file(json, "--json")
    with console.status("building networks"):
        sizes = measure_models(model or ())
    console.print(size_table(sizes))
    for line in remarks(sizes):
        console.print(line, highlight=False)
    if json is not None:
        write_sizes(json, sizes)
        _say(f"written: {json}")


class _AblationBar(_TrainingBar):
    """Shows the runs of an ablation one after another on a progress bar."""

    def row_started(self, name: str, *, is_finished: bool) -> None:
        """Print which row it is."""
        self._progress.print(f"{name}: {'finished already' if is_finished else 'training'}")

    def case_done(self, case_id: str, num_cases: int) -> None:
        """Name the test case."""
        self._progress.update(self._task, description=f"scored {case_id}, one of {num_cases}")


@train.command("ablate")
def train_ablate(
    context: typer.Context,
    cache: Cache = Path("cache"),
    run: Annotated[Path, typer.Option(help="Folder for the runs; finished ones are kept.")] = Path(
        "runs/ablation"
    ),
    weights: Weights = "imagenet",
    rounds: Annotated[int, typer.Option(help="Communication rounds.")] = 30,
    local_epochs: Annotated[int, typer.Option(help="Passes over a client's slices a round.")] = 3,
    batch_size: BatchSize = 8,
    learning_rate: LearningRate = 1e-4,
    crop: Crop = 224,
    slices: Slices = "all",
    seed: Seed = 0,
    loader_workers: LoaderWorkers = 1,
    device: Device = "auto",
    trust_cache: TrustCache = False,
) -> None:
    """Train and score every position embedding of the paper's Table 4, with its statistics."""
    from training.ablate import ablate, ablation_table, statistics_table, write_ablation
    from training.config import make_config

    config = make_config(**_settings(context))
    with _goes_on():
        _require_whole_shards(cache, "train", "test", trusted=trust_cache)
        with _progress("steps") as progress:
            ablation = ablate(config, cache, run, _AblationBar(progress))
    console.print(ablation_table(ablation), statistics_table(ablation))
    _say(f"written: {write_ablation(run, ablation)}")


class _CompareLines:
    """Tells of the networks of a comparison one after another."""

    def started(self, name: str, folder: Path, *, is_finished: bool) -> None:
        """Say which one it is, and where it can be watched."""
        doing = (
            "finished already" if is_finished else f"training; `train watch {folder}` shows how far"
        )
        _say(f"{name}: {doing}")

    def failed(self, name: str, reason: str) -> None:
        """Say why one is not in the table."""
        errors.print(f"{name} failed: {reason}", markup=False)


@train.command("compare")
def train_compare(
    context: typer.Context,
    cache: CacheArgument,
    models: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[:OPTION=VALUE][+tta],...",
            help="Networks, with commas between; +tta scores one with flips, and trains it once.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the runs; finished ones are kept.")] = Path(
        "runs/compare"
    ),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Budget: optimiser steps of each.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            click_type=FloatRange(0, min_open=True),
            help="Budget: minutes of training of each, by the time that its first steps take.",
        ),
    ] = None,
    target: Target = "labels",
    batch_size: BatchSize = None,
    learning_rate: LearningRate = 1e-4,
    crop: Crop = None,
    depth: Depth = None,
    weights: Weights = None,
    seed: Seed = 0,
    loader_workers: LoaderWorkers = 1,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Compile = "auto",
    trust_cache: TrustCache = False,
) -> None:
    """Train networks under one budget, centrally, score them alike and show them in one table."""
    from training.compare import compare, cost_table, scored_runs, write_comparison
    from training.contestants import Budget, read_contestants
    from training.show import paper_tables

    if (steps is None) == (minutes is None):
        raise InputError("give a budget: either --steps or --minutes")
    contestants = read_contestants(models)
    with _goes_on():
        _require_whole_shards(cache, "train", "test", trusted=trust_cache)
        results = compare(
            contestants,
            cache,
            out,
            budget=Budget(steps, minutes),
            settings=_settings(context),
            observer=_CompareLines(),
        )
    if results:
        console.print(*paper_tables(scored_runs(results)), cost_table(results))
        _say(f"written: {write_comparison(out, results)}")
    if len(results) < len(contestants):
        raise InputError(
            f"{len(contestants) - len(results)} of {len(contestants)} networks failed, see above; the same "
            "command goes on with them"
        )


def _require_flower() -> None:
    """Say which extra is missing before an import fails."""
    if find_spec("flwr") is None:
        raise InputError("this needs the extra `flower`: python -m pip install 'fedunetmm[flower]'")


@site.command("init")
def site_init(
    folder: Annotated[
        Path, typer.Argument(metavar="SITE", help="New folder, for settings and key.")
    ],
    client: Annotated[
        int,
        typer.Option(help="This hospital's number in the federation; the coordinator gives it."),
    ],
    cache: Annotated[Path, typer.Option(help="Its shards.")] = Path("cache"),
    cache_client: Annotated[
        int | None,
        typer.Option(
            help="Whose shards of the cache, if not those of --client.", show_default=False
        ),
    ] = None,
    loader_workers: LoaderWorkers = 1,
    device: Device = "auto",
    trust_cache: TrustCache = False,
) -> None:
    """Make a hospital's site and its key pair."""
    _require_flower()
    from training.flower.site import PUBLIC_KEY_NAME, init_site, make_site

    init_site(
        folder,
        make_site(
            client=client,
            cache=str(cache.resolve()),
            cache_client=client if cache_client is None else cache_client,
            device=device,
            loader_workers=loader_workers,
            trust_cache=trust_cache,
        ),
    )
    _say(f"{folder} is made; send {folder / PUBLIC_KEY_NAME} to the coordinator")


@site.command("check")
def site_check(
    folder: Annotated[Path, typer.Argument(metavar="SITE", help="Folder that `init` made.")],
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The coordinator's SuperLink.")
    ],
    ca: Annotated[
        Path, typer.Option(help="The CA certificate that the coordinator has handed out.")
    ],
) -> None:
    """Check shards, key and connection of a site, and print the command that joins the federation."""
    _require_flower()
    from training.flower.site import check_connection, check_site, supernode_command

    with _progress("shards") as progress:
        task = progress.add_task("shards", total=None)
        problems = check_site(
            folder,
            on_shard=lambda name, total: progress.update(
                task, advance=1, total=total, description=name
            ),
        )
    problems += check_connection(superlink, ca)
    for problem in problems:
        errors.print(problem, markup=False)
    if problems:
        raise InputError(f"{folder} is not ready: {len(problems)} problems")
    console.print("ready; start this, and leave it running:")
    print(supernode_command(folder, superlink, ca))  # noqa: T201 - as it is, to be copied
