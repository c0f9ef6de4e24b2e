"""The people of the phantom cohort: who they are, in which archives, under which names."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np

from cache_schema.vocabulary import COHORTS, Cohort, Grade

CaseNames = Mapping[Cohort, Mapping[int, str]]
"""Case ids by cohort and by index of the patient, of those patients who are in the cohort."""

MAPPING_COLUMNS: Final = (
    "Grade",
    "BraTS_2017_subject_ID",
    "BraTS_2018_subject_ID",
    "TCGA_TCIA_subject_ID",
    "BraTS_2019_subject_ID",
    "BraTS_2020_subject_ID",
)
"""Of `name_mapping.csv` in 2020; the file of 2019 lacks the last one."""

NUM_REAL_CASES: Final[dict[Cohort, int]] = {"brats2018": 285, "brats2019": 335, "brats2020": 369}

SITES: Final = ("CBICA", "TCIA01", "TCIA02", "TCIA10", "2013", "TMC")
_LATE_SITE: Final = "TMC"
"""Joined in 2019, so its patients are in 2018 only where nobody else is left."""
_SITE_SHARES: Final[dict[Grade, dict[str, float]]] = {
    "HGG": {"CBICA": 0.46, "TCIA01": 0.2, "TCIA02": 0.16, "2013": 0.1, "TMC": 0.08},
    "LGG": {"TCIA10": 0.65, "2013": 0.25, "TMC": 0.1},
}
"""As in BraTS, most sites gave patients of one grade only."""

_KIND_SHARES: Final[dict[tuple[Grade, bool], float]] = {
    ("HGG", True): 0.72,
    ("HGG", False): 0.05,
    ("LGG", False): 0.10,
    ("LGG", True): 0.13,
}
"""By grade and whether the tumour enhances."""

_TCGA_SOURCES: Final = {"TCIA01": "02", "TCIA02": "06", "TCIA10": "DU"}
"""Tissue source of the patients whom a site has from The Cancer Genome Atlas."""


@dataclass(frozen=True)
class Patient:
    """One person.

    Attributes:
        index: From 0; with the seed and the shape it determines the voxels.
        grade: Of the glioma.
        site: As it stands in the ids of 2018 and 2019.
        has_enhancing: Whether any voxel is enhancing tumour, label 4.
    """

    index: int
    grade: Grade
    site: str
    has_enhancing: bool

    @property
    def number(self) -> str:
        """Id at the site, in its own style: `AAB` of CBICA, `131` of TCIA, `11` of 2013."""
        match self.site:
            case "CBICA":
                return "".join(chr(ord("A") + self.index // 26**k % 26) for k in (2, 1, 0))
            case "TMC":
                return f"{6290 + 37 * self.index:05d}"
            case "2013":
                return str(self.index)
            case _:
                return str(101 + self.index)

    @property
    def tcga_id(self) -> str:
        """Id in The Cancer Genome Atlas, `NA` outside it."""
        source = _TCGA_SOURCES.get(self.site)
        return f"TCGA-{source}-{self.index + 1:04d}" if source else "NA"


def draw_patient(rng: np.random.Generator, index: int) -> Patient:
    """Draw grade, site and kind of tumour of a patient, whoever else is in the cohort.

    Positions advance by irrational steps instead of being drawn one by one, so that any dozen
    patients already have both grades and somebody without ET: twelve golden steps leave no gap in
    [0, 1) wider than 0.146, and 15 % of the patients are without.

    Args:
        rng: Consumed; in the same state for all patients of a cohort.
        index: Of the patient.
    """
    steps = np.array([(math.sqrt(5) - 1) / 2, math.sqrt(2) - 1])
    kind_position, site_position = ((rng.random(2) + index * steps) % 1).tolist()
    grade, has_enhancing = list(_KIND_SHARES)[_locate(_KIND_SHARES.values(), kind_position)]
    sites = _SITE_SHARES[grade]
    return Patient(index, grade, list(sites)[_locate(sites.values(), site_position)], has_enhancing)


def _locate(shares: Iterable[float], position: float) -> int:
    """Find the share into which a position in [0, 1) falls, the shares lying end to end."""
    return sum(end <= position for end in list(accumulate(shares))[:-1])


def name_cases(rng: np.random.Generator, patients: Sequence[Patient]) -> CaseNames:
    """Choose who is in which cohort, and name the cases.

    2018 is a part of 2019 and 2019 of 2020, in the real proportions. The numbers of 2020 are drawn:
    there too they follow no order of the earlier ids.
    """
    num_2018, num_2019, num_2020 = (_scaled_size(len(patients), cohort) for cohort in COHORTS)
    late_site_last = sorted(patients, key=lambda p: (p.site == _LATE_SITE, p.index))
    joined_later = sorted(late_site_last[num_2018:], key=lambda p: p.index)
    in_2018 = late_site_last[:num_2018]
    in_2019 = in_2018 + joined_later[: num_2019 - num_2018]
    numbers = (rng.permutation(num_2020) + 1).tolist()
    return {
        "brats2018": {p.index: f"Brats18_{p.site}_{p.number}_1" for p in in_2018},
        "brats2019": {p.index: f"BraTS19_{p.site}_{p.number}_1" for p in in_2019},
        "brats2020": {
            p.index: f"BraTS20_Training_{n:03d}" for p, n in zip(patients, numbers, strict=True)
        },
    }


def _scaled_size(num_patients: int, cohort: Cohort) -> int:
    return max(1, round(num_patients * NUM_REAL_CASES[cohort] / NUM_REAL_CASES["brats2020"]))


def map_names(patient: Patient, names: CaseNames) -> dict[str, str]:
    """Write down a patient's ids in all years, by `MAPPING_COLUMNS`.

    2017 had the patients of 2018, and one name for all of TCIA.
    """
    in_2018, in_2019, in_2020 = (names[cohort].get(patient.index, "NA") for cohort in COHORTS)
    site_2017 = "TCIA" if patient.site.startswith("TCIA") else patient.site
    in_2017 = "NA" if in_2018 == "NA" else f"Brats17_{site_2017}_{patient.number}_1"
    ids = (patient.grade, in_2017, in_2018, patient.tcga_id, in_2019, in_2020)
    return dict(zip(MAPPING_COLUMNS, ids, strict=True))
