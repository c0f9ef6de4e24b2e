"""The manifest: what a cache holds, how it came to be, and who may see what.

Written last, so that its presence means that the cache is complete. The same input gives the same
bytes: keys are sorted, and there is no clock, host name or absolute path in it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, ValidationError

from cache_schema.errors import InputError
from cache_schema.files import write_atomically
from cache_schema.layout import MANIFEST_NAME, is_shard_path
from cache_schema.names import MOST_CHARACTERS, Name, Site
from cache_schema.reading import read_text
from cache_schema.vocabulary import COHORTS, MODALITIES, Cohort, Grade, Modality, Split

SCHEMA_VERSION: Final = 2
"""What is written. Version 1, which does not say whether cases are synthetic, is still read."""

READABLE_VERSIONS: Final = (1, SCHEMA_VERSION)

MOST_PROBLEMS: Final = 50
MOST_TOLD: Final = 1000
"""Problems of a manifest that a message names, and characters of each."""

Count = Annotated[int, Ge(0)]


class Document(BaseModel):
    """A frozen part of the manifest that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Options(Document):
    """The options of `prep partition` that decide what a cache holds.

    Attributes:
        clients: Number of clients.
        alpha: Concentration of the Dirichlet distribution.
        seed: Of the split and the partition.
        test_fraction: Share of each cohort that becomes its test set.
        protocol: `patient` draws patients, `paper` draws each cohort's cases independently.
        skew: What differs between clients: sizes, or also the mix of grades or sites.
        min_cases: Least number of training cases of a client.
        missing: `zero` stores zeros for an absent modality, `quarantine` leaves its case out.
        bias_correct: Whether N4 ran before the normalisation.
        normalize: How intensities are scaled.
        geometry: `brats` refuses anything but 240 x 240 x 155 at 1 mm.
        shard_cases: Most cases in one shard.
        duplicates: `latest` trains on each patient's cases of their latest cohort alone.
    """

    clients: Annotated[int, Ge(1)]
    alpha: float
    seed: Count
    test_fraction: float
    protocol: Literal["patient", "paper"]
    skew: Literal["quantity", "grade", "site"]
    min_cases: Count
    missing: Literal["refuse", "zero", "quarantine"]
    bias_correct: bool
    normalize: Literal["zscore", "percentile"]
    geometry: Literal["brats", "any"]
    shard_cases: Annotated[int, Ge(1)]
    duplicates: Literal["keep", "latest"]


class LabelVoxels(Document):
    """Number of voxels of each label."""

    NEC: Count
    ED: Count
    ET: Count


class CohortRecord(Document):
    """Size of a cohort: all of it, and its test set."""

    cases: Count
    patients: Count
    test_cases: Count


class CaseRecord(Document):
    """One stored case.

    Attributes:
        case_id: Name of the scan session.
        patient_id: Name of the person, equal across cohorts.
        cohort: Archive that the case comes from.
        grade: Tumour grade, from the folder or a name mapping.
        site: Acquisition site, from the id or a name mapping.
        split: `train` or `test`.
        client: Owner of a training case, None for a test case.
        shard: Path of its shard, relative to the cache.
        key: SHA-256 over the bytes of the case's source files.
        num_slices: Slices kept.
        label_voxels: Voxels of each label in the source volume.
        present: Modalities that the source has, in the order of `vocabulary.MODALITIES`.
        findings: What is unusual about the case, one sentence each.
        attributes: Columns of `survival*.csv`, as text.
        synthetic: Whether `prep phantom` made it; None in version 1, which does not say.
    """

    case_id: Name
    patient_id: Name
    cohort: Cohort
    grade: Grade
    site: Site
    split: Split
    client: Count | None
    shard: str
    key: str
    num_slices: Count
    label_voxels: LabelVoxels
    present: tuple[bool, bool, bool, bool]
    findings: tuple[str, ...]
    attributes: dict[str, str]
    synthetic: bool | None = None


class ShardRecord(Document):
    """One shard file: path relative to the cache, slices, size in bytes, SHA-256 of its bytes."""

    path: str
    rows: Count
    bytes: Count
    sha256: str


class Move(Document):
    """A patient moved between clients so that every client has its least number of cases."""

    patient_id: Name
    source: Count
    target: Count


class ClientRecord(Document):
    """What one client got: numbers, and the mix of grades, sites and label volumes."""

    client: Count
    patients: Count
    cases: Count
    slices: Count
    grades: dict[str, int]
    sites: dict[Site, int]
    label_voxels: LabelVoxels


