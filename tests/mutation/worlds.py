"""The undamaged world: archives, two caches and three runs, made by the commands themselves.

    data/  scans/  cache/  other/  run/  run2/  central/  outside/

`other` is a cache of the same archives under another seed, `run2` a run of another seed. `outside` is
what no command has to do with: links lead there.
"""

import shutil
from pathlib import Path

from cache_schema.manifest import read_manifest
from tests.mutation.commands import PARTITION, RUNS, SCAN, begin, require

CLIENT_SHARD = "clients/client-00/shard-000.h5"
OUTSIDE = "outside"


def make_world(world: Path) -> None:
    """Make the undamaged world in an empty folder."""
    phantom = ("prep", "phantom", "data", "--patients", "5", "--shape", "20", "18", "16")
    require(world, phantom)
    require(world, (*PARTITION, "--cache", "cache", "--seed", "0"))
    require(world, (*PARTITION, "--cache", "other", "--seed", "1"))
    for arguments in RUNS:
        begin(world, arguments)
    require(world, ("train", "eval", "run", "--cache", "cache", "--device", "cpu"))
    (folder,) = (world / "data").rglob(Path(SCAN).name)
    shutil.copytree(folder, world / SCAN)
    outside = world / OUTSIDE
    outside.mkdir()
    shutil.copy(world / "cache" / CLIENT_SHARD, outside / "shard.h5")
    shutil.copy(world / "cache/manifest.json", outside)
    shutil.copy(world / "run/config.json", outside)
    (outside / "precious.txt").write_text("precious\n")


def shards(cache: Path, *, is_test: bool) -> list[Path]:
    """List the test shards of a cache, or its training shards, in order."""
    manifest = read_manifest(cache)
    names = {case.shard for case in manifest.cases if (case.split == "test") == is_test}
    return [cache / name for name in sorted(names)]
