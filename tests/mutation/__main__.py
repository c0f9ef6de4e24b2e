"""Try mutants: `python -m tests.mutation [--many] [--json FILE] [PART or NAME ...]`."""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tests.mutation import of_documents, of_places, of_shards, of_volumes
from tests.mutation.commands import SLOW, warm_up
from tests.mutation.judge import Results, Verdict, judge, table, try_command
from tests.mutation.mutant import Mutant
from tests.mutation.worlds import make_world

Trial = tuple[Mutant, str]
"""A mutant and the command that it meets."""

MANY_REPEATS = 8
"""Of damage by chance: over 1,000 mutants in all."""


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


def fast_trials() -> list[Trial]:
    """List every second kind of damage, each under one command, by turns; little of what is slow."""
    trials = []
    for position, mutant in enumerate(all_mutants(1)[::2]):
        quick = [name for name in mutant.commands if name not in SLOW or position % 4 == 0]
        names = quick or mutant.commands
        trials.append((mutant, names[position % len(names)]))
    return trials


def many_trials() -> list[Trial]:
    """List over 1,000 mutants, each under one command, by turns."""
    return [
        (mutant, mutant.commands[position % len(mutant.commands)])
        for position, mutant in enumerate(all_mutants(MANY_REPEATS))
    ]


def chosen_trials(names: set[str]) -> list[Trial]:
    """List mutants by name, or all kinds of a part, under every command."""
    return [
        (mutant, command)
        for mutant in all_mutants(MANY_REPEATS if any(":" in name for name in names) else 1)
        if {mutant.part, mutant.name} & names
        for command in mutant.commands
    ]


def baselines(sound: Path, names: set[str]) -> dict[str, Results]:
    """Run every command on the undamaged world: what the mutants are compared with.

    Raises:
        RuntimeError: If one fails there, or writes where it should not.
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


def try_all(trials: list[Trial], folder: Path) -> Iterator[Verdict]:
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
    parser.add_argument("--many", action="store_true", help="over 1,000 mutants")
    parser.add_argument("--json", type=Path, help="also write what became of each")
    arguments = parser.parse_args()
    warm_up()
    if arguments.chosen:
        trials = chosen_trials({*arguments.chosen})
    else:
        trials = many_trials() if arguments.many else fast_trials()
    verdicts = []
    with tempfile.TemporaryDirectory() as folder:
        for verdict in try_all(trials, Path(folder)):
            verdicts.append(verdict)
            sys.stdout.write(
                f"{verdict.outcome:8} {verdict.mutant} {verdict.command} {verdict.problem}\n"
            )
            sys.stdout.flush()
    sys.stdout.write(table(verdicts) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts]))


if __name__ == "__main__":
    main()
