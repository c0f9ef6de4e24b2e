"""Try mutants: `python -m tests.mutation [--all] [--json FILE] [PART or NAME ...]`."""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tests.mutation import of_documents, of_places, of_shards, of_volumes
from tests.mutation.commands import COMMANDS, warm_up
from tests.mutation.judge import Results, Verdict, judge, table, try_command
from tests.mutation.mutant import Mutant
from tests.mutation.worlds import make_world



FAST_REPEATS = 1
SLOW_REPEATS = 16


def all_mutants(repeats: int) -> list[Mutant]:
    """List the mutants of every part."""
    return [
        *of_shards.mutants(repeats),
        *of_documents.manifest_mutants(repeats),
        *of_documents.run_mutants(repeats),
        *of_documents.log_mutants(repeats),
        *of_volumes.mutants(repeats),
        *of_places.swap_mutants(repeats),
        *of_places.link_mutants(repeats),
    ]


def commands_of(mutant: Mutant, position: int, *, is_every: bool) -> tuple[str, ...]:
    """Choose the commands that a mutant meets: all, or one of them in turn."""
    names = mutant.commands
    return names if is_every else (names[position % len(names)],)


def baselines(sound: Path, names: set[str]) -> dict[str, Results]:
    """Run every command on the undamaged world: what the mutants are compared with.

    Raises:
        RuntimeError: If one fails there, or two times give two results.
    """
    found = {}
    for name in sorted(names):
        world = sound.with_name("undamaged")
        shutil.rmtree(world, ignore_errors=True)
        shutil.copytree(sound, world)
        ended, found[name], foreign = try_command(world, name)
        if ended.code or foreign:
            raise RuntimeError(f"{name} on the undamaged world: {ended}, {foreign}")
    return found


def try_all(trials: list[tuple[Mutant, str]], folder: Path) -> Iterator[Verdict]:
    """Judge mutants under commands, in a folder for worlds."""
    sound = folder / "sound"
    sound.mkdir()
    make_world(sound)
    expected = baselines(sound, {command for _, command in trials})
    for mutant, command in trials:
        yield judge(mutant, command, sound, expected[command])


def main() -> None:
    """Print what became of every mutant, and the table of counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chosen", nargs="*")
    parser.add_argument("--all", action="store_true", help="every mutant under every command")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warm_up()
    mutants = all_mutants(SLOW_REPEATS if arguments.all else FAST_REPEATS)
    trials = [
        (mutant, command)
        for position, mutant in enumerate(mutants)
        if not arguments.chosen or {mutant.part, mutant.name} & {*arguments.chosen}
        for command in commands_of(mutant, position, is_every=bool(arguments.all or arguments.chosen))
    ]
    verdicts = []
    with tempfile.TemporaryDirectory() as folder:
        for verdict in try_all(trials, Path(folder)):
            verdicts.append(verdict)
            sys.stdout.write(f"{verdict.outcome:8} {verdict.mutant} {verdict.command} {verdict.problem}\n")
            sys.stdout.flush()
    sys.stdout.write(table(verdicts) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts]))


if __name__ == "__main__":
    main()
