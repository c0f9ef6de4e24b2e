"""Cases to patients: the same person appears in several years under several names.

All 285 patients of BraTS 2018 are among the 335 of 2019, and 2020 is 2019 plus 34 more. Whoever
splits cases instead of patients trains on his test set.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Final

from cache_schema.vocabulary import MODALITIES, UNKNOWN, Grade
from pipeline.cohorts import Case, Inventory, canonical_case_id
from pipeline.tables import read_name_mapping

_YEAR_PREFIX: Final = re.compile(r"brats1[789]_", re.IGNORECASE)

VoxelDigest = Callable[[Case, str], str | None]
"""Identity of the voxels of a case in a modality, or None where they tell nothing."""


def identify(inventory: Inventory, *, voxel_digest: VoxelDigest | None = None) -> tuple[Case, ...]:
    """Tell for every case the patient, the grade and the site.

    Cases are of one patient if a name mapping or a TCGA id says so, or if their 2018 and 2019 ids
    differ in the year alone (`Brats18_CBICA_AAB_1`, `BraTS19_CBICA_AAB_1`). Where names leave it
    open, as they do for 2020 without its mapping, equal voxels tell.

    Args:
        inventory: Cases and name mappings.
        voxel_digest: Identity of the voxels of a case in a modality. It is asked only for patients
            who may be one and the same, those without a cohort in common, from several threads at
            once. Without it names decide alone.

    Returns:
        The cases in their order, with patient, grade and site filled in. A patient's id is the
        2018 or 2019 id without its year where there is one, so it does not depend on which years
        are at hand.
    """
    rows = [row for path in inventory.name_mappings for row in read_name_mapping(path, _name)]
    known = [*(row.names for row in rows), *((_name(case.case_id),) for case in inventory.cases)]
    patients = _join(known)
    if voxel_digest is not None:
        patients = _join([*known, *_equal_voxels(inventory.cases, patients, voxel_digest)])
    grades = {name: row.grade for row in rows for name in row.names if row.grade != UNKNOWN}
    return tuple(_described(case, patients, grades) for case in inventory.cases)


def _equal_voxels(
    cases: Sequence[Case], patients: Mapping[str, str], voxel_digest: VoxelDigest
) -> list[list[str]]:
    """Group the names of patients who hold the same voxels in some modality.

    One modality settles it, unless a patient has no file of it that tells anything; then those not
    yet joined are compared by the next.
    """
    doubtful = _in_doubt(cases, patients)
    groups: list[list[str]] = []
    # Inflating and hashing release the interpreter's lock.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for modality in MODALITIES:
            digests = list(pool.map(partial(_first_digest, modality, voxel_digest), doubtful))
            same: defaultdict[str, list[str]] = defaultdict(list)
            for digest, own in zip(digests, doubtful, strict=True):
                if digest is not None:
                    same[digest].append(_name(own[0].case_id))
            joined = [names for names in same.values() if len(names) > 1]
            groups += joined
            if None not in digests:
                break
            done = {name for names in joined for name in names}
            doubtful = [own for own in doubtful if _name(own[0].case_id) not in done]
    return groups


def _in_doubt(cases: Sequence[Case], patients: Mapping[str, str]) -> list[list[Case]]:
    """List the cases of each patient who has no cohort in common with some other patient."""
    owned: defaultdict[str, list[Case]] = defaultdict(list)
    for case in cases:
        owned[patients[_name(case.case_id)]].append(case)
    mixes = {frozenset(case.cohort for case in own) for own in owned.values()}
    return [
        own
        for own in owned.values()
        if any(mix.isdisjoint(case.cohort for case in own) for mix in mixes)
    ]


def _first_digest(modality: str, voxel_digest: VoxelDigest, own: Sequence[Case]) -> str | None:
    found = (voxel_digest(case, modality) for case in own)
    return next((digest for digest in found if digest is not None), None)


def _described(case: Case, groups: Mapping[str, str], grades: Mapping[str, Grade]) -> Case:
    name = _name(case.case_id)
    patient = groups[name]
    grade = case.grade if case.grade != UNKNOWN else grades.get(name, "unknown")
    return replace(case, patient_id=patient, grade=grade, site=_site(name, patient))


def _name(case_id: str) -> str:
    """Drop the year of a 2017 to 2019 id; numbers of 2020 are names of their own."""
    if _YEAR_PREFIX.match(case_id):
        return _YEAR_PREFIX.sub("", case_id).upper()
    return canonical_case_id(case_id) or case_id


def _site(name: str, patient: str) -> str:
    for candidate in (name, patient):
        if not candidate.startswith(("BraTS20_", "TCGA")):
            return candidate.split("_")[0]
    return UNKNOWN


def _join(groups: Sequence[Sequence[str]]) -> dict[str, str]:
    """Join names that share a group, in any number of steps, under one representative each."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for group in groups:
        for name in group:
            first, second = sorted((find(group[0]), find(name)), key=_preference)
            parent[second] = first
    return {name: find(name) for name in parent}


def _preference(name: str) -> tuple[bool, bool, str]:
    """Order names so that a 2017 to 2019 id comes before a TCGA id and that before a 2020 id."""
    return name.startswith("BraTS20_"), name.startswith("TCGA"), name
