"""JSON from disk through one door: whatever is wrong with it is said in one line."""

import json
import math
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from cache_schema.errors import InputError
from cache_schema.reading import read_bytes

T = TypeVar("T")

MOST_PLACES: Final = 3
"""Of a document that are named as wrong."""


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """Read a document that is a JSON object of finite numbers.

    Args:
        path: Of the file.
        advice: What to do if it cannot be used.

    Raises:
        InputError: If it is not there, no file, too large or not such a document.
    """
    try:
        return parse_object(read_bytes(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({reason_of(error)}); {advice}") from error


def read_record(path: Path, kind: type[T], advice: str) -> T:
    """Read a document of a kind: a model, or a dataclass whose fields have types to be checked.

    Args:
        path: Of the file.
        kind: What it must be, with no key more.
        advice: What to do if it cannot be used.

    Raises:
        InputError: If it is anything else.
    """
    document = read_object(path, advice)
    unknown = sorted(document.keys() - kind.__annotations__.keys())
    if unknown:
        raise InputError(f"{path}: nobody knows {', '.join(unknown)[:200]}; {advice}")
    try:
        return TypeAdapter(kind).validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        raise InputError(f"{path}: {places_of(error)}; {advice}") from error


def parse_object(content: bytes | str, *, is_finite: bool = True) -> dict[str, Any]:
    """Take a text as a JSON object.

    Args:
        content: The text; bytes are UTF-8.
        is_finite: Whether numbers that are none, or infinite, are refused.

    Raises:
        ValueError: If it is anything else, such as nested too deeply, or names a key twice.
    """
    try:
        text = content.decode() if isinstance(content, bytes) else content
        if not text:
            raise ValueError("it is empty: perhaps the disk was full")
        document = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant if is_finite else float,
            parse_float=_finite if is_finite else float,
        )
        json.dumps(document, ensure_ascii=False).encode()  # half a character can be escaped
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: {error.reason}") from error
    except UnicodeEncodeError as error:
        raise ValueError("it holds half a character") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - of the text, not of an argument
    return document


def digest_of(document: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of a document, whatever the order of its keys."""
    return sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def reason_of(error: Exception) -> str:
    """Put what went wrong into one short line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]


def places_of(error: ValidationError) -> str:
    """Name every place of a document that is wrong, and how, in one line; the first of many."""
    problems = [
        f"{'.'.join(map(str, problem['loc'])) or 'document'}: {problem['msg']}"
        for problem in error.errors()
    ]
    text = "; ".join(problems[:MOST_PLACES])
    return " ".join(text.split())[:400] + (" and more" if len(problems) > MOST_PLACES else "")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("it names a key twice")
    return document


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _refuse_constant(text)
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is no finite number")
