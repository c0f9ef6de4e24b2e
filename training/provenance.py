"""What a run's result may depend on besides its settings, kept with the run."""

import json
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from cache_schema.documents import digest_of, places_of, read_object
from cache_schema.errors import InputError
from cache_schema.files import write_atomically
from cache_schema.leakage import SiteLeakage
from cache_schema.manifest import LeakageRecord, Manifest, digest
from cache_schema.preprocessing import PreprocessingRecord

PROVENANCE_NAME: Final = "provenance.json"
PREPROCESSING_NAME: Final = "preprocessing.json"
DIGEST_KEY: Final = "digest"
"""Of `preprocessing.json`: that of the rest."""


class _Provenance(BaseModel):
    """What is read of the document; it may say more."""

    model_config = ConfigDict(strict=True)

    manifest: str | None
    device: str = ""
    name: str = ""
    packages: dict[str, str] = {}
    platform: str = ""
    python: str = ""
    sites: dict[str, str] = {}


def write_provenance(run: Path, manifest: Manifest, *, device: str) -> None:
    """Save the identity of the cache, the software and the device of a run."""
    _write(
        run,
        device=device,
        leakage=manifest.leakage.model_dump(),
        manifest=digest(manifest),
    )


def write_remote_provenance(run: Path, *, name: str, sites: Mapping[int, str]) -> None:
    """Save the identity of a run whose clients train at their own places.

    Args:
        run: Folder of the run.
        name: What the clients know it by.
        sites: Digest of each client's manifest. If it is the same for all, they hold parts of one
            cache; else each has its own, and nobody knows of patients that two of them share.
    """
    digests = set(sites.values())
    _write(
        run,
        device="each client's own",
        manifest=digests.pop() if len(digests) == 1 else None,
        name=name,
        sites={str(client): digest for client, digest in sites.items()},
    )


def read_provenance(run: Path) -> dict[str, Any]:
    """Read what a run's result depends on.

    Raises:
        InputError: If the folder is no run.
    """
    path = run / PROVENANCE_NAME
    if not path.exists():
        raise InputError(
            f"{run} is not a run: {PROVENANCE_NAME} cannot be read (No such file or directory); give the "
            "folder that `train fed --run` wrote"
        )
    advice = "bring the file back, or train again"
    document = read_object(path, advice)
    try:
        _Provenance.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{path} is damaged: {places_of(error)}; {advice}") from error
    return document


def write_preprocessing(run: Path, record: PreprocessingRecord) -> None:
    """Save how the slices of a run were made, so that its model can be used without the cache."""
    document = record.model_dump(mode="json")
    sealed = {**document, DIGEST_KEY: digest_of(document)}
    text = json.dumps(sealed, indent=1, sort_keys=True) + "\n"
    write_atomically(run / PREPROCESSING_NAME, text)


def read_preprocessing(run: Path) -> PreprocessingRecord:
    """Read how the slices of a run were made.

    Raises:
        InputError: If the run does not say so, or not as this release does.
    """
    path = run / PREPROCESSING_NAME
    if not path.exists():
        raise InputError(
            f"{run} has no {PREPROCESSING_NAME}, which tells how to prepare a case: an earlier release "
            "began it; the command that trained it, with --resume, adds the file"
        )
    advice = "add it again with --resume"
    document = read_object(path, advice)
    written = document.pop(DIGEST_KEY, None)  # earlier releases wrote none
    if written is not None and written != digest_of(document):
        raise InputError(f"{path} cannot be read (it has changed since it was written); {advice}")
    try:
        return PreprocessingRecord.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise InputError(f"{path} cannot be read ({places_of(error)}); {advice}") from error


def _write(run: Path, **identity: Any) -> None:  # noqa: ANN401 - any JSON
    document = {
        **identity,
        "packages": {name: version(name) for name in ("numpy", "torch", "torchvision")},
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    write_atomically(run / PROVENANCE_NAME, text)


def require_same_cache(run: Path, cache: Path, manifest: Manifest) -> None:
    """Make sure that a run was trained on this very cache, or that one of its hospitals was.

    Only then does the manifest's leak count say whether its test patients were trained on. For a hospital's
    own cache it says that of this hospital alone: see `known_leakage`.

    Raises:
        InputError: If the run was trained on another partition, or does not say on which.
    """
    document = read_provenance(run)
    if digest(manifest) not in {document["manifest"], *document.get("sites", {}).values()}:
        raise InputError(
            f"{run} was trained on another cache than {cache}, whose test patients it may have seen; "
            "give the cache that it was trained on with --cache"
        )


def known_leakage(provenance: Mapping[str, Any], manifest: Manifest) -> LeakageRecord:
    """Take a manifest's leak count for what it is worth for a run.

    Args:
        provenance: Of the run, from `read_provenance`.
        manifest: Of the cache that it was trained on, or of one of its hospitals.

    Returns:
        The count; a `SiteLeakage` if other hospitals trained on patients of whom nobody here knows.
    """
    if provenance["manifest"] is not None:
        return manifest.leakage
    return SiteLeakage(**dict(manifest.leakage))


def least_known(records: Iterable[LeakageRecord]) -> LeakageRecord:
    """Take the leak count of several runs on one cache, as what is true of all of them."""
    first, *others = records
    return next((each for each in (first, *others) if isinstance(each, SiteLeakage)), first)
