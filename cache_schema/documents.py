"""JSON from disk through one door: whatever is wrong with it is said in one line."""

import errno
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from cache_schema.errors import InputError

MOST_BYTES: Final = 64 * 2**20
"""Of a document; what is larger is none that this program writes."""


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """Read a document that is a JSON object of finite numbers.

    Args:
        path: Of the file.
        advice: What to do if it cannot be used.

    Raises:
        InputError: If it is not there, no file, too large or not such a document.
    """
    try:
        return parse_object(_read_bytes(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({reason_of(error)}); {advice}") from error


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


def reason_of(error: Exception) -> str:
    """Put what went wrong into one short line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]


def require_file(path: Path) -> None:
    """Make sure that opening a path does not wait, as a pipe does for its other end.

    Raises:
        OSError: If it is a pipe, a socket or a device.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "not a file")


def _read_bytes(path: Path) -> bytes:
    require_file(path)
    if path.exists() and path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes are too many for it")
    return path.read_bytes()


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
