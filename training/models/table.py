"""How large each network is, beside what the paper says of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from rich.table import Table

from cache_schema.files import write_atomically
from training.models.initial import NUM_CLASSES
from training.models.nnformer.network import SYNAPSE
from training.models.registry import MODELS, build_model, find_network
from training.models.size import count_flops, count_parameters

SLICE_SHAPE: Final = (1, 4, 224, 224)
"""One axial slice in the paper's training crop: batch, modalities, height, width."""

VOLUME_SHAPE: Final = (1, 4, 128, 128, 128)
"""The crop that 3D networks are measured with in the literature."""


@dataclass(frozen=True)
class Published:
    """What the paper prints of a network.

    Attributes:
        parameters_m: Parameters, in millions.
        gflops: Floating-point operations of one forward pass, in 10^9.
        source: Where it is printed.
    """

    parameters_m: float
    gflops: float
    source: str


SEEN_AS: Final = "paper, tables 1 to 3"


@dataclass(frozen=True)
class Variant:
    """A row of the table: a network and how to measure it.

    Attributes:
        label: Names the row.
        options: Passed on to the network.
        shape: Of the input, batch and modalities included; by default a slice, or a patch of 128 voxels.
        published: The paper's figures, where it has any for this network.
        remark: What is to be known about these, or about ours.
    """

    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    published: Published | None = None
    remark: str = ""


VARIANTS: Final[dict[str, tuple[Variant, ...]]] = {
    "unetmm": (
        Variant("unetmm", published=Published(20.5, 69.01, "paper, tables 1 to 3")),
        Variant("unetmm --fuse-en2", options={"fuse_en2": True}),
    ),
    "unet3d": (Variant("unet3d", published=Published(16.32, 1899.47, SEEN_AS)),),
    "resunet3d": (Variant("resunet3d", published=Published(113.74, 2601.05, SEEN_AS)),),
    "transbts": (
        Variant(
            "transbts",
            published=Published(32.99, 263.73, SEEN_AS),
            remark="32.99 M hold 0.26 M that the authors' code never trains; 14.53 M in tables 1 and 2 stand "
            "beside 'w/o TTA', but flips at test time have no parameters",
        ),
    ),
    "unetr": (
        Variant(
            "unetr",
            published=Published(102.12, 179.78, "paper, table 3"),
            remark="tables 1 and 2 print 97.73 M and 292.18 G; MONAI's own builds parameters beside these that "
            "nothing reads, ours leaves them out",
        ),
    ),
    "swinunetr": (
        Variant(
            "swinunetr",
            published=Published(62.19, 794.02, "paper, table 3"),
            remark="tables 1 and 2 print 62.65 M and 194.02 G",
        ),
    ),
    "unetrpp": (Variant("unetrpp", published=Published(42.65, 139.41, "paper, table 3")),),
    "nnformer": (
        Variant(
            "nnformer",
            remark="the paper prints no figures of this variant, the one for brain tumours; tables 1 and 2 "
            "have 49.66 M",
        ),
        Variant(
            "nnformer, Synapse",
            options=SYNAPSE,
            shape=(1, 4, 64, 128, 128),
            published=Published(149.68, 372.06, "paper, table 3"),
            remark="table 3 prints the size of the variant for abdominal CT, whose patch is 64 x 128 x 128",
        ),
    ),
}
"""The rows of each key of `MODELS`; a network without an entry has one row, measured on a slice."""


@dataclass(frozen=True)
class MeasuredSize:
    """A row of the table with our own figures.

    Attributes:
        variant: What was measured.
        shape: Of its input, batch and modalities included.
        parameters: Numbers that training can change.
        flops: Of one forward pass, two a multiply-add.
    """

    variant: Variant
    shape: tuple[int, ...]
    parameters: int
    flops: int

    def differences(self) -> tuple[float, float] | None:
        """Compare with the paper: parameters and FLOPs, in percent of the paper's figure."""
        published = self.variant.published
        if published is None:
            return None
        return (
            100 * (self.parameters / 1e6 / published.parameters_m - 1),
            100 * (self.flops / 1e9 / published.gflops - 1),
        )


def measure_models(names: Sequence[str] = ()) -> tuple[MeasuredSize, ...]:
    """Build networks with random weights and count; nothing is downloaded or trained.

    Args:
        names: Keys of `MODELS`; none means all of them.

    Raises:
        InputError: If there is no such network.
    """
    return tuple(
        _measure(name, variant)
        for name in names or MODELS
        for variant in VARIANTS.get(name, (Variant(name),))
    )


def _measure(name: str, variant: Variant) -> MeasuredSize:
    is_3d = find_network(name).is_3d
    shape = variant.shape or (VOLUME_SHAPE if is_3d else SLICE_SHAPE)
    patch = {"patch": shape[2:]} if is_3d else {}
    with torch.random.fork_rng(devices=[]):
        model = build_model(name, num_classes=NUM_CLASSES, **variant.options, **patch)
    return MeasuredSize(variant, shape, count_parameters(model), count_flops(model, shape))


def size_table(sizes: Sequence[MeasuredSize]) -> Table:
    """Show measured sizes beside the paper's."""
    table = Table(
        title="Size of the networks",
        caption="FLOPs of one forward pass, two a multiply-add; paper: as published, where some count a "
        "multiply-add once; +/-: ours relative to it, in percent",
    )
    table.add_column("network", min_width=10)
    table.add_column("input", no_wrap=True)
    for heading in ("params M", "paper", "+/- %", "FLOPs G", "paper", "+/- %"):
        table.add_column(heading, justify="right")
    for size in sizes:
        published, differences = size.variant.published, size.differences()
        table.add_row(
            size.variant.label,
            "x".join(str(side) for side in size.shape[1:]),
            f"{size.parameters / 1e6:.2f}",
            "-" if published is None else f"{published.parameters_m:g}",
            "-" if differences is None else f"{differences[0]:+.2f}",
            f"{size.flops / 1e9:.2f}",
            "-" if published is None else f"{published.gflops:g}",
            "-" if differences is None else f"{differences[1]:+.2f}",
        )
    return table


def remarks(sizes: Sequence[MeasuredSize]) -> list[str]:
    """List what is to be known about rows: a line for each that there is something about."""
    return [f"{size.variant.label}: {size.variant.remark}" for size in sizes if size.variant.remark]


def write_sizes(path: Path, sizes: Sequence[MeasuredSize]) -> None:
    """Save measured sizes as a JSON list, a document for each row.

    Raises:
        InputError: If the file cannot be written.
    """
    text = json.dumps([_document(size) for size in sizes], indent=1, sort_keys=True) + "\n"
    write_atomically(path, text, option="--json", advice="name a file that can be")


def _document(size: MeasuredSize) -> dict[str, Any]:
    published, differences = size.variant.published, size.differences()
    return {
        "network": size.variant.label,
        "input_shape": list(size.shape),
        "parameters": size.parameters,
        "flops": size.flops,
        "published": None if published is None else asdict(published),
        "remark": size.variant.remark,
        "difference_percent": None
        if differences is None
        else {"parameters": differences[0], "flops": differences[1]},
    }
