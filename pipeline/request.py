"""What a preparation was asked for, and whether a cache was made of the same."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cache_schema.errors import InputError
from cache_schema.manifest import Manifest
from pipeline.plan import Plan

MOST_NAMES: Final = 3
"""Cases that a message names."""


@dataclass(frozen=True)
class Request:
    """The options and cases of a preparation; where the archives lie and who works does not count.

    Attributes:
        options: As they are written to the manifest, by name.
        cases: Ids of all cases found, sorted, also of those left out or quarantined; None where a log of an
            earlier release does not tell.
    """

    options: Mapping[str, Any]
    cases: Sequence[str] | None


def spell_option(name: str, value: object) -> str:
    """Spell an option as `prep partition` takes it, by its name in the manifest."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"


def request_of_plan(plan: Plan) -> Request:
    """Tell what a plan was asked for."""
    return Request(plan.options.model_dump(), sorted(case.case_id for case in plan.cases))


def request_of_manifest(manifest: Manifest) -> Request:
    """Tell what a finished cache was asked for."""
    parts = (manifest.cases, manifest.quarantined, manifest.superseded)
    ids = sorted(entry.case_id for part in parts for entry in part)
    return Request(manifest.options.model_dump(), ids)


def require_same_request(cache: Path, made: Request, wanted: Request) -> None:
    """Make sure that a cache is not replaced by another one.

    Args:
        cache: The folder, for the message.
        made: What it was made of.
        wanted: What it would be made of now.

    Raises:
        InputError: If options or cases differ; the message names all options, and the first cases.
    """
    found = [*_other_options(made, wanted), *_other_cases(made, wanted)]
    if found:
        raise InputError(
            f"{cache} was made of something else ({'; '.join(found)}); replace it with --replace, or name "
            "another folder with --cache"
        )


def _other_options(made: Request, wanted: Request) -> Iterator[str]:
    """Compare the options that both releases know."""
    for name, value in wanted.options.items():
        if name in made.options and made.options[name] != value:
            before = made.options[name]
            other = spell_option(name, before) if isinstance(before, bool) else before
            yield f"{spell_option(name, value)} instead of {other}"


def _other_cases(made: Request, wanted: Request) -> Iterator[str]:
    if made.cases is None or wanted.cases is None:
        return
    for what, first, second in (("new", wanted, made), ("gone", made, wanted)):
        ids = sorted(set(first.cases or ()) - set(second.cases or ()))
        if ids:
            more = ", ..." if len(ids) > MOST_NAMES else ""
            yield f"{len(ids)} case{'s' * (len(ids) > 1)} {what}: {', '.join(ids[:MOST_NAMES])}{more}"
