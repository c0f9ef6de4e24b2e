"""A Dask cluster of this machine, as `prep partition` makes one, ready to work."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

from distributed import Client, LocalCluster


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
    with (
        LocalCluster(
            n_workers=num_workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(num_workers)
        client.run(_import_pipeline)
        yield Cluster(client, cluster.scheduler_address, time.perf_counter() - start)


def _import_pipeline() -> None:
    import_module("pipeline.shard_task")


class Silence:
    """Watches a preparation and says nothing."""

    def started(self, *, num_cases: int, num_workers: int, dashboard: str) -> None:
        """Take note of nothing."""

    def case_done(self, case_id: str) -> None:
        """Take note of nothing."""
