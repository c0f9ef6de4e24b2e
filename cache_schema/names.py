"""Names that documents and shards bring along, some of which become names of files."""

import re
from typing import Annotated, Final

from pydantic import AfterValidator

MOST_CHARACTERS: Final = 255
"""Of a name, as of a folder, which is what a case is named after."""

_NAME: Final = re.compile(r"\w[\w.-]*")
_SITE: Final = re.compile(r"(\w[\w.-]*)?")


def check_name(name: str) -> str:
    """Make sure that a name can be part of a path and of a message; it leads to no other folder.

    Args:
        name: Of a case or a person.

    Returns:
        The name.

    Raises:
        ValueError: Without quoting it, however long it is.
    """
    return _check(name, _NAME)


def check_site(name: str) -> str:
    """Make sure of the same for the name of a site, which may be empty.

    Raises:
        ValueError: Without quoting it.
    """
    return _check(name, _SITE)


def _check(name: str, pattern: re.Pattern[str]) -> str:
    if len(name) > MOST_CHARACTERS or not pattern.fullmatch(name):
        raise ValueError(
            "is no name: a letter, digit or _ first, then also - and ., "
            f"{MOST_CHARACTERS} characters at most"
        )
    return name


Name = Annotated[str, AfterValidator(check_name)]
Site = Annotated[str, AfterValidator(check_site)]