class PartitionRecord(Document):
    """How training patients were dealt to clients.

    Attributes:
        q: Proportions drawn from the Dirichlet distribution, for each category of the skew.
        sizes: Patients of each client.
        repairs: Moves made after the draw.
        clients: What each client got in the end: the achieved skew.
        duplicates: Training patients with more than one case, and those cases.
    """

    q: dict[str, tuple[float, ...]]
    sizes: tuple[int, ...]
    repairs: tuple[Move, ...]
    clients: tuple[ClientRecord, ...]
    duplicates: dict[Name, tuple[Name, ...]]


class CohortLeakage(Document):
    """Test patients of a cohort, and how many of them are also seen in training."""

    test_patients: Count
    also_in_training: Count


class LeakageRecord(Document):
    """How many test patients are also trained on; all zero with the `patient` protocol."""

    protocol: Literal["patient", "paper"]
    cohorts: dict[Cohort, CohortLeakage]
    test_patients: Count
    also_in_training: Count


class Repair(Document):
    """A known fault of an archive that was mended while reading: case and what was done."""

    case_id: Name
    action: str


class Superseded(Document):
    """A training case left out in favour of the same patient's latest cohort."""

    case_id: Name
    cohort: Cohort
    patient_id: Name


class Quarantined(Document):
    """A case that is not in the cache, and why; its key, as far as its files could be read."""

    case_id: Name
    cohort: Cohort
    reason: str
    key: str | None


class Manifest(Document):
    """Everything about a cache that is not voxels. The fields are described in docs/format.md."""

    schema_version: Literal[1, 2]
    label_convention: Literal["brats2018-2020"]
    modalities: tuple[Modality, ...]
    fingerprint: str
    plane: tuple[int, int]
    options: Options
    cohorts: dict[Cohort, CohortRecord]
    cases: tuple[CaseRecord, ...]
    shards: tuple[ShardRecord, ...]
    partition: PartitionRecord
    leakage: LeakageRecord
    repairs: tuple[Repair, ...]
    quarantined: tuple[Quarantined, ...]
    superseded: tuple[Superseded, ...]
    synthetic: bool | None = None

    def client_shards(self, client: int) -> tuple[str, ...]:
        """Return the paths of one client's training shards, in order.

        Raises:
            InputError: If the cache has no such client.
        """
        if not 0 <= client < self.options.clients:
            raise InputError(
                f"client {client} is not among this cache's {self.options.clients} clients"
            )
        return tuple(sorted({case.shard for case in self.cases if case.client == client}))

    def test_shards(self, cohort: Cohort) -> tuple[str, ...]:
        """Return the paths of a cohort's test shards, in order."""
        return tuple(
            sorted({c.shard for c in self.cases if c.split == "test" and c.cohort == cohort})
        )


def to_json(manifest: Manifest) -> str:
    """Write a manifest as JSON text; equal manifests give equal text.

    One of version 1 gives the text that it was read from: runs know caches by its digest.
    """
    later: Any = {"synthetic": True, "cases": {"__all__": {"synthetic"}}}
    exclude = later if manifest.schema_version == 1 else None
    document = manifest.model_dump(mode="json", exclude=exclude)
    return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def digest(manifest: Manifest) -> str:
    """Return the SHA-256 of a manifest's JSON text: the identity of a cache."""
    return hashlib.sha256(to_json(manifest).encode()).hexdigest()


def write_manifest(cache: Path, manifest: Manifest) -> None:
    """Check a manifest and put it into a cache in one step, as the last file of a preparation.

    Raises:
        InputError: If the manifest contradicts itself or cannot be written; what was there before is
            still there.
    """
    problems = list(contradictions(manifest))
    if manifest.schema_version != SCHEMA_VERSION:
        problems.append(f"schema_version: {manifest.schema_version} is not written any more")
    _refuse(cache / MANIFEST_NAME, problems)
    write_atomically(
        cache / MANIFEST_NAME,
        to_json(manifest),
        advice="make room and run the same command again; finished shards are kept",
    )


def read_manifest(cache: Path) -> Manifest:
    """Read and check the manifest of a cache.

    Raises:
        InputError: If there is none or it cannot be read, its schema version is another one, or it has
            problems; all of them are reported at once, each with its place.
    """
    path = cache / MANIFEST_NAME
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise InputError(
            f"{cache} has no {MANIFEST_NAME}: it is not a finished cache; run `prep partition` with "
            f"`--cache {cache}` (again, if it was interrupted)"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text ({error.reason}); prepare the cache again"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); make it readable") from error
    _check_version(path, text)
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        _refuse(path, [f"{_place(problem['loc'])}: {problem['msg']}" for problem in error.errors()])
        raise
    _refuse(path, list(contradictions(manifest)))
    return manifest


