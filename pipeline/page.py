"""Pictures of a cache as files: one self-contained HTML page, one PNG for a slide."""

import base64
from pathlib import Path
from typing import Final

import jinja2

from cache_schema.errors import InputError
from cache_schema.files import write_atomically
from cache_schema.leakage import SYNTHETIC_NOTE, describe_leakage
from cache_schema.manifest import Manifest, digest
from cache_schema.targets import require_writable_file
from cache_schema.vocabulary import COHORTS, LABELS
from pipeline.pictures import (
    Draw,
    caption,
    chart_figure,
    client_charts,
    cohort_charts,
    cohort_combinations,
    image_bytes,
    strip_figure,
    summary_figure,
)
from pipeline.specimens import LABEL_COLOURS, Specimen, panels, read_specimens

SLIDE_DPI: Final = 150


def write_pictures(
    cache: Path, manifest: Manifest, *, html: Path | None = None, png: Path | None = None
) -> list[Path]:
    """Write pictures of a cache.

    Args:
        cache: A finished cache.
        manifest: Its manifest.
        html: Page to write, or None.
        png: Picture to write, or None.

    Returns:
        What was written.

    Raises:
        InputError: If a path has another suffix, lies inside the cache or cannot be written, or a
            shard cannot be read. Suffixes and places are checked before anything is written.
    """
    asked = {"--html": (html, _page), "--png": (png, _slide)}
    wanted = [(option, out, render) for option, (out, render) in asked.items() if out is not None]
    for option, out, _ in wanted:
        _check_place(option, out, cache)
    specimens = read_specimens(cache, manifest)
    for option, out, render in wanted:
        content = render(manifest, specimens)
        write_atomically(out, content, option=option, advice="name a file that can be")
    return [out for _, out, _ in wanted]


def _check_place(option: str, out: Path, cache: Path) -> None:
    suffix = f".{option.removeprefix('--')}"
    if out.suffix.lower() != suffix:
        raise InputError(f"{option} {out} does not end in {suffix}; name a file that does")
    if cache.resolve() in out.resolve().parents:
        raise InputError(
            f"{option} {out} lies inside the cache, which `prep verify` would object to; name a file elsewhere"
        )
    require_writable_file(out, option)


def _slide(manifest: Manifest, specimens: list[Specimen]) -> bytes:
    return image_bytes(summary_figure(manifest, specimens), "png", SLIDE_DPI)


def _page(manifest: Manifest, specimens: list[Specimen]) -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    clients = manifest.partition.clients
    page = environment.get_template("show.html.j2").render(
        manifest=manifest,
        identity=digest(manifest),
        leakage=describe_leakage(manifest.leakage),
        synthetic_note=SYNTHETIC_NOTE,
        num_patients=len({case.patient_id for case in manifest.cases}),
        client_charts=_charts(client_charts(manifest)),
        cohort_charts=_charts(cohort_charts(manifest)),
        grades=sorted({grade for client in clients for grade in client.grades}),
        labels=LABEL_COLOURS,
        totals={name: sum(getattr(c.label_voxels, name) for c in clients) for name in LABELS},
        cohorts=[cohort for cohort in COHORTS if cohort in manifest.cohorts],
        num_shown=sum(specimen.case.split == "train" for specimen in specimens),
        combinations=cohort_combinations(manifest.cases),
        strips=[(specimen, caption(specimen), *_strip(specimen)) for specimen in specimens],
    )
    return page.encode()


def _strip(specimen: Specimen) -> tuple[str, str]:
    """Return what a specimen shows, in words, and its picture."""
    shown = [
        name if picture is not None else f"{name} absent" for name, picture in panels(specimen)
    ]
    return ", ".join(shown), _data_uri(image_bytes(strip_figure(specimen), "png"), "png")


def _charts(charts: dict[str, Draw]) -> dict[str, str]:
    return {
        title: _data_uri(image_bytes(chart_figure(draw), "svg"), "svg+xml")
        for title, draw in charts.items()
    }


def _data_uri(content: bytes, subtype: str) -> str:
    return f"data:image/{subtype};base64,{base64.b64encode(content).decode()}"
