"""What settings of earlier releases lack, and what those releases did without it."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from cache_schema.documents import digest_of

VERSION_KEY: Final = "settings_version"
DIGEST_KEY: Final = "settings_digest"

SETTINGS_VERSION: Final = 2
"""Of `config.json` as this release writes it. Version 1 says neither its version nor its digest."""

ADDED: Final[tuple[Mapping[str, Any], ...]] = (
    {
        "modality_dropout": 0.0,
        "tumour_share": None,
        "precision": "float32",
        "compile": "off",
        "checkpoint_steps": 500,
    },
    {
        "strategy_options": {},
        "fraction": 1.0,
        "dropout_rate": 0.0,
        "byzantine": None,
        "exchange": "fp32",
    },
    {
        "local_steps": None,
        "epoch_schedule": "constant",
        "lr_schedule": "cosine",
        "lr_patience": 20,
    },
    {"model_options": {}, "depth": None},
)
"""Settings that came while version 1 lasted, those of one time together, the oldest first, each with
what was done before it came. A file lacks the last few of these groups as a whole, or it is damaged."""


def seal_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Add the version and the digest to settings, as they are saved."""
    return {VERSION_KEY: SETTINGS_VERSION, DIGEST_KEY: digest_of(settings), **settings}


def open_settings(document: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Give the settings of a saved document, those of an earlier version as this one has them.

    Args:
        document: Of any version.
        names: Of all settings there are now.

    Raises:
        ValueError: If a setting is missing or unknown, the digest differs, or the version is of a later
            release.
    """
    settings = {k: v for k, v in document.items() if k not in {VERSION_KEY, DIGEST_KEY}}
    if VERSION_KEY in document or DIGEST_KEY in document:
        _require_sealed(document, settings)
    else:
        settings = _later_settings(settings) | settings
    missing, unknown = set(names) - settings.keys(), settings.keys() - set(names)
    problems = [
        f"{what} {', '.join(sorted(found))}"
        for what, found in (("it lacks", missing), ("nobody knows", unknown))
        if found
    ]
    if problems:
        raise ValueError(" and ".join(problems))
    return settings


def _require_sealed(document: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    version = document.get(VERSION_KEY)
    if isinstance(version, int) and version > SETTINGS_VERSION:
        raise ValueError(f"version {version} is that of a later release: install it")
    if version != SETTINGS_VERSION or document.get(DIGEST_KEY) != digest_of(settings):
        raise ValueError("it was changed since the run began")


def _later_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what came after the release that wrote some settings, as long as whole groups are missing."""
    later: dict[str, Any] = {}
    for group in reversed(ADDED):
        if not group.keys().isdisjoint(settings):
            break
        later |= group
    return later