def _check_version(path: Path, text: str) -> None:
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError) as error:  # a number or a nesting may be beyond all measure
        raise InputError(f"{path} is not JSON ({error}); prepare the cache again") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version not in READABLE_VERSIONS:
        known, found = (
            " and ".join(map(str, READABLE_VERSIONS)),
            _cut(str(version), MOST_CHARACTERS),
        )
        raise InputError(
            f"{path} has schema version {found}, this release reads version {known}; "
            "install the release that wrote it or prepare the cache again"
        )


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(_cut(str(part), MOST_CHARACTERS) for part in location) or "document"


def _refuse(path: Path, problems: list[str]) -> None:
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        named = [_cut(problem, MOST_TOLD) for problem in problems[:MOST_PROBLEMS]]
        rest = ["..."] if len(problems) > len(named) else []
        raise InputError(f"{path} has {count}: {'; '.join([*named, *rest])}")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def contradictions(manifest: Manifest) -> Iterator[str]:
    """Yield every way in which the parts of a manifest disagree with one another."""
    if manifest.modalities != MODALITIES:
        yield f"modalities: {manifest.modalities} instead of {MODALITIES}"
    yield from _case_contradictions(manifest)
    yield from _shard_contradictions(manifest)
    yield from _count_contradictions(manifest)
    yield from _leak_contradictions(manifest)
    yield from _partition_contradictions(manifest)
    yield from _absence_contradictions(manifest)
    yield from _synthetic_contradictions(manifest)


def _case_contradictions(manifest: Manifest) -> Iterator[str]:
    repeated = [name for name, n in Counter(c.case_id for c in manifest.cases).items() if n > 1]
    yield from (f"cases: {name} is listed more than once" for name in repeated)
    for case in manifest.cases:
        if (case.split == "test") != (case.client is None):
            yield f"cases: {case.case_id} is in split {case.split} with client {case.client}"
        if case.client is not None and case.client >= manifest.options.clients:
            yield f"cases: {case.case_id} belongs to client {case.client} of {manifest.options.clients}"
    if len(manifest.partition.clients) != manifest.options.clients:
        yield f"partition: {len(manifest.partition.clients)} clients, options say {manifest.options.clients}"


def _shard_contradictions(manifest: Manifest) -> Iterator[str]:
    rows: Counter[str] = Counter()
    owners: dict[str, set[tuple[str, int | None]]] = {}
    for case in manifest.cases:
        rows[case.shard] += case.num_slices
        owners.setdefault(case.shard, set()).add((case.split, case.client))
    listed = Counter(shard.path for shard in manifest.shards)
    yield from (f"shards: {path} is listed {n} times" for path, n in listed.items() if n > 1)
    yield from (
        f"shards: not where shards lie inside the cache: {path}"
        for path in listed
        if not is_shard_path(path)
    )
    yield from (f"shards: {path} is not listed" for path in sorted(rows.keys() - listed.keys()))
    for shard in manifest.shards:
        if shard.rows != rows[shard.path]:
            yield f"shards: {shard.path} has {shard.rows} rows, its cases have {rows[shard.path]}"
        if len(owners.get(shard.path, ())) > 1:
            yield f"shards: {shard.path} mixes clients or splits"


def _count_contradictions(manifest: Manifest) -> Iterator[str]:
    counted = count_cohorts(manifest.cases)
    for cohort in sorted(counted.keys() | manifest.cohorts.keys()):
        recorded, found = manifest.cohorts.get(cohort), counted.get(cohort)
        if recorded != found:
            yield f"cohorts: {cohort} is recorded as {recorded}, the cases show {found}"


def _leak_contradictions(manifest: Manifest) -> Iterator[str]:
    clients: dict[str, set[int]] = {}
    for case in manifest.cases:
        if case.client is not None:
            clients.setdefault(case.patient_id, set()).add(case.client)
    split = sorted(patient for patient, owners in clients.items() if len(owners) > 1)
    yield from (f"cases: patient {patient} is on more than one client" for patient in split)
    found = count_leakage(manifest.cases, manifest.options.protocol)
    yield from _differences("leakage", manifest.leakage, found)
    if found.also_in_training and manifest.options.protocol == "patient":
        yield f"leakage: {found.also_in_training} test patients are in training under protocol patient"


def _differences(place: str, recorded: Document, found: Document) -> Iterator[str]:
    for field, shown in found:
        said = getattr(recorded, field)
        if said != shown:
            yield f"{place}: {field} {said} recorded, the cases show {shown}"


def _partition_contradictions(manifest: Manifest) -> Iterator[str]:
    """Recount what the manifest says of the partition, as far as its cases tell."""
    recorded = manifest.partition
    for place, client in enumerate(recorded.clients):
        found = count_client(place, manifest.cases)
        yield from _differences(f"partition.clients.{place}", client, found)
    duplicates = find_duplicates(manifest.cases)
    for patient in sorted(duplicates.keys() | recorded.duplicates.keys()):
        said, shown = recorded.duplicates.get(patient), duplicates.get(patient)
        if said != shown:
            yield f"partition.duplicates: {said} of {patient} recorded, the cases show {shown}"
    yield from _deal_contradictions(manifest)


