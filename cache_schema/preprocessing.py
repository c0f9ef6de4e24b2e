"""How a cache's slices were made, in a document that goes along with a model trained on them."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from annotated_types import MinLen

from cache_schema.errors import InputError
from cache_schema.manifest import Document, Manifest
from cache_schema.vocabulary import Modality


class Source(Document):
    """A cache that slices came from.

    Attributes:
        plane: Height and width of its slices.
        fingerprint: Of its preprocessing, which tells the preprocessing's version too.
    """

    plane: tuple[int, int]
    fingerprint: str


class PreprocessingRecord(Document):
    """All that is needed to prepare another case in the same way.

    Attributes:
        normalize: How intensities are scaled.
        bias_correct: Whether N4 ran first.
        geometry: `brats` refused anything but 240 x 240 x 155 at 1 mm.
        modalities: The order of the four.
        label_convention: What the label values mean.
        sources: The caches; more than one if hospitals have prepared their own with other planes.
    """

    normalize: Literal["zscore", "percentile"]
    bias_correct: bool
    geometry: Literal["brats", "any"]
    modalities: tuple[Modality, ...]
    label_convention: Literal["brats2018-2020"]
    sources: Annotated[tuple[Source, ...], MinLen(1)]


def record_preprocessing(manifest: Manifest) -> PreprocessingRecord:
    """Take from a manifest how its slices were made."""
    options = manifest.options
    return PreprocessingRecord(
        normalize=options.normalize,
        bias_correct=options.bias_correct,
        geometry=options.geometry,
        modalities=manifest.modalities,
        label_convention=manifest.label_convention,
        sources=(Source(plane=manifest.plane, fingerprint=manifest.fingerprint),),
    )


def unite_preprocessing(records: Mapping[int, PreprocessingRecord]) -> PreprocessingRecord:
    """Make one record of those of several clients.

    Slices of one patient must look the same wherever they are prepared. Only planes may differ, by
    which slices are padded.

    Args:
        records: By client; at least one.

    Raises:
        InputError: Naming two clients whose preprocessing differs, and in what.
    """
    (first, reference), *others = sorted(records.items())
    for client, record in others:
        differences = list(_differences(reference, record))
        if differences:
            raise InputError(
                f"clients {first} and {client} have prepared their slices in different ways "
                f"({', '.join(differences)}); let both run `prep partition` with the same options and release"
            )
    sources = {s.plane: s for record in records.values() for s in record.sources}
    united = tuple(sources[plane] for plane in sorted(sources))
    return reference.model_copy(update={"sources": united})


def _differences(one: PreprocessingRecord, other: PreprocessingRecord) -> Iterator[str]:
    for name in ("normalize", "bias_correct", "geometry", "modalities", "label_convention"):
        values = getattr(one, name), getattr(other, name)
        if values[0] != values[1]:
            yield f"--{name.replace('_', '-')} {values[0]} and {values[1]}"
    fingerprints = {source.plane: source.fingerprint for source in one.sources}
    # If a parameter differs, so do all fingerprints; what is left is the version.
    if any(fingerprints.get(s.plane, s.fingerprint) != s.fingerprint for s in other.sources):
        yield "fingerprints of the preprocessing"
