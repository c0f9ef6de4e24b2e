"""What clients keep from round to round, such as SCAFFOLD's control variates: a file each, not in memory."""

from pathlib import Path

from cache_schema.errors import InputError
from cache_schema.files import refuse_links
from training.checkpoint import load_tensors, save_tensors
from training.federated.aggregate import State


class ClientMemory:
    """The files of some clients, or of one where it is at home.

    A client's file names the round that wrote it. The server knows the last round whose update it
    accepted: what was kept in a round that was refused, or cut short by a kill, does not count.
    """

    def __init__(self, folder: Path) -> None:
        """Remember the folder; it is made when somebody keeps something."""
        self._folder = folder

    def load(self, client: int, round_number: int | None) -> State:
        """Read what a client kept in a round, or nothing if that is None.

        Raises:
            InputError: If it is not there any more, or damaged.
        """
        if round_number is None:
            return {}
        path = self._path(client, round_number)
        if not path.exists():
            raise InputError(
                f"{path} is gone: client {client} cannot go on without what it kept in round "
                f"{round_number}; bring the file back, or begin a new run"
            )
        return load_tensors(path)

    def save(self, client: int, round_number: int, state: State) -> None:
        """Keep what a client has to know in its next round.

        Raises:
            InputError: If the disk is full or cannot be written, or the folder leads elsewhere.
        """
        refuse_links(self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self._path(client, round_number), state)

    def forget_all_but(self, client: int, round_number: int | None) -> None:
        """Remove a client's other files: the rounds before are over, those after do not count.

        Raises:
            InputError: If the folder leads elsewhere.
        """
        refuse_links(self._folder)
        kept = None if round_number is None else self._path(client, round_number)
        for path in self._folder.glob(f"client-{client:02d}.*.safetensors"):
            if path != kept:
                path.unlink()

    def _path(self, client: int, round_number: int) -> Path:
        return self._folder / f"client-{client:02d}.{round_number}.safetensors"