def _deal_contradictions(manifest: Manifest) -> Iterator[str]:
    """Hold against the clients what was drawn and dealt; some dealt patients may be in quarantine."""
    recorded, number = manifest.partition, manifest.options.clients
    for name, shares in (("sizes", recorded.sizes), *recorded.q.items()):
        if len(shares) != number:
            yield f"partition: {name} of {len(shares)} clients, options say {number}"
    for size, client in zip(recorded.sizes, recorded.clients, strict=False):
        if size < client.patients:
            yield f"partition: client {client.client} was dealt {size} patients and has {client.patients}"
    missing = sum(recorded.sizes) - sum(client.patients for client in recorded.clients)
    if missing > len(manifest.quarantined):
        yield (
            f"partition: {missing} dealt patients are not here, {len(manifest.quarantined)} cases are "
            "in quarantine"
        )
    for move in recorded.repairs:
        if max(move.source, move.target) >= number:
            yield f"partition: {move.patient_id} was moved from {move.source} to {move.target}"


def _absence_contradictions(manifest: Manifest) -> Iterator[str]:
    """A case that is said to be left out is not here."""
    here = {case.case_id for case in manifest.cases}
    for field, left_out in (
        ("quarantined", manifest.quarantined),
        ("superseded", manifest.superseded),
    ):
        for entry in left_out:
            if entry.case_id in here:
                yield f"{field}: {entry.case_id} is among the cases"


def _synthetic_contradictions(manifest: Manifest) -> Iterator[str]:
    version, said = manifest.schema_version, [case.synthetic for case in manifest.cases]
    if version == 1:
        if any(each is not None for each in (manifest.synthetic, *said)):
            yield "synthetic: version 1 has no such field"
        return
    silent = [case.case_id for case in manifest.cases if case.synthetic is None]
    yield from (f"cases: {name} does not say whether it is synthetic" for name in silent)
    if manifest.synthetic is None:
        yield "synthetic: neither true nor false"
    elif not silent and manifest.synthetic != any(said):
        yield f"synthetic: {manifest.synthetic} recorded, {sum(map(bool, said))} cases are"


def count_cohorts(cases: tuple[CaseRecord, ...]) -> dict[Cohort, CohortRecord]:
    """Count cases, patients and test cases of every cohort that has a case."""
    records: dict[Cohort, CohortRecord] = {}
    for cohort in COHORTS:
        own = [case for case in cases if case.cohort == cohort]
        if own:
            records[cohort] = CohortRecord(
                cases=len(own),
                patients=len({case.patient_id for case in own}),
                test_cases=sum(case.split == "test" for case in own),
            )
    return records


def count_client(client: int, cases: Iterable[CaseRecord]) -> ClientRecord:
    """Count what one client has got: patients, cases, slices, and the mix of grades, sites and labels."""
    own = [case for case in cases if case.client == client]
    labels = [case.label_voxels for case in own]
    return ClientRecord(
        client=client,
        patients=len({case.patient_id for case in own}),
        cases=len(own),
        slices=sum(case.num_slices for case in own),
        grades=dict(Counter(case.grade for case in own)),
        sites=dict(Counter(case.site for case in own)),
        label_voxels=LabelVoxels(
            NEC=sum(each.NEC for each in labels),
            ED=sum(each.ED for each in labels),
            ET=sum(each.ET for each in labels),
        ),
    )


def find_duplicates(cases: Iterable[CaseRecord]) -> dict[str, tuple[str, ...]]:
    """List the training patients with several cases, and those cases in their order."""
    owned: dict[str, list[str]] = {}
    for case in cases:
        if case.split == "train":
            owned.setdefault(case.patient_id, []).append(case.case_id)
    return {patient: tuple(names) for patient, names in owned.items() if len(names) > 1}


def count_leakage(
    cases: tuple[CaseRecord, ...], protocol: Literal["patient", "paper"]
) -> LeakageRecord:
    """Count the test patients, and those of them who are also trained on, in all and by cohort."""
    trained = {case.patient_id for case in cases if case.split == "train"}
    tested = {
        cohort: {c.patient_id for c in cases if c.split == "test" and c.cohort == cohort}
        for cohort in COHORTS
    }
    everyone = set().union(*tested.values())
    return LeakageRecord(
        protocol=protocol,
        cohorts={
            cohort: CohortLeakage(
                test_patients=len(patients), also_in_training=len(patients & trained)
            )
            for cohort, patients in tested.items()
            if patients
        },
        test_patients=len(everyone),
        also_in_training=len(everyone & trained),
    )
