"""The coordinator's side: the rounds of `training.federated.engine`, with clients behind Flower nodes."""

import logging
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from cache_schema.errors import InputError
from cache_schema.preprocessing import unite_preprocessing
from training.config import TrainConfig, make_config, named_values
from training.federated.engine import Federation
from training.federated.strategies.registry import make_strategy
from training.flower.messages import Task, sign
from training.flower.remote_clients import RemoteClients, Waiting
from training.models.initial import initial_model
from training.models.smallest_batch import smallest_batch
from training.provenance import read_provenance
from training.runlog import RoundRecord, Silent
from training.session import open_remote_run, require_no_run

app = ServerApp()
logger = logging.getLogger("flwr")

Options = Mapping[str, bool | int | float | str]
"""Of a run, as `flwr run --run-config` sets them; the defaults are in flower/pyproject.toml."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry out a run."""
    try:
        coordinate(grid, context.run_config)
    except InputError:
        sys.tracebacklimit = 0  # Flower prints the traceback of what ends a run; the line is enough
        raise


def coordinate(grid: Grid, options: Options) -> None:
    """Gather the clients and go through all rounds.

    Args:
        grid: How Flower reaches its nodes.
        options: `run`, `resume`, `clients`, `join-seconds`, `reply-seconds`, and the settings of
            `TrainConfig` with hyphens.

    Raises:
        InputError: If an option, a client or the run's folder is not as it should be, or a round
            has no sound update.
    """
    config = read_settings(options)
    run, resume = _run_folder(options), bool(options["resume"])
    if not resume:
        require_no_run(run, logs_at_once=True)
    strategy = make_strategy(config.strategy, config.strategy_options)
    model = initial_model(config)
    smallest_batch(model, config)
    name = str(read_provenance(run).get("name")) if resume else uuid4().hex
    task = Task(name, config, sign(model.state_dict()), version("fedunetmm"))
    clients = RemoteClients(
        grid, task, Waiting(float(options["join-seconds"]), float(options["reply-seconds"]))
    )
    clients.gather(int(options["clients"]))
    introductions = clients.introductions
    sites = {client: each.manifest for client, each in introductions.items()}
    with open_remote_run(
        config,
        run,
        name=name,
        sites=sites,
        preprocessing=unite_preprocessing({k: i.preprocessing for k, i in introductions.items()}),
        resume=resume,
    ):
        federation = Federation(config, run, tuple(introductions), clients, strategy)
        federation.carry_on(model, _Reporter(), resume=resume, boards=())


def read_settings(options: Options) -> TrainConfig:
    """Pick the settings of a run; an empty text is none, or what is usual for the network.

    Raises:
        InputError: Naming every one that is wrong, and how.
    """
    settings: dict[str, object] = {}
    for name in TrainConfig.model_fields.keys() - {"checkpoint_steps"}:
        value = options[name.replace("_", "-")]
        settings[name] = None if value == "" else value
    for name in ("model", "strategy"):
        texts = str(options[f"{name}-options"]).split()
        settings[f"{name}_options"] = named_values(f"--{name}-option", texts)
    return make_config(**settings)


def _run_folder(options: Options) -> Path:
    run = Path(str(options["run"]))
    if not run.is_absolute():
        raise InputError(
            f"--run-config 'run=\"{run}\"': give an absolute path; SuperLink and SuperNodes run in "
            "folders of their own"
        )
    return run


class _Reporter(Silent):
    """Tells Flower's log how a run goes."""

    def started(self, *, num_rounds: int, num_steps: int) -> None:
        """Tell how much there is to do."""
        logger.info("%d rounds, %d optimiser steps to do", num_rounds, num_steps)

    def round_done(self, record: RoundRecord) -> None:
        """Tell how a round went."""
        refused = {each.client: each.refused for each in record.clients if each.refused}
        logger.info(
            "round %d: loss %.4f, training Dice %s, %.1f s, absent %s, refused %s",
            record.round,
            record.loss,
            " ".join(f"{region} {value:.3f}" for region, value in record.dice.items()),
            record.seconds,
            list(record.absent),
            refused,
        )
