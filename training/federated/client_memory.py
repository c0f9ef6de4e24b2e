"""What clients keep from round to round, such as SCAFFOLD's control variates: a file each, not in memory."""

from pathlib import Path

from training.checkpoint import load_tensors, save_tensors
from training.federated.aggregate import State


class ClientMemory:
    """The files of all clients of a run in one process.

    A client's file names the round that wrote it. Files of a round that a kill cut short are newer
    than the last finished one and are ignored: the round is done again, from what was kept before.
    """

    def __init__(self, folder: Path) -> None:
        """Remember the folder; it is made when somebody keeps something."""
        self._folder = folder

    def load(self, client: int, before_round: int) -> State:
        """Read what a client kept in the last of its rounds before this one, or nothing."""
        paths = self._folder.glob(f"client-{client:02d}.*.safetensors")
        old = [path for path in paths if _round_of(path) < before_round]
        return load_tensors(max(old, key=_round_of)) if old else {}

    def save(self, client: int, round_number: int, state: State) -> None:
        """Keep what a client has to know in its next round.

        Raises:
            InputError: If the disk is full or cannot be written.
        """
        if state:
            self._folder.mkdir(exist_ok=True)
            save_tensors(self._path(client, round_number), state)

    def forget_before(self, finished_round: int) -> None:
        """Remove what nobody can need any more, now that a round is finished and saved."""
        newest: dict[str, tuple[int, Path]] = {}
        for path in self._folder.glob("client-*.safetensors"):
            client, number = path.name.split(".")[0], _round_of(path)
            if number > finished_round:
                continue
            if client in newest:
                min(newest[client], (number, path))[1].unlink()
            newest[client] = max(newest.get(client, (0, path)), (number, path))

    def _path(self, client: int, round_number: int) -> Path:
        return self._folder / f"client-{client:02d}.{round_number}.safetensors"


def _round_of(path: Path) -> int:
    return int(path.name.split(".")[1])
