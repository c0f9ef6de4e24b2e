"""Who goes where: from folders to the list of shards to write."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache_schema.errors import InputError
from cache_schema.layout import client_shard, test_shard
from cache_schema.manifest import Options
from cache_schema.vocabulary import COHORTS, MODALITIES
from pipeline.case import Preprocessing
from pipeline.case_folder import SEGMENTATION
from pipeline.cohorts import Case, discover
from pipeline.identity import identify
from pipeline.overlooked import Overlooked
from pipeline.partition import Partition, partition_patients
from pipeline.quality import BRATS_SHAPE
from pipeline.split import draw_test_cases
from pipeline.volume import VolumeError, read_shape


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: its path relative to the cache, its owner, its cases in order."""

    path: str
    client: int | None
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Plan:
    """A whole preparation before the first voxel is read.

    Attributes:
        options: What the user asked for.
        preprocessing: What decides the voxels.
        cases: All cases found, sorted by id.
        overlooked: What looks like cases or archives and is not read.
        partition: Patients of each client.
        shards: What to write.
        excluded: Cases that cannot be used at all, and why.
        superseded: Training cases left out in favour of the same patient's latest cohort.
    """

    options: Options
    preprocessing: Preprocessing
    cases: tuple[Case, ...]
    overlooked: tuple[Overlooked, ...]
    partition: Partition
    shards: tuple[ShardPlan, ...]
    excluded: tuple[tuple[Case, str], ...]
    superseded: tuple[Case, ...]


def make_plan(roots: Sequence[Path], options: Options) -> Plan:
    """Discover cases, draw the test set, deal patients to clients and cut shards.

    Args:
        roots: Folders that hold the archives.
        options: Of `prep partition`.

    Returns:
        The plan; the same folders and options give the same plan.

    Raises:
        InputError: If nothing is found, no case can be used, modalities are absent under
            `--missing refuse`, or the partition is infeasible.
    """
    inventory = discover(roots)
    everything = identify(inventory)
    reasons = {case.case_id: _why_excluded(case, options.missing) for case in everything}
    excluded = tuple((case, reason) for case in everything if (reason := reasons[case.case_id]))
    cases = tuple(case for case in everything if not reasons[case.case_id])
    if not cases:
        raise _no_usable_case(excluded)
    if options.missing == "refuse":
        _refuse_absent(cases)
    tested = draw_test_cases(
        cases, fraction=options.test_fraction, protocol=options.protocol, seed=options.seed
    )
    training, superseded = _choose_training(
        [case for case in cases if case.case_id not in tested], options.duplicates
    )
    partition = partition_patients(
        training,
        num_clients=options.clients,
        alpha=options.alpha,
        skew=options.skew,
        min_cases=options.min_cases,
        seed=options.seed,
    )
    return Plan(
        options=options,
        preprocessing=Preprocessing(
            normalize=options.normalize,
            bias_correct=options.bias_correct,
            geometry=options.geometry,
            plane=_plane(cases, options.geometry),
        ),
        cases=everything,
        overlooked=inventory.overlooked,
        partition=partition,
        shards=(
            *_client_shards(training, partition, options.shard_cases),
            *_test_shards([case for case in cases if case.case_id in tested], options.shard_cases),
        ),
        excluded=excluded,
        superseded=superseded,
    )


def _choose_training(
    cases: Sequence[Case], duplicates: str
) -> tuple[Sequence[Case], tuple[Case, ...]]:
    """Split training cases into those to train on and those that a later cohort supersedes."""
    if duplicates == "keep":
        return cases, ()
    latest: dict[str, int] = {}
    for case in cases:
        latest[case.patient_id] = max(COHORTS.index(case.cohort), latest.get(case.patient_id, 0))

    def is_latest(case: Case) -> bool:
        return COHORTS.index(case.cohort) == latest[case.patient_id]

    return [c for c in cases if is_latest(c)], tuple(c for c in cases if not is_latest(c))


def _why_excluded(case: Case, missing: str) -> str:
    """Say why a case cannot be used, by the names and kinds of its files; nothing if it can."""
    faults = list(case.faults)
    has_none = len(case.absent) == len(MODALITIES)
    if (missing == "quarantine" and case.absent) or (missing == "zero" and has_none):
        faults.append(f"lacks {', '.join(case.absent)}")
    return "; ".join(faults)


def _no_usable_case(excluded: Sequence[tuple[Case, str]]) -> InputError:
    case, reason = excluded[0]
    return InputError(
        f"none of the {len(excluded)} cases can be used, first {case.case_id}: {reason}; `prep scan` "
        "shows what is wrong with each"
    )


def _refuse_absent(cases: Sequence[Case]) -> None:
    absent = [f"{case.case_id} ({', '.join(case.absent)})" for case in cases if case.absent]
    if absent:
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        raise InputError(
            f"{len(absent)} of {len(cases)} cases lack modalities: {', '.join(absent[:8])}{more}; "
            "complete them, leave such cases out with --missing quarantine, or store zeros in their place "
            "with --missing zero"
        )


def _plane(cases: Sequence[Case], geometry: str) -> tuple[int, int]:
    """Return the plane that every slice of the cache has: BraTS's, or the largest there is."""
    if geometry == "brats":
        return BRATS_SHAPE[0], BRATS_SHAPE[1]
    shapes = []
    for case in cases:
        try:
            shapes.append(read_shape(case.files[SEGMENTATION]))
        except VolumeError:
            continue  # A damaged file is quarantined with its reason when the case is read.
    if not shapes:
        raise InputError(
            "no segmentation is a readable NIfTI file; check the roots with `prep scan`"
        )
    return max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)


def _client_shards(
    training: Sequence[Case], partition: Partition, shard_cases: int
) -> list[ShardPlan]:
    shards = []
    for client, patients in enumerate(map(frozenset, partition.patients)):
        owned = [case for case in training if case.patient_id in patients]
        for number, chunk in enumerate(_chunks(owned, shard_cases)):
            shards.append(ShardPlan(client_shard(client, number), client, chunk))
    return shards


def _test_shards(tested: Sequence[Case], shard_cases: int) -> list[ShardPlan]:
    return [
        ShardPlan(test_shard(cohort, number), None, chunk)
        for cohort in COHORTS
        for number, chunk in enumerate(
            _chunks([case for case in tested if case.cohort == cohort], shard_cases)
        )
    ]


def _chunks(cases: Sequence[Case], size: int) -> list[tuple[Case, ...]]:
    return [tuple(cases[start : start + size]) for start in range(0, len(cases), size)]
