"""A run's model on the test set of every cohort, scored per case in 3D."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from cache_schema.errors import InputError
from cache_schema.geometry import restore_volume, spacing_mm
from cache_schema.manifest import digest, read_manifest
from cache_schema.targets import require_writable_folder
from training.checkpoint import WEIGHTS_NAME, load_weights
from training.config import TrainConfig, read_config
from training.data.volumes import CaseVolume, VolumeDataset
from training.device import choose_device
from training.metrics import CONVENTIONS, score_case
from training.models.initial import initial_model, patch_of
from training.models.trained import naming, trained_model
from training.predict import predict_labels
from training.provenance import known_leakage, read_provenance, require_same_cache
from training.scores import CaseScore, Evaluation, Scoring

CaseDone = Callable[[str, int], None]
"""Is told a case's id and the number of cases."""


def require_runs(runs: Sequence[Path], cache: Path, *, untrained: bool = False) -> None:
    """Make sure that all runs can be scored on one cache, before the first of them is.

    Args:
        runs: Folders.
        cache: On which they are to be scored.
        untrained: Whether the networks before the first round are asked for, which need no weights.

    Raises:
        InputError: If a folder is named twice, is no run, has no weights yet, or was trained on another
            cache, or cannot be written.
    """
    manifest = read_manifest(cache)
    for place, run in enumerate(runs):
        if run in runs[:place]:
            raise InputError(f"{run} is named twice")
        read_config(run)
        require_same_cache(run, cache, manifest)
        require_writable_folder(run, "RUN")
        if not untrained:
            load_weights(run)


def evaluate(
    run: Path,
    cache: Path,
    *,
    scoring: Scoring | None = None,
    untrained: bool = False,
    device: str = "auto",
    on_case: CaseDone,
) -> Evaluation:
    """Score a run on a cache's test set, one case in memory at a time.

    Args:
        run: Folder that `train fed` wrote.
        cache: Folder that `prep partition` wrote.
        scoring: How; by default as BraTS 2020 did, without anything added to the network.
        untrained: Score the network as it was before the first round instead.
        device: Where to compute.
        on_case: Told each case's id and the number of cases.

    Returns:
        Every metric of every region and case.

    Raises:
        InputError: If run or cache cannot be used, do not belong together, there is no test set, or the
            network gives NaN.
    """
    dataset = VolumeDataset(cache, split="test")
    if len(dataset) == 0:
        raise InputError(f"{cache} has no test cases; prepare it with a larger --test-fraction")
    return evaluate_dataset(
        run,
        cache,
        dataset,
        scoring=scoring or Scoring(),
        untrained=untrained,
        device=device,
        on_case=on_case,
    )


def evaluate_dataset(
    run: Path,
    cache: Path,
    dataset: VolumeDataset,
    *,
    scoring: Scoring,
    untrained: bool,
    device: str,
    on_case: CaseDone,
) -> Evaluation:
    """Score a run on some cases of the cache that it was trained on; see `evaluate`.

    Raises:
        InputError: If run or cache cannot be used, or do not belong together.
    """
    _require_convention(scoring.convention)
    config = read_config(run)
    require_same_cache(run, cache, dataset.manifest)
    leakage = known_leakage(read_provenance(run), dataset.manifest)
    model, round_number = (initial_model(config), 0) if untrained else trained_model(run, config)
    model = model.to(choose_device(device))
    scores = []
    for index in range(len(dataset)):
        # Nothing but the scores outlives the call, so that no two cases are in memory.
        with naming(run if untrained else run / WEIGHTS_NAME):
            score = score_volume(model, dataset[index], config, scoring)
        scores.append(score)
        on_case(score.case_id, len(dataset))
    return Evaluation(
        tuple(scores),
        leakage,
        scoring.convention,
        round_number,
        digest(dataset.manifest),
        scoring.tta,
        scoring.postprocess_et,
        is_synthetic=bool(dataset.manifest.synthetic),
    )


def _require_convention(name: str) -> None:
    if name not in CONVENTIONS:
        raise InputError(f"--convention {name}: known are {', '.join(CONVENTIONS)}")


def score_volume(
    model: nn.Module, volume: CaseVolume, config: TrainConfig, scoring: Scoring
) -> CaseScore:
    """Segment one case and score it as the whole volume that it was cut from."""
    prediction = predict_labels(
        model,
        volume.image,
        config.target,
        batch_size=scoring.batch_size or config.batch_size,
        patch=patch_of(config),
        tta=scoring.tta,
        postprocess_et=scoring.postprocess_et,
    )
    values = score_case(
        restore_volume(volume.label, volume.z, volume.shape),
        restore_volume(prediction, volume.z, volume.shape),
        spacing_mm(volume.affine),
        scoring.convention,
    )
    return CaseScore(volume.case_id, volume.patient_id, volume.cohort, values)
