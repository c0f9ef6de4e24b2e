"""Where things lie inside a cache folder."""

import re
from typing import Final

from cache_schema.vocabulary import COHORTS, Cohort

MANIFEST_NAME: Final = "manifest.json"
LOG_NAME: Final = "prep.log.jsonl"
SHARD_FOLDERS: Final = ("clients", "test")

_SHARD: Final = re.compile(
    rf"(clients/client-[0-9]{{2,9}}|test/({'|'.join(COHORTS)}))/shard-[0-9]{{3,9}}\.h5"
)


def client_shard(client: int, number: int) -> str:
    """Return the path, relative to the cache, of a client's shard; both count from 0."""
    return f"clients/client-{client:02d}/shard-{number:03d}.h5"


def test_shard(cohort: Cohort, number: int) -> str:
    """Return the path, relative to the cache, of a shard of a cohort's test set, counted from 0."""
    return f"test/{cohort}/shard-{number:03d}.h5"


def is_shard_path(path: str) -> bool:
    """Tell whether a path, relative to the cache, is one that a shard can have."""
    return _SHARD.fullmatch(path) is not None
