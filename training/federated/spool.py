"""A round's updates on disk, for strategies that compare all of them value by value."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, final

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cache_schema.errors import InputError
from training.federated.aggregate import Server, State, Update

BLOCK_BYTES: Final = 64 * 2**20
"""Size of a block: a range of values of all clients together."""


@final
class Spool:
    """Networks of all clients of a round, in one file each.

    A file holds a few long vectors, one for each type of parameters and of buffers, so that a range
    of values is read at once however many tensors it goes over. At any time one network or one block
    is in memory, whatever the number of clients.
    """

    def __init__(self, folder: Path, server: Server, block_bytes: int = BLOCK_BYTES) -> None:
        """Prepare for networks like the server's.

        Args:
            folder: An empty folder, with room for all of them.
            server: Whose model gives names and shapes.
            block_bytes: The most that a block may take.
        """
        self._folder = folder
        self._model = server.model
        self._block_bytes = block_bytes
        self._parts: dict[str, list[str]] = {}
        for name in sorted(server.model):
            kind = "parameters" if name in server.trainable else "buffers"
            self._parts.setdefault(f"{kind}/{server.model[name].dtype}", []).append(name)
        self.clients: list[int] = []
        self.num_examples: list[int] = []

    def __len__(self) -> int:
        return len(self.clients)

    def add(self, update: Update) -> None:
        """Write one more network.

        Raises:
            ValueError: If its tensors are not like the server's.
            InputError: If the disk is full or cannot be written.
        """
        if _describe(update.state) != _describe(self._model):
            raise ValueError("updates have different tensors")
        vectors = {
            part: torch.cat([update.state[name].reshape(-1) for name in names])
            for part, names in self._parts.items()
        }
        try:
            save_file(vectors, self._file(len(self)))
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{self._folder} cannot be written ({error}); this strategy puts all networks of a "
                "round there: make room, or set TMPDIR to a folder that has it"
            ) from error
        self.clients.append(update.client)
        self.num_examples.append(update.num_examples)

    def read(self, index: int) -> dict[str, Tensor]:
        """Read a whole network, by its place in the order in which they came."""
        return self._split(load_file(self._file(index)))

    def parameter_blocks(self) -> Iterator[Shaped[Tensor, "client value"]]:
        """Read all parameters, a range of all clients at a time."""
        for part in self._parts:
            if part.startswith("parameters/"):
                yield from self._blocks(part)

    def combine(
        self, rule: Callable[[Shaped[Tensor, "client value"]], Shaped[Tensor, " value"]]
    ) -> dict[str, Tensor]:
        """Make one network of all, coordinate by coordinate.

        Args:
            rule: From values of all clients to one value each, of the same type.
        """
        return self._split({part: self._combine(part, rule) for part in self._parts})

    def _combine(
        self,
        part: str,
        rule: Callable[[Shaped[Tensor, "client value"]], Shaped[Tensor, " value"]],
    ) -> Shaped[Tensor, " value"]:
        # Written into one vector: results that stay between two blocks keep the allocator from
        # giving the next block the place of the last, and memory grows with every block.
        tensors = [self._model[name] for name in self._parts[part]]
        vector = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=tensors[0].dtype)
        start = 0
        for block in self._blocks(part):
            stop = start + block.shape[1]
            vector[start:stop] = rule(block)
            start = stop
        return vector

    def _blocks(self, part: str) -> Iterator[Shaped[Tensor, "client value"]]:
        tensors = [self._model[name] for name in self._parts[part]]
        size, dtype = sum(tensor.numel() for tensor in tensors), tensors[0].dtype
        step = max(1, self._block_bytes // (len(self) * dtype.itemsize))
        for start in range(0, size, step):
            block = torch.empty((len(self), min(step, size - start)), dtype=dtype)
            for index, row in enumerate(block):
                # Opened anew for every range: pages of a file that stays open add up in memory.
                with safe_open(self._file(index), framework="pt") as file:
                    row.copy_(file.get_slice(part)[start : start + len(row)])
            yield block

    def _split(self, vectors: State) -> dict[str, Tensor]:
        pieces: dict[str, Tensor] = {}
        for part, names in self._parts.items():
            sizes = [self._model[name].numel() for name in names]
            pieces |= zip(names, vectors[part].split(sizes), strict=True)
        return {
            name: pieces[name].reshape(tensor.shape).clone() for name, tensor in self._model.items()
        }

    def _file(self, index: int) -> Path:
        return self._folder / f"{index}.safetensors"


@contextmanager
def spool_updates(updates: Iterable[Update], server: Server) -> Iterator[Spool]:
    """Put all updates of a round into a temporary folder, which is removed after any error too.

    Args:
        updates: One after another; each is gone when the next one comes.
        server: As the clients found it.

    Raises:
        ValueError: If there is no update, or tensors are not like the server's.
        InputError: If the disk is full or cannot be written.
    """
    with TemporaryDirectory(prefix="updates-") as folder:
        spool = Spool(Path(folder), server)
        for update in updates:
            spool.add(update)
        if not len(spool):
            raise ValueError("there is no update to aggregate")
        yield spool


def _describe(state: State) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
