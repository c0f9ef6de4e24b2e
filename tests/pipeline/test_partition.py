"""Patients to clients: a draw that always deals everybody out, or says with numbers why it cannot."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cache_schema.errors import InputError
from pipeline.cohorts import Case
from pipeline.partition import largest_remainder, partition_patients


def cases_of(sizes: list[int], grades: list[str] | None = None, sites: list[str] | None = None):
    """Patients P000, P001, ... with so many cases each."""
    return [
        Case(
            f"BraTS20_Training_{person:03d}{number}",
            "brats2020",
            Path(),
            {},
            patient_id=f"P{person:03d}",
            grade=grades[person] if grades else "unknown",
            site=sites[person] if sites else "unknown",
        )
        for person, size in enumerate(sizes)
        for number in range(size)
    ]


def dealt(partition) -> list[str]:
    return sorted(patient for client in partition.patients for patient in client)


def test_largest_remainders_get_the_rest():
    # 7 * (0.5, 0.3, 0.2) = 3.5, 2.1, 1.4: rounding each would give 8 or 7 by luck.
    assert largest_remainder([0.5, 0.3, 0.2], 7) == [4, 2, 1]
    # 10 * (0.05, 0.34, 0.61) = 0.5, 3.4, 6.1: rounding half to even gives 9.
    assert largest_remainder([0.05, 0.34, 0.61], 10) == [1, 3, 6]


def test_equal_remainders_go_to_the_first():
    assert largest_remainder([0.25, 0.25, 0.25, 0.25], 6) == [2, 2, 1, 1]


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=40), st.integers(0, 500))
@settings(deadline=None)
def test_rounded_shares_sum_to_the_total_and_are_less_than_one_off(weights, total):
    shares = np.array(weights) / np.sum(weights)
    counts = largest_remainder(shares, total)
    assert sum(counts) == total
    assert np.all(np.abs(np.array(counts) - shares * total) < 1 + 1e-9)


def test_counts_follow_the_drawn_proportions():
    partition = partition_patients(cases_of([1] * 332), num_clients=7, alpha=5.0, seed=3)
    assert partition.repairs == ()
    (q,) = partition.q.values()
    assert sum(q) == pytest.approx(1.0)
    sizes = [len(patients) for patients in partition.patients]
    assert sum(sizes) == 332
    assert np.all(np.abs(np.array(sizes) - 332 * np.array(q)) < 1)
    assert len(set(sizes)) > 1


def test_no_client_of_20_is_empty_in_200_seeds():
    cases = cases_of([1] * 332)
    repaired = 0
    for seed in range(200):
        partition = partition_patients(cases, num_clients=20, alpha=1.0, seed=seed)
        assert min(len(patients) for patients in partition.patients) >= 1
        assert len(dealt(partition)) == len(set(dealt(partition))) == 332
        repaired += bool(partition.repairs)
    assert repaired > 20  # or the seeds would not have shown anything


def test_repairs_move_one_patient_at_a_time_from_the_largest_client():
    # Seed by seed, the draw itself is what the drawn proportions say.
    cases = cases_of([1] * 332)
    for seed in range(60):
        partition = partition_patients(cases, num_clients=20, alpha=1.0, seed=seed)
        sizes = largest_remainder(partition.q["all"], 332)
        assert len(partition.repairs) == sizes.count(0)
        for move in partition.repairs:
            assert sizes[move.source] == max(sizes)
            assert sizes[move.target] == 0
            sizes[move.source] -= 1
            sizes[move.target] += 1
        assert sizes == [len(patients) for patients in partition.patients]


def test_a_patient_with_many_cases_is_on_one_client_with_all_of_them():
    partition = partition_patients(cases_of([3, 1, 2, 3, 1, 1]), num_clients=2, alpha=1.0, seed=1)
    assert dealt(partition) == ["P000", "P001", "P002", "P003", "P004", "P005"]


def test_skew_by_grade_gives_clients_another_mix_of_grades():
    cases = cases_of([1] * 335, ["HGG"] * 259 + ["LGG"] * 76)
    grade = {case.patient_id: case.grade for case in cases}

    def spread(skew: str) -> float:
        """Standard deviation of the clients' share of HGG, over ten seeds."""
        shares = []
        for seed in range(10):
            partition = partition_patients(cases, num_clients=5, alpha=2.0, skew=skew, seed=seed)
            assert partition.repairs == ()
            shares += [
                Counter(grade[name] for name in patients)["HGG"] / len(patients)
                for patients in partition.patients
            ]
        return float(np.std(shares))

    assert spread("grade") > 2 * spread("quantity")


def test_repairs_take_patients_of_any_grade_unless_skew_is_by_grade():
    cases = cases_of([1] * 335, ["HGG"] * 259 + ["LGG"] * 76)
    grade = {case.patient_id: case.grade for case in cases}
    moved: Counter[str] = Counter()
    for seed in range(20):
        partition = partition_patients(cases, num_clients=10, alpha=0.5, min_cases=5, seed=seed)
        moved.update(grade[move.patient_id] for move in partition.repairs)
    assert moved.total() > 100
    assert moved["LGG"] / moved.total() < 0.4  # 0.23 of all patients


