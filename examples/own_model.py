"""Networks of one's own, trained in a federation and centrally, scored and reported like ours."""

import argparse
from pathlib import Path

from rich.console import Console
from torch import Tensor, nn

from training.central import run_central
from training.config import CENTRAL, make_config
from training.evaluate import evaluate
from training.federated.engine import run_federation
from training.models.logits import Logits
from training.models.registry import MODELS, Network
from training.report.page import write_report
from training.runlog import Silent
from training.score_files import write_evaluation
from training.show import score_table


class OwnNet2d(nn.Module):
    """Takes slices; `width` becomes `--model-option width=...`."""

    def __init__(self, *, num_classes: int, width: int = 16) -> None:
        """Make three layers."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, num_classes, 1),
        )

    def forward(self, image: Tensor) -> Logits:
        """Turn (batch, 4, row, column) into planes of the same size, without a sigmoid."""
        return Logits(self.layers(image))


class OwnNet3d(nn.Module):
    """Takes patches of volumes, all of the size `patch`: slices, rows and columns."""

    def __init__(
        self,
        *,
        num_classes: int,
        patch: tuple[int, int, int],  # noqa: ARG002 - convolutions take any; a ViT would need it
        width: int = 8,
    ) -> None:
        """Make layers of two resolutions."""
        super().__init__()
        self.fine = nn.Sequential(
            nn.Conv3d(4, width, 3, padding=1), nn.BatchNorm3d(width), nn.ReLU()
        )
        self.coarse = nn.Sequential(
            nn.Conv3d(width, width, 4, stride=2, padding=1), nn.BatchNorm3d(width), nn.ReLU()
        )
        self.enlarge = nn.ConvTranspose3d(width, width, 2, stride=2)
        self.head = nn.Conv3d(width, num_classes, 1)

    def forward(self, image: Tensor) -> Logits:
        """Turn (batch, 4, slice, row, column) into planes of the same size, without a sigmoid."""
        fine = self.fine(image)
        return Logits(self.head(fine + self.enlarge(self.coarse(fine))))


MODELS["own2d"] = Network(OwnNet2d, tiny={"width": 4})
MODELS["own3d"] = Network(OwnNet3d, is_3d=True, tiny={"width": 4})


def train_both(cache: Path, folder: Path, steps: int, crop: int | None) -> list[Path]:
    """Train one in a federation of all clients, three rounds, and one centrally, three epochs."""
    settings = {
        "weights": "none",  # those of ImageNet are for the encoder of `unetmm`
        "target": "regions",
        "rounds": 3,
        "local_steps": steps,
        "learning_rate": 1e-2,
        "crop": crop,  # None: what is usual
        "loader_workers": 0,  # a run this short would wait longer for a process than for slices
    }
    federated, central = folder / "own2d", folder / "own3d"
    config = make_config(model="own2d", strategy="fedavg", **settings)
    run_federation(config, cache, federated, Silent())
    config = make_config(model="own3d", strategy=CENTRAL, depth=16, batch_size=2, **settings)
    run_central(config, cache, central, Silent())
    return [federated, central]


def score(run: Path, cache: Path) -> None:
    """Score whole test cases; the table says by which protocol, and who was also trained on."""
    evaluation = evaluate(run, cache, on_case=lambda _case_id, _num_cases: None)
    write_evaluation(run, evaluation)
    Console().print(score_table(evaluation, run.name))


def main(cache: Path, runs: Path, steps: int, crop: int | None) -> None:
    """Train, score, and write a page about both."""
    folders = train_both(cache, runs, steps, crop)
    for run in folders:
        score(run, cache)
    write_report(folders, cache, runs / "report.html")
    print(f"written: {runs / 'report.html'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/own"), help="a new folder")
    parser.add_argument("--steps", type=int, default=40, help="of every client and round")
    parser.add_argument("--crop", type=int, help="side of it; by default 224 in 2D, 128 in 3D")
    main(**vars(parser.parse_args()))
