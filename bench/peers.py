"""Preparation against MONAI and TorchIO filling the caches that their users train from.

All read the same files in the page cache, scale each modality by its non-zero voxels and write to the
same disk. The peers run as they come, with PyTorch's threads on every core; ours runs as it comes too,
one worker a core, and once more with a single worker. It alone checks the cases, syncs and hashes.
"""

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from bench.cases import Workbench, usable_cases
from bench.cluster import Cluster, local_cluster
from bench.prep import in_worker, prepare_anew
from bench.timing import in_turn, per_case, ratio, seconds
from cache_schema.machine import usable_cores
from cache_schema.vocabulary import MODALITIES
from pipeline.case import Preprocessing
from pipeline.case_folder import SEGMENTATION
from pipeline.cohorts import Case

REPEATS: Final = 7


def measure_peers(bench: Workbench) -> dict[str, object]:
    """Fill every library's cache with the same four phantom cases, in turn."""
    cases = usable_cases(bench.phantoms())[:4]
    folders = {"ours": bench.folder("peers-ours")}
    works: dict[str, Callable[[], float]] = {}
    for name, fill in PEERS.items():
        if find_spec(name) is None:
            print(f"{name} is not installed: skipped")
            continue
        folders[name] = bench.scratch / f"peers-{name}"
        works[name] = _refilled(fill, cases, folders[name])
    num_cores = usable_cores()
    with (
        warnings.catch_warnings(),
        local_cluster(1) as one_worker,
        local_cluster(num_cores) as workers,
    ):
        warnings.simplefilter("ignore")  # theirs, about their own dependencies
        shard = folders["ours"] / "shard-000.h5"
        works["one_worker"] = in_worker(one_worker, cases, shard, bench.settings)
        works["ours"] = partial(_on_all_workers, workers, cases, folders["ours"], bench.settings)
        taken = in_turn(works, REPEATS)
    figures: dict[str, object] = {"cases": len(cases), "repeats": REPEATS, "workers": num_cores}
    for name in works:
        figures[f"{name}_seconds_per_case"] = per_case(taken[name], len(cases))
    for name, folder in folders.items():
        figures[f"{name}_megabytes_per_case"] = round(_num_bytes(folder) / len(cases) / 1e6, 1)
    for name in folders.keys() - {"ours"}:
        figures[f"times_faster_than_{name}"] = ratio(taken[name], taken["ours"])
        figures[f"one_worker_times_faster_than_{name}"] = ratio(taken[name], taken["one_worker"])
    return figures


def _on_all_workers(
    cluster: Cluster, cases: Sequence[Case], folder: Path, settings: Preprocessing
) -> float:
    """Let workers share the cases, one a shard."""
    shutil.rmtree(folder)
    shards = [(case, folder / f"shard-{number:03}.h5") for number, case in enumerate(cases)]

    def work() -> None:
        submit = partial(cluster.client.submit, prepare_anew, settings=settings, pure=False)
        cluster.client.gather([submit([case], shard) for case, shard in shards])

    return seconds(work)


def _refilled(
    fill: Callable[[Sequence[Case], Path], object], cases: Sequence[Case], folder: Path
) -> Callable[[], float]:
    def work() -> float:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return seconds(lambda: fill(cases, folder))

    return work


def fill_monai(cases: Sequence[Case], folder: Path) -> Any:  # noqa: ANN401
    """Fill MONAI's PersistentDataset and return it."""
    transforms: Any = import_module("monai.transforms")
    roles = (*MODALITIES, SEGMENTATION)
    steps = transforms.Compose(
        [
            transforms.LoadImaged(roles),
            transforms.EnsureChannelFirstd(roles),
            transforms.NormalizeIntensityd(MODALITIES, nonzero=True, channel_wise=True),
        ]
    )
    files = [{role: os.fspath(case.files[role]) for role in roles} for case in cases]
    dataset = import_module("monai.data").PersistentDataset(files, steps, cache_dir=folder)
    for index in range(len(dataset)):
        dataset[index]
    return dataset


def fill_torchio(cases: Sequence[Case], folder: Path) -> None:
    """Normalise TorchIO's subjects and save each as a tensor file."""
    tio: Any = import_module("torchio")
    torch: Any = import_module("torch")
    scale = tio.ZNormalization(masking_method=_is_not_zero)
    for case in cases:
        images = {name: tio.ScalarImage(case.files[name]) for name in MODALITIES}
        subject = tio.Subject(**images, seg=tio.LabelMap(case.files[SEGMENTATION]))
        torch.save(scale(subject), folder / f"{case.case_id}.pt")


def _is_not_zero(tensor: Any) -> Any:  # noqa: ANN401
    return tensor != 0


PEERS: Final[dict[str, Callable[[Sequence[Case], Path], object]]] = {
    "monai": fill_monai,
    "torchio": fill_torchio,
}


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
