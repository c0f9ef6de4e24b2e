"""Raw cases to masks, one after another; what looks at the slices is given from outside."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float16, Float32, UInt8

from cache_schema.errors import InputError
from cache_schema.targets import require_writable_file
from cache_schema.vocabulary import MODALITIES
from pipeline.case import Preprocessing
from pipeline.case_folder import SEGMENTATION, give_name
from pipeline.cohorts import Case, canonical_case_id, discover
from pipeline.mask import SUFFIX, write_labels, write_probabilities
from pipeline.quality import CaseError
from pipeline.raw_case import read_raw_case

_log = logging.getLogger(__name__)

MOST_NAMED: Final = 8
"""Of what is not read beside the cases; a whole archive of another year may lie there."""
LABELS_HELD: Final = "labels 0, 1, 2, 4"
ONE_BY_ONE: Final = ", ".join(f"--{name} FILE" for name in MODALITIES)


@dataclass(frozen=True)
class Request:
    """A case to segment.

    Attributes:
        case_id: Which.
        files: Of its modalities, by name.
        out: Where the mask goes.
        unreadable: Why modalities that are there cannot be opened, by name.
    """

    case_id: str
    files: Mapping[str, Path]
    out: Path
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def probabilities(self) -> Path:
        """Where probabilities go: beside the mask."""
        return self.out.with_name(f"{self.out.name.removesuffix(SUFFIX)}_probabilities{SUFFIX}")


Predict = Callable[
    [Float16[np.ndarray, "slice 4 height width"]],
    tuple[
        UInt8[np.ndarray, "slice height width"],
        Float32[np.ndarray, "slice 3 height width"] | None,
    ],
]
"""From slices to their labels and, if they are to be written too, the probabilities behind them."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        case_id: Which.
        written: Files that are there now, and what each holds.
        absent: Modalities that it lacks.
        fault: Why it could not be segmented, or None.
        findings: What is unusual about its scans, one sentence each.
    """

    case_id: str
    written: Mapping[Path, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    fault: str | None = None
    findings: tuple[str, ...] = ()

    def warnings(self, *, is_one_of_many: bool) -> Iterator[str]:
        """Yield what the user should see at once; of a single case the fault comes at the end."""
        if self.absent:
            names = ", ".join(self.absent)
            yield f"{self.case_id} lacks {names}: zeros stand in for it, as --missing zero stores them"
        for finding in self.findings:
            yield f"{self.case_id}: {finding}"
        if self.fault is not None and is_one_of_many:
            yield f"{self.case_id} is left out: {self.fault}"


def plan_requests(
    case: Path | None,
    files: Mapping[str, Path | None],
    out: Path,
    *,
    warn: Callable[[str], None] = _log.warning,
) -> tuple[Request, ...]:
    """Find out what is to be segmented, and where it goes.

    Args:
        case: A case's folder in any layout of BraTS, or a folder that holds such, at any depth.
        files: Instead: modalities one by one; those that are None are absent.
        out: The mask's name, which ends in `.nii.gz`; of several cases the folder of their masks.
        warn: Told of each file or folder beside the cases that looks like one and is not read.

    Raises:
        InputError: If both are given or nothing is, if nothing is found, or if `out` would not do.
    """
    given = {name: path for name, path in files.items() if path is not None}
    if (case is None) == (not given):
        raise InputError(f"give a case's folder, or its files one by one with {ONE_BY_ONE}")
    if case is None:
        name = out.name.removesuffix(SUFFIX)
        return (_checked(Request(name, given, out)),)
    if case.is_file():
        raise InputError(f"{case} is one file; give its case's folder, or {ONE_BY_ONE}")
    case = give_name(case)
    found = _find(case, warn)
    if canonical_case_id(case.name) is not None:
        return tuple(_checked(_request(each, out)) for each in found)
    if out.name.endswith(SUFFIX) or out.is_file():
        raise InputError(
            f"--out {out}: {case} holds {len(found)} case(s) in folders of their own; name a folder "
            "for their masks"
        )
    return tuple(_checked(_request(each, out / f"{each.case_id}{SUFFIX}")) for each in found)


def _request(case: Case, out: Path) -> Request:
    """Ask for a case that was found; whether its segmentation can be read does not matter."""
    unreadable = {name: why for name, why in case.unreadable.items() if name != SEGMENTATION}
    return Request(case.case_id, case.files, out, unreadable)


def _find(folder: Path, warn: Callable[[str], None]) -> tuple[Case, ...]:
    try:
        inventory = discover([folder])
    except InputError as error:
        raise InputError(f"{error}; scans under other names go with {ONE_BY_ONE}") from error
    for each in inventory.overlooked[:MOST_NAMED]:
        warn(f"not read: {each}")
    if len(inventory.overlooked) > MOST_NAMED:
        warn(f"not read: {len(inventory.overlooked) - MOST_NAMED} more; `prep scan` names them")
    return inventory.cases


def _checked(request: Request) -> Request:
    """Refuse a name that is no mask's, that would replace a scan, or that cannot be written."""
    out = request.out
    if not out.name.endswith(SUFFIX) or out.name == SUFFIX or out.is_dir():
        raise InputError(f"--out {out}: give a file name that ends in {SUFFIX}")
    sources = {path.resolve() for path in request.files.values()}
    if sources & {out.resolve(), request.probabilities.resolve()}:
        raise InputError(f"--out {out} is one of the case's own files; choose another name")
    require_writable_file(out, "--out")
    return request


def segment(
    requests: Sequence[Request],
    settings: Preprocessing,
    predict: Predict,
    planes: tuple[str, ...],
) -> Iterator[Outcome]:
    """Segment case after case, one in memory at a time; a bad one does not stop the others.

    Args:
        requests: From `plan_requests`.
        settings: How the network's slices were prepared.
        predict: What the network says.
        planes: What its probabilities are of.

    Yields:
        What became of each case.

    Raises:
        InputError: If a mask cannot be written.
    """
    for request in requests:
        try:
            yield _segment(request, settings, predict, planes)
        except CaseError as error:
            yield Outcome(request.case_id, fault=str(error))


def _segment(
    request: Request, settings: Preprocessing, predict: Predict, planes: tuple[str, ...]
) -> Outcome:
    if request.unreadable:
        name, reason = next(iter(request.unreadable.items()))
        raise CaseError(f"{name} is there but cannot be read: {reason}")
    case = read_raw_case(request.files, settings)
    labels, probability = predict(case.image)
    write_labels(request.out, case, labels)
    held = {request.out: LABELS_HELD}
    if probability is not None:
        write_probabilities(request.probabilities, case, probability, planes)
        held[request.probabilities] = f"probabilities of {', '.join(planes)}"
    return Outcome(request.case_id, held, case.absent, findings=case.findings)


def summarise(outcomes: Sequence[Outcome]) -> str | None:
    """Say in one line what went wrong, or return None if nothing did."""
    faults = {each.case_id: each.fault for each in outcomes if each.fault is not None}
    if not faults:
        return None
    case_id, fault = next(iter(faults.items()))
    if len(outcomes) == 1:
        return f"{case_id}: {fault}"
    return (
        f"{len(faults)} of {len(outcomes)} cases could not be segmented, first {case_id}: {fault}; the "
        "masks of the others are written"
    )
