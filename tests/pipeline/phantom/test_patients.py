from collections import Counter

import numpy as np
import pytest

from pipeline.phantom.patients import Patient, draw_patient, map_names, name_cases


def cohort(num_patients: int, seed: int = 0) -> list[Patient]:
    return [draw_patient(np.random.default_rng(seed), index) for index in range(num_patients)]


def test_369_patients_are_285_and_335_and_369_cases_nested_as_in_brats():
    names = name_cases(np.random.default_rng(0), cohort(369))
    assert [len(cases) for cases in names.values()] == [285, 335, 369]
    assert names["brats2018"].keys() < names["brats2019"].keys() < names["brats2020"].keys()


@pytest.mark.parametrize("num_patients", [1, 2, 3, 5, 1000])
def test_no_cohort_is_empty_and_no_name_is_given_twice(num_patients):
    names = name_cases(np.random.default_rng(0), cohort(num_patients))
    for cases in names.values():
        assert 1 <= len(cases) == len(set(cases.values()))


def test_three_quarters_are_high_grade_and_15_percent_do_not_enhance_more_often_low_grade():
    patients = cohort(369)
    assert Counter(p.grade for p in patients)["HGG"] / 369 == pytest.approx(0.77, abs=0.01)
    without = Counter(p.grade for p in patients if not p.has_enhancing)
    assert without.total() / 369 == pytest.approx(0.15, abs=0.01)
    assert without["LGG"] > without["HGG"] > 0


@pytest.mark.parametrize("seed", range(20))
def test_any_dozen_has_both_grades_several_sites_and_somebody_without_et(seed):
    patients = cohort(12, seed)
    assert {p.grade for p in patients} == {"HGG", "LGG"}
    assert len({p.site for p in patients}) >= 4
    assert not all(p.has_enhancing for p in patients)


def test_the_site_that_joined_in_2019_is_not_in_2018():
    names = name_cases(np.random.default_rng(0), cohort(369))
    assert not any("TMC" in name for name in names["brats2018"].values())
    assert any("TMC" in name for name in names["brats2019"].values())


def test_ids_follow_the_style_of_their_site():
    def number(site: str) -> str:
        return Patient(30, "HGG", site, has_enhancing=True).number

    # 30 = 1 * 26 + 4; 101 + 30; 6290 + 37 * 30
    assert [number(s) for s in ("CBICA", "TCIA01", "2013", "TMC")] == ["ABE", "131", "30", "07400"]


def test_a_mapping_row_gives_every_year_and_na_where_there_is_none():
    patient = Patient(4, "LGG", "TCIA10", has_enhancing=False)
    names = {
        "brats2018": {4: "Brats18_TCIA10_105_1"},
        "brats2019": {4: "BraTS19_TCIA10_105_1"},
        "brats2020": {4: "BraTS20_Training_009"},
    }
    assert map_names(patient, names) == {
        "Grade": "LGG",
        "BraTS_2017_subject_ID": "Brats17_TCIA_105_1",
        "BraTS_2018_subject_ID": "Brats18_TCIA10_105_1",
        "TCGA_TCIA_subject_ID": "TCGA-DU-0005",
        "BraTS_2019_subject_ID": "BraTS19_TCIA10_105_1",
        "BraTS_2020_subject_ID": "BraTS20_Training_009",
    }
    late = Patient(0, "HGG", "TMC", has_enhancing=True)
    row = map_names(late, {**names, "brats2020": {0: "BraTS20_Training_001"}})
    assert list(row.values()) == ["HGG", "NA", "NA", "NA", "NA", "BraTS20_Training_001"]
