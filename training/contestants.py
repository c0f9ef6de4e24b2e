"""Who takes part in a comparison of networks, and what each may spend."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cache_schema.errors import InputError
from training.config import named_values

_COMMA: Final = re.compile(r",(?![0-9])")
"""Between two networks; those in a list of numbers, such as `channels=8,16`, are followed by a digit."""

MOST_EPOCHS: Final = 10
"""Lines that the log of a run has of its steps, and times that it is saved at least."""


@dataclass(frozen=True)
class Contestant:
    """A network that takes part.

    Attributes:
        model: A key of `training.models.registry.MODELS`.
        options: Of the network, as typed.
        tta: Score it with flips; it is trained once, with and without them.
    """

    model: str
    options: Mapping[str, str] = field(default_factory=dict)
    tta: bool = False

    @property
    def run_name(self) -> str:
        """Name of its run's folder."""
        return "-".join((self.model, *(f"{name}={value}" for name, value in self.options.items())))

    @property
    def name(self) -> str:
        """What it is called in tables, and the folder of its scores."""
        return f"{self.run_name}+tta" if self.tta else self.run_name


def read_contestants(texts: Sequence[str]) -> tuple[Contestant, ...]:
    """Take networks apart that are written as `NAME[:OPTION=VALUE...][+tta]`, with commas between.

    Raises:
        InputError: If one is written otherwise, or named twice.
    """
    words = (word for text in texts for word in _COMMA.split(text))
    contestants = tuple(_read_contestant(word) for word in words if word)
    names = [contestant.name for contestant in contestants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"--models {', '.join(twice)}: named twice")
    if not contestants:
        raise InputError("--models: name a network; `train models` lists them")
    return contestants


def _read_contestant(text: str) -> Contestant:
    plain = text.removesuffix("+tta")
    model, *options = plain.split(":")
    return Contestant(model, named_values("--models", options), tta=plain != text)


@dataclass(frozen=True)
class Budget:
    """What every network may spend on training; one of the two is None.

    Attributes:
        steps: Optimiser steps.
        minutes: Of training, by the time that a few steps take before it begins.
    """

    steps: int | None = None
    minutes: float | None = None

    @property
    def option(self) -> str:
        """As it is typed."""
        return f"--steps {self.steps}" if self.minutes is None else f"--minutes {self.minutes:g}"


def divide(steps: int) -> dict[str, int]:
    """Divide steps into epochs of the same number: the most up to `MOST_EPOCHS` that leave none over."""
    rounds = max(count for count in range(1, MOST_EPOCHS + 1) if steps % count == 0)
    return {"rounds": rounds, "local_steps": steps // rounds}
