"""The real training commands, killed with SIGKILL: the resumed run ends with the same weights."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
TRAIN = (sys.executable, "-c", "import cli; cli.run_train()")
SMALL = ("--weights", "none", "--crop", 32, "--slices", "tumour", "--learning-rate", 1e-3)
COMMANDS = {
    "fed": ("--rounds", 3, "--local-epochs", 1, "--batch-size", 32),
    "central": ("--epochs", 2, "--checkpoint-steps", 1, "--batch-size", 16),
}
DEADLINE_S = 120


def command(kind: str, cache: Path, run: Path, *options: object) -> list[str]:
    given = (kind, "--cache", cache, "--run", run, *SMALL, *COMMANDS[kind], *options)
    return [*TRAIN, *map(str, given)]


def finish(arguments: list[str]) -> None:
    result = subprocess.run(
        arguments, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300
    )
    assert (result.returncode, result.stderr) == (0, "")


def kill_after_checkpoint(arguments: list[str], run: Path, delay_s: float) -> None:
    """Kill a run some time after its first checkpoint, which takes it into a step or the next save."""
    process = subprocess.Popen(
        arguments, env=ENVIRONMENT, stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + DEADLINE_S
    while not list(run.glob("*.safetensors")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(delay_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(DEADLINE_S)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_killed_training_ends_with_the_same_bits(kind, small_cache, tmp_path):
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    finish(command(kind, small_cache, undisturbed))
    kill_after_checkpoint(command(kind, small_cache, run), run, 0.05)
    finish([*TRAIN, kind, "--cache", str(small_cache), "--run", str(run), "--resume"])
    weights = [(folder / "model.safetensors").read_bytes() for folder in (run, undisturbed)]
    assert weights[0] == weights[1]
    assert not list(run.glob("*.partial"))
