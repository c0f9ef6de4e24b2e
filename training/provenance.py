"""What a run's result may depend on besides its settings, kept with the run."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from cache_schema.errors import InputError
from cache_schema.manifest import Manifest, digest

PROVENANCE_NAME: Final = "provenance.json"


def write_provenance(run: Path, manifest: Manifest, *, device: str) -> None:
    """Save the identity of the cache, the software and the device of a run."""
    document = {
        "device": device,
        "leakage": manifest.leakage.model_dump(),
        "manifest": digest(manifest),
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
    path = run / PROVENANCE_NAME
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{run} is not a run: {path.name} cannot be read ({error})") from error
    if document["manifest"] != digest(manifest):
        raise InputError(
            f"{run} was trained on another cache than {cache}, whose test patients it may have seen; "
            "give the cache that it was trained on with --cache"
        )
