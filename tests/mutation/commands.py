"""The commands under test, and how one is run: in a forked child with limits.

Whoever imports this pays for torch once; a child inherits it. No child starts processes: a preparation
gets a Dask worker that is a thread.
"""

import gc
import os
import re
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

HANG_S = 60
"""20 s of a machine that does nothing else; tests share theirs."""
MOST_BYTES = 2 * 1024**3

HEAVY = (
    "pipeline.run",
    "pipeline.plan",
    "pipeline.show",
    "pipeline.page",
    "pipeline.nnunet",
    "pipeline.segment",
    "pipeline.scan",
    "pipeline.raw_case",
    "cache_schema.verify",
    "training.federated.engine",
    "training.central",
    "training.evaluate",
    "training.fairness",
    "training.report.page",
    "training.watch",
    "training.predictor",
    "training.export",
    "training.show",
    "training.comparison",
    "training.models.trained",
    "torch.utils.tensorboard",
)

SCAN = "scans/Brats18_CBICA_AAA_1"
"""The case that is predicted, one of those that were prepared."""

PARTITION = (
    *(
        "prep",
        "partition",
        "data",
        "--clients",
        "2",
        "--test-fraction",
        "0.4",
        "--shard-cases",
        "2",
    ),
    *("--geometry", "any", "--workers", "1"),
)
_TRAIN = (
    *(
        "--cache",
        "cache",
        "--model",
        "tiny",
        "--weights",
        "none",
        "--crop",
        "32",
        "--batch-size",
        "2",
    ),
    *("--loader-workers", "0", "--device", "cpu"),
)
_FED = ("train", "fed", *_TRAIN, "--local-steps", "1", "--rounds")
_CENTRAL = ("train", "central", *_TRAIN, "--epochs")
_DEVICE = ("--device", "cpu")

RUNS = (
    (*_FED, "2", "--run", "run"),
    (*_FED, "2", "--run", "run2", "--seed", "7"),
    (*_CENTRAL, "2", "--run", "central"),
)
"""Of the undamaged world; each is interrupted after its first round, so that it can be resumed."""


@dataclass(frozen=True)
class Command:
    """A command line, and what of the world it may write to.

    Attributes:
        arguments: As typed in the world's folder.
        writes: What it may change there; anything else has to stay as it was.
        results: Files that have to be as in the undamaged world; patterns.
        is_table: Whether its stdout is a result too.
    """

    arguments: tuple[str, ...]
    writes: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    is_table: bool = True


_CACHE_FILES = ("{}/manifest.json", "{}/**/*.h5")


def _prepared(cache: str) -> tuple[str, ...]:
    return tuple(pattern.format(cache) for pattern in _CACHE_FILES)


