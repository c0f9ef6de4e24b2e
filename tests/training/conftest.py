"""A network small enough to train in a blink, and a run of it."""

import math
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from cache_schema.manifest import LeakageRecord
from cache_schema.vocabulary import REGIONS
from training.config import CONFIG_NAME, TrainConfig
from training.federated.engine import run_federation
from training.models.logits import SCALE_RATIOS, Logits
from training.models.registry import MODELS, Network
from training.provenance import PREPROCESSING_NAME, PROVENANCE_NAME
from training.scores import CaseScore, Evaluation


class TinyNet(nn.Module):
    """Two convolutions and a BatchNorm behind the interface of the real networks."""

    def __init__(self, num_classes, position="2d", position_levels="last", fuse_en2=False):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv2d(6, num_classes, 1),
        )

    def forward(self, image):
        planes = self.layers(image)
        return Logits(planes, (planes,) * len(SCALE_RATIOS), SCALE_RATIOS)


class Tiny3d(nn.Module):
    """The same in three dimensions."""

    def __init__(self, *, num_classes, patch, width: int = 6):
        super().__init__()
        self.patch = patch
        self.layers = nn.Sequential(
            nn.Conv3d(4, width, 3, padding=1),
            nn.BatchNorm3d(width),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv3d(width, num_classes, 1),
        )

    def forward(self, image):
        assert image.shape[2:] == self.patch
        return Logits(self.layers(image))


class Silent:
    """An observer that only counts."""

    def __init__(self):
        self.plan, self.steps, self.rounds = None, [], []

    def started(self, *, num_rounds, num_steps):
        self.plan = (num_rounds, num_steps)

    def step(self, *, round_number, client, loss):
        self.steps.append((round_number, client, loss))

    def round_done(self, record):
        self.rounds.append(record)


@pytest.fixture(autouse=True, scope="session")
def _tiny_network():
    MODELS["tiny"] = Network(TinyNet)
    MODELS["tiny3d"] = Network(Tiny3d, is_3d=True, tiny={"width": 3})
    yield
    del MODELS["tiny"], MODELS["tiny3d"]


@pytest.fixture
def failing_sync(monkeypatch):
    """Gives a block in which the n-th sync of a file raises an error, of a run's settings not counted."""
    settings = {CONFIG_NAME, PROVENANCE_NAME, PREPROCESSING_NAME}

    @contextmanager
    def fail(number, error):
        calls = []

        def sync(descriptor):
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path.is_dir() or path.name in settings:
                return
            calls.append(1)
            if len(calls) == number:
                raise error

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", sync)
            yield

    return fail


@pytest.fixture
def observer():
    return Silent()


@pytest.fixture(scope="session")
def tiny_config() -> TrainConfig:
    return TrainConfig(
        model="tiny",
        weights="none",
        rounds=2,
        local_epochs=1,
        batch_size=16,
        learning_rate=1e-2,
        crop=32,
        loader_workers=0,
        device="cpu",
    )


@pytest.fixture(scope="session")
def tiny_run(small_cache, tiny_config, tmp_path_factory, _tiny_network) -> Path:
    """A finished run; never write to it."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("runs") / "tiny"
    run_federation(tiny_config, small_cache, run, Silent())
    return run


def values(et, tc, wt, hd95_mm=(1.0, 2.0, 3.0)):
    dice = {"ET": et, "TC": tc, "WT": wt}
    return {
        "dice": dice,
        "hd95_mm": dict(zip(REGIONS, hd95_mm, strict=True)),
        "sensitivity": {region: value / 2 for region, value in dice.items()},
        "specificity": dict.fromkeys(REGIONS, 0.9990004),
    }


@pytest.fixture
def evaluation():
    """Makes the scores of three cases of two patients, of round 4 unless told otherwise."""
    leakage = LeakageRecord(protocol="paper", cohorts={}, test_patients=3, also_in_training=2)

    def make(round_number=4, **changes):
        scores = (
            CaseScore("a", "p", "brats2018", values(0.2, 0.4, 0.9)),
            CaseScore("b", "p", "brats2018", values(0.4, 0.8, 0.9)),
            CaseScore("c", "q", "brats2020", values(0.0, 0.0, 0.6, hd95_mm=(373.1287, 8.0, 5.0))),
        )
        fields = {"scores": scores, "convention": "brats2020", "round": round_number}
        return Evaluation(**{"leakage": leakage, "manifest": "digest"} | fields | changes)

    return make


@pytest.fixture
def holes(evaluation):
    """One case without ET, and one cohort without any."""
    scores = (
        CaseScore("a", "p", "brats2018", values(math.nan, 0.5, 0.9, hd95_mm=(math.nan, 4.0, 2.0))),
        CaseScore("b", "q", "brats2018", values(0.4, 0.7, 0.9)),
        CaseScore(
            "c",
            "r",
            "brats2020",
            values(math.nan, math.nan, 0.6, hd95_mm=(math.nan, math.nan, 5.0)),
        ),
    )
    return evaluation(scores=scores, convention="nan-drop")
