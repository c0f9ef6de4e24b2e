"""What a mutant is: one named, seeded damage to a world, and what may come of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

Damage = Callable[[Path, Random], None]
"""Changes the world, or the file, that it is given."""

Expected = Literal["refused or same", "refused", "anything sound"]
"""`anything sound` is for a document that is valid and says something else: nobody can tell."""


@dataclass(frozen=True)
class Mutant:
    """One damage.

    Attributes:
        part: What is damaged; a row of the table of counts.
        kind: How.
        number: Seeds the damage together with part and kind.
        damage: Does it.
        commands: Whom it may concern.
        expected: What may come of it, besides never a traceback, a hang, or a write elsewhere.
    """

    part: str
    kind: str
    number: int
    damage: Damage
    commands: tuple[str, ...]
    expected: Expected = "refused or same"

    @property
    def name(self) -> str:
        """What reproduces it: `python -m tests.mutation NAME`."""
        return f"{self.part}:{self.kind}:{self.number}"

    def apply(self, world: Path) -> None:
        """Damage a world; the same name does the same."""
        self.damage(world, Random(self.name))


def flip_bit(path: Path, random: Random, start: int = 0, stop: int | None = None) -> None:
    """Flip one bit of a file, between two offsets."""
    content = bytearray(path.read_bytes())
    position = random.randrange(start, min(stop or len(content), len(content)))
    content[position] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, random: Random) -> None:
    """Cut a file short somewhere."""
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content))])