def test_skew_by_site_draws_once_for_each_site():
    sites = ["CBICA"] * 20 + ["2013"] * 10 + ["TMC"] * 5
    partition = partition_patients(
        cases_of([1] * 35, sites=sites), num_clients=3, alpha=1.0, skew="site", seed=0
    )
    assert set(partition.q) == {"CBICA", "2013", "TMC"}
    assert len(set(partition.q.values())) == 3
    assert len(dealt(partition)) == 35


def test_the_partition_depends_on_the_seed_and_not_on_the_order_of_cases():
    cases = cases_of([2] * 30)
    first = partition_patients(cases, num_clients=4, alpha=1.0, seed=5)
    assert partition_patients(cases[::-1], num_clients=4, alpha=1.0, seed=5) == first
    assert partition_patients(cases, num_clients=4, alpha=1.0, seed=6) != first


def test_a_small_alpha_makes_clients_less_equal():
    def largest(alpha: float) -> float:
        partitions = [
            partition_patients(cases_of([1] * 300), num_clients=10, alpha=alpha, seed=seed)
            for seed in range(10)
        ]
        return float(np.mean([max(len(client) for client in p.patients) for p in partitions]))

    assert largest(0.1) > 100
    assert 30 < largest(100.0) < 40


def test_more_clients_than_patients_is_refused_with_both_numbers():
    with pytest.raises(
        InputError, match=r"--clients 4 is more than the 3 training patients.*at most 3"
    ):
        partition_patients(cases_of([2, 2, 2]), num_clients=4, alpha=1.0)


def test_too_few_cases_are_refused_with_both_numbers():
    with pytest.raises(InputError, match="--min-cases 4 needs 12 training cases, there are 11"):
        partition_patients(cases_of([1] * 11), num_clients=3, alpha=1.0, min_cases=4)


def test_cases_that_do_not_divide_are_refused_with_numbers():
    # Two patients of 3 cases, three clients cannot have 2 each: nobody is shared.
    with pytest.raises(InputError, match="--min-cases 2 cannot be met for 3 clients"):
        partition_patients(cases_of([3, 3, 1]), num_clients=3, alpha=1.0, min_cases=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_clients": 0}, "--clients 0"),
        ({"alpha": 0.0}, r"--alpha 0\.0"),
        ({"alpha": float("inf")}, "--alpha inf"),
        ({"alpha": float("nan")}, "--alpha nan"),
        ({"min_cases": -1}, "--min-cases -1"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        partition_patients(cases_of([1] * 9), **{"num_clients": 3, "alpha": 1.0, **options})


def test_with_no_least_number_clients_may_stay_empty():
    partition = partition_patients(cases_of([1, 1]), num_clients=5, alpha=1.0, min_cases=0)
    assert len(partition.patients) == 5
    assert len(dealt(partition)) == 2


@given(
    num_patients=st.integers(1, 60),
    options=st.fixed_dictionaries(
        {
            "num_clients": st.integers(1, 25),
            "alpha": st.floats(0.001, 1000.0),
            "min_cases": st.integers(0, 4),
            "skew": st.sampled_from(["quantity", "grade", "site"]),
            "seed": st.integers(0, 2**32 - 1),
        }
    ),
)
@settings(deadline=None, max_examples=200)
def test_everybody_is_on_one_client_and_every_client_has_its_least(num_patients, options):
    grades = ["HGG" if n % 4 else "LGG" for n in range(num_patients)]
    sites = [f"S{n % 7}" for n in range(num_patients)]
    cases = cases_of([1] * num_patients, grades, sites)
    if options["num_clients"] * options["min_cases"] > num_patients:
        with pytest.raises(InputError):
            partition_patients(cases, **options)
        return
    partition = partition_patients(cases, **options)
    assert dealt(partition) == sorted({case.patient_id for case in cases})
    assert len(partition.patients) == options["num_clients"]
    assert min(len(patients) for patients in partition.patients) >= options["min_cases"]


@given(st.lists(st.integers(1, 3), min_size=1, max_size=30), st.integers(1, 10), st.integers(0, 99))
@settings(deadline=None)
def test_patients_with_several_cases_are_never_torn_apart(sizes, num_clients, seed):
    cases = cases_of(sizes)
    try:
        partition = partition_patients(cases, num_clients=num_clients, alpha=1.0, seed=seed)
    except InputError:
        return
    assert dealt(partition) == sorted({case.patient_id for case in cases})


@example([3, 1, 1], 0)
@given(st.lists(st.integers(1, 3), min_size=3, max_size=30), st.integers(0, 99))
@settings(deadline=None)
def test_as_many_patients_as_clients_are_enough_for_a_case_each(sizes, seed):
    partition = partition_patients(cases_of(sizes), num_clients=3, alpha=0.5, seed=seed)
    assert all(partition.patients)


def test_an_alpha_for_which_the_draw_overflows_is_refused():
    with pytest.raises(InputError, match="--alpha 1e"):
        partition_patients(cases_of([1] * 30), num_clients=5, alpha=1e308)
    partition = partition_patients(cases_of([1] * 30), num_clients=5, alpha=1e6)
    assert len(dealt(partition)) == 30
