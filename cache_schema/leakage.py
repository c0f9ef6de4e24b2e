"""What to know of the test patients, in one sentence that goes wherever scores go."""

from typing import Final, Literal

from cache_schema.manifest import LeakageRecord
from cache_schema.vocabulary import Cohort

SYNTHETIC_NOTE: Final = "synthetic data: scans of nobody, made by prep phantom"


class SiteLeakage(LeakageRecord):
    """What one hospital's cache says of its test patients, if each hospital of a run had its own."""

    other_sites: Literal["unknown"] = "unknown"


def describe_leakage(leakage: LeakageRecord, cohort: Cohort | None = None) -> str:
    """Say in a line how many test patients were also trained on.

    Args:
        leakage: Of the cache.
        cohort: Tell also how many of this cohort's test patients.
    """
    is_of_one_site = isinstance(leakage, SiteLeakage)
    line = (
        f"protocol {leakage.protocol}: {leakage.also_in_training} of {leakage.test_patients} test "
        f"patients were also trained on{' by this hospital' if is_of_one_site else ''}"
    )
    if cohort is not None and cohort in leakage.cohorts:
        own = leakage.cohorts[cohort]
        line += f", {own.also_in_training} of {own.test_patients} of {cohort}"
    if is_of_one_site:
        line += "; whether other hospitals trained on them is not known"
    return line


def describe_data(
    leakage: LeakageRecord, cohort: Cohort | None = None, *, is_synthetic: bool | None
) -> str:
    """Say in a line whether the data are synthetic, if so, and then what `describe_leakage` says.

    Args:
        leakage: Of the cache.
        cohort: Tell also how many of this cohort's test patients.
        is_synthetic: Of the cache; None if its manifest does not say.
    """
    line = describe_leakage(leakage, cohort)
    return f"{SYNTHETIC_NOTE}; {line}" if is_synthetic else line
