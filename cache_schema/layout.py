"""Where things lie inside a cache folder."""

from typing import Final

from cache_schema.vocabulary import Cohort

MANIFEST_NAME: Final = "manifest.json"
LOG_NAME: Final = "prep.log.jsonl"


def client_shard(client: int, number: int) -> str:
    """Return the path, relative to the cache, of a client's shard; both count from 0."""
    return f"clients/client-{client:02d}/shard-{number:03d}.h5"


def test_shard(cohort: Cohort, number: int) -> str:
    """Return the path, relative to the cache, of a shard of a cohort's test set, counted from 0."""
    return f"test/{cohort}/shard-{number:03d}.h5"
