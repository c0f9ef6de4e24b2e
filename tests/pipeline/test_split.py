"""The test set: each cohort's share, and nobody in it who is trained on."""

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cache_schema.errors import InputError
from pipeline.cohorts import Case
from pipeline.split import allocate, draw_test_cases

COHORTS = ("brats2018", "brats2019", "brats2020")


def nested_cases(in_2018: int, in_2019: int, in_2020: int) -> list[Case]:
    """People of whom the first are in all years and the last in 2020 alone, as in BraTS."""
    sizes = dict(zip(COHORTS, (in_2018, in_2019, in_2020), strict=True))
    return [
        Case(f"{cohort}-{person:03d}", cohort, Path(), {}, patient_id=f"P{person:03d}")
        for cohort, size in sizes.items()
        for person in range(size)
    ]


REAL = nested_cases(285, 335, 369)


def sizes(cases: list[Case], tested: frozenset[str]) -> dict[str, int]:
    return dict(Counter(case.cohort for case in cases if case.case_id in tested))


def leaked(cases: list[Case], tested: frozenset[str], cohort: str) -> set[str]:
    trained = {case.patient_id for case in cases if case.case_id not in tested}
    return trained & {c.patient_id for c in cases if c.case_id in tested and c.cohort == cohort}


@pytest.mark.parametrize("protocol", ["patient", "paper"])
def test_brats_gives_29_34_and_37_test_cases(protocol):
    # 28.5, 33.5 and 36.9, halves up; banker's rounding would give 28 and 34.
    for seed in range(5):
        tested = draw_test_cases(REAL, fraction=0.1, protocol=protocol, seed=seed)
        assert sizes(REAL, tested) == {"brats2018": 29, "brats2019": 34, "brats2020": 37}


def test_no_test_patient_of_brats_is_in_training():
    for seed in range(20):
        tested = draw_test_cases(REAL, fraction=0.1, protocol="patient", seed=seed)
        assert not any(leaked(REAL, tested, cohort) for cohort in COHORTS)


def test_the_papers_protocol_trains_on_nearly_every_test_patient_of_2018():
    shares = []
    for seed in range(20):
        tested = draw_test_cases(REAL, fraction=0.1, protocol="paper", seed=seed)
        shares.append(len(leaked(REAL, tested, "brats2018")) / 29)
    # A person escapes training only if 2019 and 2020 draw them too: 1 - 34/335 * 37/369 = 0.99.
    assert sum(shares) / len(shares) == pytest.approx(0.99, abs=0.02)


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_cases():
    shuffled = list(REAL)
    random.Random(1).shuffle(shuffled)
    for protocol in ("patient", "paper"):
        draws = [
            draw_test_cases(cases, fraction=0.1, protocol=protocol, seed=seed)
            for cases, seed in ((REAL, 3), (shuffled, 3), (REAL, 4))
        ]
        assert draws[0] == draws[1] != draws[2]


def test_every_case_of_a_test_patient_is_test():
    cases = [*REAL, Case("brats2018-000b", "brats2018", Path(), {}, patient_id="P000")]
    for seed in range(30):
        tested = draw_test_cases(cases, fraction=0.1, protocol="patient", seed=seed)
        twins = {"brats2018-000", "brats2018-000b", "brats2019-000", "brats2020-000"} & tested
        assert len(twins) in {0, 4}


@pytest.mark.parametrize("protocol", ["patient", "paper"])
def test_no_fraction_means_no_test_set(protocol):
    assert draw_test_cases(REAL, fraction=0.0, protocol=protocol, seed=0) == frozenset()


@pytest.mark.parametrize("fraction", [1.0, -0.1, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(InputError, match=f"--test-fraction {fraction}"):
        draw_test_cases(REAL, fraction=fraction, protocol="patient", seed=0)


def test_quotas_of_nested_cohorts_meet_every_target():
    # 285 people in all years, 50 in 2019 and 2020, 34 in 2020 alone.
    everyone = (("brats2018", 1), ("brats2019", 1), ("brats2020", 1))
    later, last = everyone[1:], everyone[2:]
    targets = {"brats2018": 29, "brats2019": 34, "brats2020": 37}
    quotas = allocate({everyone: 285, later: 50, last: 34}, targets, 0.1)
    assert quotas == {everyone: 29, later: 5, last: 3}  # 34 - 29, 37 - 34


def test_no_cohort_gets_more_than_its_target_even_where_it_cannot_be_met():
    # Three people with two cases each: a target of 1 would need half a person.
    assert allocate({(("brats2018", 2),): 3}, {"brats2018": 1}, 0.2) == {(("brats2018", 2),): 0}


people = st.tuples(st.integers(1, 60), st.integers(0, 20), st.integers(0, 20))
"""How many are in all three years, in 2019 and 2020, and in 2020 alone."""


def split_nested(members: tuple[int, int, int], percent: int, seed: int) -> tuple[list, list]:
    """Draw a test set and compare the cohorts' numbers of test cases with their targets."""
    counts = [sum(members[: years + 1]) for years in range(3)]
    cases = nested_cases(*counts)
    tested = draw_test_cases(cases, fraction=percent / 100, protocol="patient", seed=seed)
    assert not any(leaked(cases, tested, cohort) for cohort in COHORTS)
    drawn = sizes(cases, tested)
    targets = [(2 * percent * count + 100) // 200 for count in counts]  # halves up, in integers
    return [drawn.get(cohort, 0) for cohort in COHORTS], targets


@example((1, 4, 5), 10, 0)  # 0.1, 0.5 and 1.0 cases: one person of 2019 and 2020 serves both
@given(people, st.integers(0, 99), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_nested_cohorts_have_exactly_their_share(members, percent, seed):
    drawn, targets = split_nested(members, percent, seed)
    assert drawn == targets