COMMANDS: dict[str, Command] = {
    "scan": Command(("prep", "scan", "data", "--geometry", "any", "--workers", "1")),
    "partition": Command(
        (*PARTITION, "--cache", "out", "--seed", "0"), ("out",), _prepared("out"), is_table=False
    ),
    "rerun": Command(
        (*PARTITION, "--cache", "cache", "--seed", "0"),
        ("cache",),
        _prepared("cache"),
        is_table=False,
    ),
    "reuse": Command(
        (*PARTITION, "--cache", "out", "--seed", "3", "--reuse", "cache"),
        ("out",),
        _prepared("out"),
        is_table=False,
    ),
    "verify": Command(("prep", "verify", "cache")),
    "verify-deep": Command(("prep", "verify", "cache", "--deep")),
    "show": Command(("prep", "show", "cache")),
    "show-html": Command(
        ("prep", "show", "cache", "--html", "out.html"), ("out.html",), ("out.html",)
    ),
    "nnunet": Command(
        ("prep", "export", "nnunet", "cache", "--out", "Dataset001_Out"),
        ("Dataset001_Out", ".Dataset001_Out.partial"),
        ("Dataset001_Out/**/*.nii.gz",),
    ),
    "fed": Command(
        (*_FED, "1", "--run", "out"), ("out",), ("out/model.safetensors",), is_table=False
    ),
    "central": Command(
        (*_CENTRAL, "1", "--run", "out"), ("out",), ("out/model.safetensors",), is_table=False
    ),
    "resume": Command(
        (*_FED, "2", "--run", "run", "--resume"),
        ("run",),
        ("run/model.safetensors",),
        is_table=False,
    ),
    "resume-central": Command(
        (*_CENTRAL, "2", "--run", "central", "--resume"),
        ("central",),
        ("central/model.safetensors",),
        is_table=False,
    ),
    "eval": Command(
        ("train", "eval", "run", "--cache", "cache", *_DEVICE), ("run",), ("run/evaluation.*",)
    ),
    "predict": Command(
        ("train", "predict", "run", SCAN, "--out", "out.nii.gz", *_DEVICE),
        ("out.nii.gz",),
        ("out.nii.gz",),
    ),
    "export": Command(
        ("train", "export", "run", "--out", "out.onnx"), ("out.onnx", "out.onnx.data")
    ),
    "report": Command(
        ("train", "report", "run", "--cache", "cache", "--out", "out.html", *_DEVICE),
        ("out.html",),
        ("out.html",),
    ),
    "watch": Command(("train", "watch", "run", "--once")),
}


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Exit code; negative after a signal, as after a hang.
        stdout: All of it.
        stderr: All of it.
        peak_bytes: Of memory.
    """

    code: int
    stdout: str
    stderr: str
    peak_bytes: int


SLOW = ("export", "report", "scan", "partition")
"""Commands that take a second of processor time or more."""


def warm_up() -> None:
    """Import everything that children need, and make the small network known."""
    import_module("cli")
    for name in HEAVY:
        import_module(name)
    from tests.training.conftest import TinyNet
    from training.models.registry import MODELS, Network

    MODELS["tiny"] = Network(TinyNet)
    gc.freeze()  # a child would else copy what it does not change


def require(world: Path, arguments: tuple[str, ...]) -> None:
    """Run a command that has to go well."""
    ended = run(world, arguments)
    if ended.code:
        raise RuntimeError(f"{' '.join(arguments)} ended with {ended.code}: {ended.stderr}")


def begin(world: Path, arguments: tuple[str, ...]) -> None:
    """Begin a run, and interrupt it after its first round."""
    ended = run(world, arguments, is_interrupted=True)
    if "interrupted; " not in ended.stderr:
        raise RuntimeError(f"{' '.join(arguments)} ended with {ended.code}: {ended.stderr}")


def run(world: Path, arguments: tuple[str, ...], *, is_interrupted: bool = False) -> Ended:
    """Run a command line in a world, in a child of this process."""
    texts = [world.with_name(f"{world.name}.{name}") for name in ("stdout", "stderr")]
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        if is_interrupted:
            _interrupt_first_round()
        _become(world, arguments, *texts)
    _, status, usage = os.wait4(child, 0)
    stdout, stderr = (path.read_text(encoding="utf-8", errors="replace") for path in texts)
    return Ended(os.waitstatus_to_exitcode(status), stdout, stderr, usage.ru_maxrss * 1024)


def _become(world: Path, arguments: tuple[str, ...], stdout: Path, stderr: Path) -> None:
    """Be the command, in a forked child, and end."""
    code = 70
    try:
        for descriptor, path in ((1, stdout), (2, stderr)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(world)
        own_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (own_bytes + MOST_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(HANG_S)
        code = _enter(arguments)
    except BaseException:  # noqa: BLE001 - what came through the command line is the finding
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _interrupt_first_round() -> None:
    """Press Ctrl-C once the first round is saved."""
    import cli

    def round_done(*_: object) -> None:
        raise KeyboardInterrupt

    cli._TrainingBar.round_done = round_done


def _enter(arguments: tuple[str, ...]) -> int:
    import cli
    import pipeline.cluster

    pipeline.cluster._started = _threaded
    sys.argv = list(arguments)
    try:
        {"prep": cli.run_prep, "train": cli.run_train}[arguments[0]]()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


@contextmanager
def _threaded(num_workers: int | None) -> Iterator[object]:
    """Stand in for a cluster of processes, which would take seconds to start."""
    from distributed import Client, LocalCluster

    cluster = LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        dashboard_address="127.0.0.1:0",
        silence_logs=51,
    )
    with cluster, Client(cluster) as client:
        yield client


_CLOCKS = re.compile(
    r"\d{4}-\d\d-\d\d|\d+:\d\d(:\d\d)?|-:--:--|\d+(\.\d+)? (?:s|ms|min|h)\b|tcp://\S+|http://\S+"
)


def table_of(stdout: str) -> str:
    """Take progress bars and clocks out of what a command has printed."""
    lines = (line for line in stdout.splitlines() if "━" not in line or "ETA" not in line)
    kept = (" ".join(_CLOCKS.sub("*", line).split()) for line in lines if not _is_progress(line))
    return "\n".join(kept)


def _is_progress(line: str) -> bool:
    return bool(re.search(r"[━╸╺]{20,}.*(\d+/[\d?]+|ETA)", line)) or line.startswith("1 workers")


def remove(path: Path) -> None:
    """Remove a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
