"""The very Dask cluster that `prep partition` makes, ready to work."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

from distributed import Client

from pipeline.cluster import connect


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
        client: Connected to it.
        address: For `--scheduler`.
        start_seconds: Until every worker had imported what it needs.
    """

    client: Client
    address: str
    start_seconds: float


@contextmanager
def local_cluster(num_workers: int) -> Iterator[Cluster]:
    """Start worker processes and let them import the pipeline; stop them at the end."""
    start = time.perf_counter()
    with connect(num_workers, None) as client:
        client.wait_for_workers(num_workers)
        client.run(_import_pipeline)
        yield Cluster(client, str(client.scheduler_info()["address"]), time.perf_counter() - start)


def _import_pipeline() -> None:
    import_module("pipeline.shard_task")


class Silence:
    """Watches a preparation and says nothing."""

    def started(self, *, num_cases: int, num_workers: int, dashboard: str) -> None:
        """Take note of nothing."""

    def case_done(self, case_id: str) -> None:
        """Take note of nothing."""
