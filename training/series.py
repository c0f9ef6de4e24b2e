"""Runs that belong together: what is finished of them is kept, what is not is finished."""

from pathlib import Path

from cache_schema.errors import InputError
from cache_schema.manifest import Manifest, read_manifest
from training.attempt import holds_run
from training.config import TrainConfig, read_config
from training.metrics import DEFAULT_CONVENTION
from training.provenance import require_same_cache
from training.score_files import load_evaluation
from training.scores import Evaluation


def require_test_cases(cache: Path) -> Manifest:
    """Read the manifest of a cache on which runs can be compared.

    Raises:
        InputError: If the cache is none, or has no test cases.
    """
    manifest = read_manifest(cache)
    if not any(case.split == "test" for case in manifest.cases):
        raise InputError(f"{cache} has no test cases; prepare it with a larger --test-fraction")
    return manifest


def is_begun(folder: Path) -> bool:
    """Tell whether a folder holds a run to go on with: one of which anything was finished."""
    return holds_run(folder)


def refuse_another_run(
    folder: Path, config: TrainConfig, cache: Path, manifest: Manifest, option: str
) -> None:
    """Make sure that a folder is free, or holds the run that is asked for.

    Args:
        folder: Of the run.
        config: Asked for.
        cache: To train on.
        manifest: Of that cache.
        option: Names another place for the runs.

    Raises:
        InputError: If it holds another one.
    """
    if not is_begun(folder):
        return
    if read_config(folder) != config:
        raise InputError(
            f"{folder} holds a run with other settings; give the settings that it was made with, or "
            f"another folder with {option}"
        )
    require_same_cache(folder, cache, manifest)


def finished_evaluation(
    run: Path,
    config: TrainConfig,
    manifest: Manifest,
    *,
    scores: Path | None = None,
    tta: bool = False,
) -> Evaluation | None:
    """Read the scores of a run, or None if they are not there or of anything else than asked.

    Args:
        run: Its folder.
        config: What it must have been trained with; all rounds of it.
        manifest: Of the cache that it must have been scored on.
        scores: Folder of the scores, if that is another one.
        tta: Whether they must have been made with flips.
    """
    evaluation = _saved_evaluation(scores or run, manifest) if is_begun(run) else None
    if evaluation is None or read_config(run) != config:
        return None
    asked = (DEFAULT_CONVENTION, tta, 0)
    return evaluation if (evaluation.rules, evaluation.round) == (asked, config.rounds) else None


def _saved_evaluation(folder: Path, manifest: Manifest) -> Evaluation | None:
    """Read the scores of a folder; those that are damaged are none, and made again."""
    try:
        return load_evaluation(folder, manifest)
    except InputError:
        return None
