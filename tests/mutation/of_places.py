"""Sound files in wrong places, and things that are no files: swaps and links."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

from cache_schema.manifest import read_manifest
from tests.mutation.commands import SCAN, remove
from tests.mutation.mutant import Mutant
from tests.mutation.worlds import CLIENT_SHARD, shards

CACHE_READERS = (
    *("fed", "verify", "eval", "rerun", "verify-deep", "central", "reuse", "nnunet", "show-html"),
    "resume",
)
RUN_READERS = ("eval", "resume", "report", "predict", "export", "watch")


def swap(first: Path, second: Path) -> None:
    """Exchange two files."""
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def _training(cache: Path, client: int) -> list[Path]:
    return [cache / name for name in read_manifest(cache).client_shards(client)]


def swap_clients(world: Path, random: Random) -> None:
    cache = world / "cache"
    swap(random.choice(_training(cache, 0)), random.choice(_training(cache, 1)))


def swap_own(world: Path, random: Random) -> None:
    """Exchange two shards of one client, or two of the test set."""
    cache = world / "cache"
    groups = [_training(cache, 0), _training(cache, 1), shards(cache, is_test=True)]
    swap(*random.sample(random.choice([group for group in groups if len(group) > 1]), 2))


def test_for_training(world: Path, random: Random) -> None:
    cache = world / "cache"
    tested, trained = (random.choice(shards(cache, is_test=is_test)) for is_test in (True, False))
    shutil.copy(tested, trained)


def training_for_test(world: Path, random: Random) -> None:
    cache = world / "cache"
    tested, trained = (random.choice(shards(cache, is_test=is_test)) for is_test in (True, False))
    shutil.copy(trained, tested)


def other_cache(world: Path, random: Random, is_test: bool) -> None:
    """Take a shard of another cache in place of one of the same kind."""
    own = random.choice(shards(world / "cache", is_test=is_test))
    shutil.copy(random.choice(shards(world / "other", is_test=is_test)), own)


def other_manifest(world: Path, random: Random) -> None:
    shutil.copy(world / "other/manifest.json", world / "cache/manifest.json")


def other_run(world: Path, random: Random, name: str, donor: str) -> None:
    shutil.copy(world / donor / name, world / "run" / name)


def swap_modalities(world: Path, random: Random) -> None:
    """Exchange the segmentation and a modality of a case; a stocktaking says so."""
    folder = min((world / "data").rglob("*_seg.nii.gz")).parent
    swap(next(folder.glob("*_seg.nii.gz")), next(folder.glob("*_t2.nii.gz")))


def link(world: Path, random: Random, place: str, target: str) -> None:
    """Put a link in place of a file or folder; what was there is gone."""
    remove(world / place)
    (world / place).symlink_to(os.path.relpath(world / target, (world / place).parent))


def link_new(world: Path, random: Random, place: str, target: str) -> None:
    """Put a link where nothing was."""
    (world / place).symlink_to(os.path.relpath(world / target, (world / place).parent))


def dead_link(world: Path, random: Random, place: str) -> None:
    remove(world / place)
    (world / place).symlink_to("nowhere/at/all")


def loop(world: Path, random: Random, place: str) -> None:
    remove(world / place)
    (world / place).symlink_to(Path(place).name)


def pipe(world: Path, random: Random, place: str) -> None:
    remove(world / place)
    os.mkfifo(world / place)


def folder(world: Path, random: Random, place: str) -> None:
    remove(world / place)
    (world / place).mkdir()


def missing(world: Path, random: Random, place: str) -> None:
    remove(world / place)


def unreadable_name(world: Path, random: Random, place: str) -> None:
    """Add a file whose name is no UTF-8."""
    os.close(os.open(os.fsencode(world / place) + b"/\xff\xfe.h5", os.O_CREAT | os.O_WRONLY))


SWAPS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "two clients": (swap_clients, CACHE_READERS),
    "two of one": (swap_own, CACHE_READERS),
    "test for training": (test_for_training, CACHE_READERS),
    "training for test": (training_for_test, CACHE_READERS),
    "other cache": (partial(other_cache, is_test=False), CACHE_READERS),
    "other cache's test": (partial(other_cache, is_test=True), CACHE_READERS),
    "other manifest": (other_manifest, CACHE_READERS),
    "weights of another run": (
        partial(other_run, name="model.safetensors", donor="run2"),
        RUN_READERS,
    ),
    "checkpoint of another run": (
        partial(other_run, name="resume.safetensors", donor="run2"),
        ("resume",),
    ),
    "checkpoint of central": (
        partial(other_run, name="resume.safetensors", donor="central"),
        ("resume",),
    ),
    "weights of central": (
        partial(other_run, name="model.safetensors", donor="central"),
        RUN_READERS,
    ),
    "config of central": (partial(other_run, name="config.json", donor="central"), RUN_READERS),
}

DATA = ("scan", "partition")
PLACES: dict[str, tuple[str, ...]] = {
    f"cache/{CLIENT_SHARD}": CACHE_READERS,
    "cache/clients/client-00": ("rerun", "fed", "verify", "reuse"),
    "cache/manifest.json": CACHE_READERS,
    "cache/prep.log.jsonl": ("rerun", "verify"),
    "run/config.json": RUN_READERS,
    "run/log.jsonl": ("watch", "resume", "report"),
    "run/model.safetensors": RUN_READERS,
    "run/resume.safetensors": ("resume",),
    "run/provenance.json": RUN_READERS,
    "run/preprocessing.json": RUN_READERS,
    "run/evaluation.json": ("report", "eval"),
    SCAN: ("predict",),
}
THINGS = {"dead link": dead_link, "loop": loop, "fifo": pipe, "folder": folder, "missing": missing}
TARGETS: dict[str, str] = {
    f"cache/{CLIENT_SHARD}": "outside/shard.h5",
    "cache/clients/client-00": "outside",
    "cache/manifest.json": "outside/manifest.json",
    "cache/prep.log.jsonl": "outside/precious.txt",
    "run/config.json": "outside/config.json",
    "run/log.jsonl": "outside/precious.txt",
    "run/model.safetensors": "outside/precious.txt",
    "run/resume.safetensors": "outside/precious.txt",
    "run/evaluation.json": "outside/precious.txt",
    "run/evaluation.csv": "outside/precious.txt",
}
NEW_LINKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cache/clients/client-09": ("outside", ("rerun", "verify")),
    "cache/test/brats2099": ("outside", ("rerun", "verify")),
    "cache/clients/client-00/shard-099.h5": ("outside/shard.h5", ("rerun", "verify")),
    "cache/clients/client-00/shard-000.h5.1.partial": ("outside/precious.txt", ("rerun", "verify")),
    "run/model.partial": ("outside/precious.txt", ("resume", "eval")),
}
"""Not in the places that an option names: a link there is meant by the user."""


def swap_mutants(repeats: int) -> Iterator[Mutant]:
    """Yield sound files in wrong places."""
    yield Mutant("swap", "segmentation and t2", 0, swap_modalities, DATA, "anything sound")
    for kind, (damage, commands) in SWAPS.items():
        yield from (Mutant("swap", kind, k, damage, commands) for k in range(max(1, repeats // 2)))


def link_mutants(repeats: int) -> Iterator[Mutant]:
    """Yield what is no file, or lies elsewhere."""
    for place, commands in PLACES.items():
        for kind, thing in THINGS.items():
            yield Mutant(
                "link",
                f"{place} {kind}",
                0,
                partial(thing, place=place),
                commands,
                "anything sound",
            )
    for place, target in TARGETS.items():
        damage = partial(link, place=place, target=target)
        yield Mutant(
            "link", f"{place} elsewhere", 0, damage, PLACES.get(place, ("eval",)), "anything sound"
        )
    for place, (target, commands) in NEW_LINKS.items():
        damage = partial(link_new, place=place, target=target)
        yield Mutant("link", f"{place} new", 0, damage, commands, "anything sound")
    yield Mutant(
        "link",
        "no utf-8 name",
        0,
        partial(unreadable_name, place="cache/clients"),
        ("verify", "rerun"),
    )
