"""What a run's result may depend on besides its settings, kept with the run."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from cache_schema.errors import InputError
from cache_schema.manifest import Manifest, digest

PROVENANCE_NAME: Final = "provenance.json"


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
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{run} is not a run: {path.name} cannot be read ({error})") from error
    return document


def _write(run: Path, **identity: Any) -> None:  # noqa: ANN401 - any JSON
    document = {
        **identity,
        "packages": {name: version(name) for name in ("numpy", "torch", "torchvision")},
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    (run / PROVENANCE_NAME).write_text(text, encoding="utf-8")


def require_same_cache(run: Path, cache: Path, manifest: Manifest) -> None:
    """Make sure that a run was trained on this very cache.

    Only then does the manifest's leak count say whether its test patients were trained on.

    Raises:
        InputError: If the run was trained on another partition, or does not say on which.
    """
    document = read_provenance(run)
    if digest(manifest) not in {document["manifest"], *document.get("sites", {}).values()}:
        raise InputError(
            f"{run} was trained on another cache than {cache}, whose test patients it may have seen; "
            "give the cache that it was trained on with --cache"
        )
