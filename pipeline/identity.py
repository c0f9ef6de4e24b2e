"""Cases to patients: the same person appears in several years under several names.

All 285 patients of BraTS 2018 are among the 335 of 2019, and 2020 is 2019 plus 34 more. Whoever
splits cases instead of patients trains on his test set.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, permutations
from typing import Final

from cache_schema.vocabulary import SYNTHETIC_DESCRIPTION, UNKNOWN, Grade
from pipeline.cohorts import Case, Inventory, canonical_case_id
from pipeline.tables import MappingRow, read_name_mapping
from pipeline.voxel_identity import Scan, find_equal_scans, glance_at

_YEAR_PREFIX: Final = re.compile(r"brats1[789]_", re.IGNORECASE)


def identify(inventory: Inventory) -> tuple[Case, ...]:
    """Tell for every case the patient, the grade and the site.

    Cases are of one patient if a name mapping or a TCGA id says so, if their 2018 and 2019 ids differ
    in the year alone (`Brats18_CBICA_AAB_1`, `BraTS19_CBICA_AAB_1`), or if a scan of one has the
    same voxels as a scan of the other, see `pipeline.voxel_identity`. Voxels overrule names: where
    they contradict a mapping, or are equal within a cohort, the cases are joined, and that is a
    finding of each.

    Args:
        inventory: Cases and name mappings. Of every scan the beginning is read, and the whole only
            where it tells something new.

    Returns:
        The cases in their order, with patient, grade, site and findings filled in. A patient's id is
        the 2018 or 2019 id without its year where there is one, so it does not depend on which years
        are at hand.
    """
    rows = [row for path in inventory.name_mappings for row in read_name_mapping(path, _name)]
    people = _People(rows)
    for case in inventory.cases:
        people.join([_name(case.case_id)])
    findings: defaultdict[str, list[str]] = defaultdict(list)
    glances = glance_at(inventory.cases)
    for scans in find_equal_scans(glances, people.are_known):
        for case_id, finding in _surprises(scans, people):
            findings[case_id].append(finding)
        people.overrule([_name(scan.case.case_id) for scan in scans])
    synthetic = {g.scan.case.case_id for g in glances if g.description == SYNTHETIC_DESCRIPTION}
    grades = {name: row.grade for row in rows for name in row.names if row.grade != UNKNOWN}
    return tuple(
        replace(
            _described(case, people.patient(_name(case.case_id)), grades),
            findings=(*case.findings, *dict.fromkeys(findings[case.case_id])),
            is_synthetic=case.is_synthetic or case.case_id in synthetic,
        )
        for case in inventory.cases
    )


def _surprises(scans: Sequence[Scan], people: "_People") -> Iterator[tuple[str, str]]:
    """Yield cases, and what is odd about a scan of theirs being equal to that of another."""
    for scan, other in permutations(scans, 2):
        own, twin = scan.case, other.case
        what = f"{scan.modality} has the same voxels as"
        if own.case_id == twin.case_id:
            yield own.case_id, f"{what} its {other.modality}"
            continue
        what += f" {other.modality} of {twin.case_id}"
        if own.cohort == twin.cohort:
            yield own.case_id, f"{what}: taken for one patient"
        elif people.are_told_apart(_name(own.case_id), _name(twin.case_id)):
            yield (
                own.case_id,
                f"{what}, which a name mapping takes for another patient: taken for one",
            )


def _described(case: Case, patient: str, grades: Mapping[str, Grade]) -> Case:
    name = _name(case.case_id)
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


class _People:
    """Who is who: names that stand for one person, under one representative each."""

    def __init__(self, rows: Sequence[MappingRow]) -> None:
        """Begin with what name mappings say."""
        self._parent: dict[str, str] = {}
        for row in rows:
            self.join(row.names)
        self._overruled: set[frozenset[str]] = set()
        self._mapped = {name: self.patient(name) for name in self._parent}
        self._kinds: defaultdict[str | None, set[str]] = defaultdict(set)
        for name, person in self._mapped.items():
            self._kinds[person].add(_kind(name))

    def patient(self, name: str) -> str:
        """Return the name that stands for a person."""
        self._parent.setdefault(name, name)
        while self._parent[name] != name:
            self._parent[name] = self._parent[self._parent[name]]
            name = self._parent[name]
        return name

    def join(self, names: Sequence[str]) -> None:
        """Take some names for those of one person."""
        for name in names:
            one, other = self.patient(names[0]), self.patient(name)
            first, second = sorted((one, other), key=_preference)
            self._parent[second] = first

    def overrule(self, names: Sequence[str]) -> None:
        """Take some names for those of one person, whatever name mappings say."""
        self.join(names)
        self._overruled.update(map(frozenset, combinations(names, 2)))

    def are_known(self, scans: Sequence[Scan]) -> bool:
        """Tell whether some scans are known to be of one person, each of a cohort of its own.

        Where a name mapping contradicts that, it is still to be overruled.
        """
        names = [_name(scan.case.case_id) for scan in scans]
        return (
            len({self.patient(name) for name in names}) == 1
            and len({scan.case.cohort for scan in scans}) == len(scans)
            and not any(self.are_told_apart(*pair) for pair in combinations(names, 2))
        )

    def are_told_apart(self, name: str, other: str) -> bool:
        """Tell whether name mappings take two names for those of two people, and are not overruled.

        They do if they name both, or if one of them has another name of the same kind there. What
        follows from voxels does not count: of two names that a mapping exchanged, both are told.
        """
        person, another = self._mapped.get(name), self._mapped.get(other)
        is_one = name == other or (person is not None and person == another)
        if is_one or frozenset((name, other)) in self._overruled:
            return False
        kinds, others = self._kinds[person], self._kinds[another]
        return bool(kinds and others) or _kind(other) in kinds or _kind(name) in others


def _kind(name: str) -> str:
    """Tell names of 2020 from the older ones, which are the same in every year, and from TCGA ids."""
    return next((kind for kind in ("BraTS20_", "TCGA") if name.startswith(kind)), "older")


def _preference(name: str) -> tuple[bool, bool, str]:
    """Order names so that a 2017 to 2019 id comes before a TCGA id and that before a 2020 id."""
    return name.startswith("BraTS20_"), name.startswith("TCGA"), name
