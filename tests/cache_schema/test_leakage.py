"""The sentence that goes wherever scores go."""

from cache_schema.leakage import SiteLeakage, describe_data, describe_leakage
from cache_schema.manifest import CohortLeakage, LeakageRecord

LEAKAGE = LeakageRecord(
    protocol="paper",
    cohorts={
        "brats2018": CohortLeakage(test_patients=1, also_in_training=1),
        "brats2020": CohortLeakage(test_patients=2, also_in_training=1),
    },
    test_patients=3,
    also_in_training=2,
)
LEAK = "protocol paper: 2 of 3 test patients were also trained on"


def test_the_leak_is_said_in_a_line():
    assert describe_leakage(LEAKAGE) == LEAK
    assert describe_leakage(LEAKAGE, "brats2019") == LEAK
    assert describe_leakage(LEAKAGE, "brats2020").endswith(", 1 of 2 of brats2020")


def test_what_one_hospital_knows_of_its_test_patients_is_not_taken_for_all():
    leakage = SiteLeakage(**dict(LEAKAGE))
    end = "; whether other hospitals trained on them is not known"
    assert describe_leakage(leakage) == f"{LEAK} by this hospital{end}"
    assert describe_leakage(leakage, "brats2020") == (
        f"{LEAK} by this hospital, 1 of 2 of brats2020{end}"
    )


def test_synthetic_data_are_called_so_before_the_leak():
    line = describe_data(LEAKAGE, "brats2020", is_synthetic=True)
    assert (
        line
        == f"synthetic data: scans of nobody, made by prep phantom; {LEAK}, 1 of 2 of brats2020"
    )
    for unknown_or_real in (None, False):
        assert describe_data(LEAKAGE, is_synthetic=unknown_or_real) == LEAK
