"""The test set: 10 % of each cohort, drawn once, locked away from training."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal

import numpy as np

from cache_schema.errors import InputError
from cache_schema.vocabulary import COHORTS, Cohort
from pipeline.cohorts import Case

Signature = tuple[tuple[Cohort, int], ...]
"""How many cases a patient has in each cohort."""


def draw_test_cases(
    cases: Sequence[Case], *, fraction: float, protocol: Literal["patient", "paper"], seed: int
) -> frozenset[str]:
    """Draw the cases of the test set.

    With `patient`, persons are drawn, and all their cases in all cohorts are test; how many are
    drawn from each overlap of cohorts is chosen so that every cohort gets its fraction. With
    `paper`, each cohort draws its cases alone, as in section 3.1 of the paper, whereby most test
    patients are trained on under another year's name.

    Args:
        cases: All cases, with patients.
        fraction: Share of each cohort, rounded half up.
        protocol: What is drawn.
        seed: Of the draw; it depends on nothing else.

    Returns:
        Ids of the test cases.

    Raises:
        InputError: If `fraction` is not in [0, 1).
    """
    if not 0.0 <= fraction < 1.0:
        raise InputError(f"--test-fraction {fraction} is not in [0, 1)")
    generator = np.random.default_rng([seed, 0])
    ordered = sorted(cases, key=lambda case: case.case_id)
    targets = {
        cohort: _rounded(fraction, sum(case.cohort == cohort for case in ordered))
        for cohort in COHORTS
    }
    if protocol == "paper":
        return _draw_by_cohort(ordered, targets, generator)
    return _draw_by_patient(ordered, targets, fraction, generator)


def _rounded(fraction: float, count: int) -> int:
    # 0.1 * 285 must be 28.5 and become 29: decimal arithmetic, halves up.
    share = Decimal(str(fraction)) * count
    return int(share.to_integral_value(ROUND_HALF_UP))


def _draw_by_cohort(
    cases: Sequence[Case], targets: Mapping[Cohort, int], generator: np.random.Generator
) -> frozenset[str]:
    drawn: set[str] = set()
    for cohort in COHORTS:
        ids = [case.case_id for case in cases if case.cohort == cohort]
        drawn.update(generator.permutation(ids)[: targets[cohort]].tolist())
    return frozenset(drawn)


def _draw_by_patient(
    cases: Sequence[Case],
    targets: Mapping[Cohort, int],
    fraction: float,
    generator: np.random.Generator,
) -> frozenset[str]:
    counts: defaultdict[str, Counter[Cohort]] = defaultdict(Counter)
    for case in cases:
        counts[case.patient_id][case.cohort] += 1
    strata: defaultdict[Signature, list[str]] = defaultdict(list)
    for patient in sorted(counts):
        strata[tuple(sorted(counts[patient].items()))].append(patient)
    quotas = allocate({key: len(patients) for key, patients in strata.items()}, targets, fraction)
    tested: set[str] = set()
    for signature in sorted(strata):
        tested.update(generator.permutation(strata[signature])[: quotas[signature]].tolist())
    return frozenset(case.case_id for case in cases if case.patient_id in tested)


def allocate(
    sizes: Mapping[Signature, int], targets: Mapping[Cohort, int], fraction: float
) -> dict[Signature, int]:
    """Decide how many patients of each overlap of cohorts are test.

    Every overlap first gives its own fraction, rounded down; then patients are added one at a time
    while no cohort of theirs is full, first from the overlaps of most cohorts, among these from the
    one furthest below its fraction. Since the BraTS cohorts are nested, every cohort then has
    exactly its target.

    Args:
        sizes: Patients of each overlap.
        targets: Test cases that each cohort should have.
        fraction: Share of each cohort.

    Returns:
        Test patients of each overlap; no cohort exceeds its target.
    """
    quotas = {signature: int(Decimal(str(fraction)) * size) for signature, size in sizes.items()}
    missing = Counter(targets)
    for signature, quota in quotas.items():
        for cohort, count in signature:
            missing[cohort] -= quota * count
    while candidates := [s for s in sorted(sizes) if _fits(s, quotas[s], sizes[s], missing)]:
        chosen = max(candidates, key=lambda s: (len(s), fraction * sizes[s] - quotas[s]))
        quotas[chosen] += 1
        for cohort, count in chosen:
            missing[cohort] -= count
    return quotas


def _fits(signature: Signature, quota: int, size: int, missing: Mapping[Cohort, int]) -> bool:
    return quota < size and all(missing[cohort] >= count for cohort, count in signature)
