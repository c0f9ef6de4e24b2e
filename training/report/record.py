"""Everything that a report needs to know of a run, read from its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cache_schema.manifest import Manifest
from cache_schema.vocabulary import COHORTS
from training.config import TrainConfig, read_config
from training.fairness import CLIENTS_PREFIX, read_client_evaluation
from training.models.trained import network_size
from training.provenance import known_leakage, read_provenance
from training.runlog import RoundRecord, read_events, rounds_of
from training.score_files import (
    EVALUATION_NAME,
    UNTRAINED_NAME,
    load_evaluation,
    read_scores,
    require_evaluation,
)
from training.scores import Evaluation, Summary
from training.show import count_defined


@dataclass(frozen=True)
class Scored:
    """The scores of a network on the test set, as `train eval` saved them.

    Attributes:
        evaluation: Case by case, and how they were made.
        summary: Means with intervals, by test set, metric and region.
    """

    evaluation: Evaluation
    summary: Summary


@dataclass(frozen=True)
class RunRecord:
    """A run.

    Attributes:
        name: Of its folder, with as much of the path as tells the runs of a report apart.
        path: Its folder.
        config: Its settings.
        provenance: What its result depends on besides.
        events: Its log.
        rounds: Those that are finished.
        parameters: Of its network.
        flops: Of one forward pass of it.
        scored: The trained network's scores, or None.
        untrained: Those of the network before its first round, made in the same way, or None.
        clients: Mean scores of clients' own cases as `train eval --clients` saved them, and as `counts`
            how many cases have a value, or None.
    """

    name: str
    path: Path
    config: TrainConfig
    provenance: dict[str, Any]
    events: Sequence[dict[str, Any]]
    rounds: Sequence[RoundRecord]
    parameters: int
    flops: int
    scored: Scored | None
    untrained: Scored | None
    clients: dict[str, Any] | None

    @property
    def is_finished(self) -> bool:
        """Whether all rounds are done."""
        return bool(self.rounds) and self.rounds[-1].round == self.config.rounds

    @property
    def is_ahead_of_scores(self) -> bool:
        """Whether training went on after the network was scored."""
        return (
            self.scored is not None
            and bool(self.rounds)
            and self.rounds[-1].round > self.scored.evaluation.round
        )

    @property
    def seconds(self) -> float:
        """Of training, over all rounds."""
        return sum(record.seconds for record in self.rounds)


def read_runs(runs: Sequence[Path], manifest: Manifest) -> tuple[RunRecord, ...]:
    """Read runs that were trained on one cache.

    Raises:
        InputError: If one is no run, or damaged.
    """
    return tuple(_read(run, name, manifest) for run, name in zip(runs, _names(runs), strict=True))


def _read(run: Path, name: str, manifest: Manifest) -> RunRecord:
    config, events, provenance = read_config(run), read_events(run), read_provenance(run)
    scored = _scored(run, EVALUATION_NAME, manifest, provenance)
    untrained = _scored(run, UNTRAINED_NAME, manifest, provenance)
    parameters, flops = network_size(run)
    return RunRecord(
        name=name,
        path=run,
        config=config,
        provenance=provenance,
        events=events,
        rounds=rounds_of(events),
        parameters=parameters,
        flops=flops,
        scored=scored,
        untrained=untrained if scored and untrained and _is_alike(scored, untrained) else None,
        clients=_read_clients(run, manifest),
    )


def _names(runs: Sequence[Path]) -> list[str]:
    """Call runs by the names of their folders, or by their paths where folders share a name."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _scored(
    run: Path, name: str, manifest: Manifest, provenance: Mapping[str, Any]
) -> Scored | None:
    """Read scores on this cache's test set; those on another are none."""
    document, evaluation = require_evaluation(run, name), load_evaluation(run, manifest, name)
    if document is None or evaluation is None:
        return None
    groups = {name: document["summary"].get(name) for name in (*COHORTS, "all")}
    summary = {name: group for name, group in groups.items() if group is not None}
    return Scored(replace(evaluation, leakage=known_leakage(provenance, manifest)), summary)


def _is_alike(scored: Scored, untrained: Scored) -> bool:
    return scored.evaluation.rules == untrained.evaluation.rules


def _read_clients(run: Path, manifest: Manifest) -> dict[str, Any] | None:
    """Read clients' scores, and count the cases behind each mean if their own scores are there."""
    document = read_client_evaluation(run, manifest)
    scores = read_scores(run, f"{CLIENTS_PREFIX}{EVALUATION_NAME}")
    if document is None or not scores:
        return document
    owners = {case.case_id: str(case.client) for case in manifest.cases}
    counts = {
        client: count_defined([score for score in scores if owners.get(score.case_id) == client])
        for client in document["clients"]
    }
    return {**document, "counts": counts}
