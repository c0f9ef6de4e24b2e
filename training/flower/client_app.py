"""A hospital's side: orders in, replies out, one at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from cache_schema.admission import require_whole
from cache_schema.errors import InputError
from cache_schema.manifest import Manifest, digest, read_manifest
from cache_schema.preprocessing import record_preprocessing
from training.device import choose_device
from training.federated.client import Workplace
from training.federated.client_memory import ClientMemory
from training.federated.strategies.registry import make_strategy
from training.flower.messages import (
    Introduction,
    Task,
    pack_introduction,
    pack_problem,
    pack_reply,
    sign,
    unpack_order,
    unpack_task,
)
from training.flower.site import MEMORY_FOLDER, Site, read_site
from training.models.initial import random_model
from training.models.smallest_batch import smallest_batch
from training.runlog import Silent
from training.training_set import open_training_set, require_company

app = ClientApp()


@app.query("hello")
def introduce(message: Message, context: Context) -> Message:
    """Say who this node is, once its cache and the server's network are found fit."""
    return _answer(message, context, _introduce)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train for a round."""
    return _answer(message, context, lambda place, task: _train(place, task, message.content))


@dataclass(frozen=True)
class _Place:
    """Where a node's data lie, and where it keeps what it has to remember."""

    site: Site
    memory: Path


def _answer(
    message: Message, context: Context, work: Callable[[_Place, Task], RecordDict]
) -> Message:
    try:
        content = work(_find_place(context), unpack_task(message.content))
    except InputError as error:
        content = pack_problem(str(error))
    return Message(content, reply_to=message)


def _find_place(context: Context) -> _Place:
    """Find a hospital's site, or in a simulation the shards of one client of a cache."""
    if "site" in context.node_config:
        folder = Path(str(context.node_config["site"]))
        return _Place(read_site(folder), folder / MEMORY_FOLDER)
    if "partition-id" not in context.node_config:
        raise InputError(
            "this SuperNode was started without its site: give --node-config 'site=\"FOLDER\"', as "
            "`train site check FOLDER` prints it"
        )
    client = int(context.node_config["partition-id"])
    cache, run = str(context.run_config["cache"]), Path(str(context.run_config["run"]))
    site = Site(
        client=client,
        cache=cache,
        cache_client=client,
        device=str(context.run_config["device"]),
        loader_workers=0,
        trust_cache=bool(context.run_config["trust-cache"]),
    )
    return _Place(site, run / MEMORY_FOLDER)


def _introduce(place: _Place, task: Task) -> RecordDict:
    """Say who this node is; that comes once in a run, and so does the hashing of its shards.

    Raises:
        InputError: If there are no slices or too few, a shard is not what was written, or this release's
            network is not the server's.
    """
    config, client = task.config, place.site.client
    model = random_model(config)
    if sign(model.state_dict()) != task.signature:
        raise InputError(
            f"the server's {config.model} has other tensors than that of release "
            f"{version('fedunetmm')} here; install the coordinator's release"
        )
    manifest = read_manifest(Path(place.site.cache))
    _require_whole_shards(place.site, manifest)
    workplace = _open(place, task, manifest, smallest_batch(model, config))
    if not len(workplace.dataset):
        raise InputError(f"client {client} has no training slices with these settings")
    require_company(config, workplace.dataset, (client,), workplace.least_batch)
    return pack_introduction(
        Introduction(
            client=client,
            num_examples=len(workplace.dataset),
            num_steps=workplace.count_steps((client,)),
            manifest=digest(manifest),
            preprocessing=record_preprocessing(manifest),
            version=version("fedunetmm"),
        )
    )


def _require_whole_shards(site: Site, manifest: Manifest) -> None:
    if not site.trust_cache:
        paths = manifest.client_shards(site.cache_client)
        require_whole(Path(site.cache), manifest, paths)


def _train(place: _Place, task: Task, content: RecordDict) -> RecordDict:
    manifest = read_manifest(Path(place.site.cache))
    least_batch = smallest_batch(random_model(task.config), task.config)
    workplace = _open(place, task, manifest, least_batch)
    clients = workplace.open(choose_device(place.site.device))
    (reply,) = clients.train((place.site.client,), unpack_order(content), Silent())
    return pack_reply(reply)


def _check_folder(run: str) -> str:
    """Make sure that the name of a run, which the server chooses, is that of a folder here.

    Raises:
        InputError: If it leads elsewhere.
    """
    if run in {"", ".", ".."} or Path(run).name != run or "\0" in run:
        raise InputError("the server's name of the run is none; update the coordinator's program")
    return run


def _open(place: _Place, task: Task, manifest: Manifest, least_batch: int) -> Workplace:
    site, config = place.site, task.config
    return Workplace(
        dataset=open_training_set(
            config, Path(site.cache), manifest, clients=(site.cache_client,), known_as=site.client
        ),
        config=config.model_copy(
            update={"loader_workers": site.loader_workers, "device": site.device}
        ),
        strategy=make_strategy(config.strategy, config.strategy_options),
        memory=ClientMemory(place.memory / _check_folder(task.run)),
        least_batch=least_batch,
    )
