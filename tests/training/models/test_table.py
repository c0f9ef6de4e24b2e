import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from cache_schema.errors import InputError
from training.models.registry import MODELS
from training.models.size import count_parameters
from training.models.table import (
    MeasuredSize,
    Published,
    Variant,
    measure_models,
    remarks,
    size_table,
    write_sizes,
)
from training.models.unetmm.decoder import DecoderStage

ROOT = Path(__file__).parents[3]

SIZES = (
    MeasuredSize(
        Variant("flat", published=Published(2.0, 50.0, "a table")),
        shape=(1, 4, 224, 224),
        parameters=2_100_000,
        flops=40_000_000_000,
    ),
    MeasuredSize(Variant("deep"), shape=(1, 4, 6, 5, 3), parameters=30_000, flops=70_000_000),
)


def test_unetmm_has_the_size_that_the_paper_prints_within_1_percent():
    plain, with_en2 = measure_models(["unetmm"])
    assert all(abs(difference) < 1 for difference in plain.differences())
    assert with_en2.variant.options == {"fuse_en2": True}
    assert with_en2.flops > 5 * plain.flops
    assert with_en2.differences() is None


@pytest.mark.parametrize("document", ["README.md", "docs/model.md"])
def test_documents_say_that_the_flops_halve_if_a_multiply_add_counts_once(document):
    plain, _ = measure_models(["unetmm"])
    text = (ROOT / document).read_text(encoding="utf-8")
    assert {"69.15", "34.58"} == {f"{plain.flops / 1e9:.2f}", f"{plain.flops / 2e9:.2f}"}
    assert all(figure in text for figure in ("69.01", "69.15", "34.58"))


def test_the_document_of_the_network_says_what_equation_13_would_add_at_the_coarsest_level():
    plain, _ = measure_models(["unetmm"])
    more = count_parameters(DecoderStage(512, 0, 512))
    assert more == 512 * 512 + 512 + 2 * 512
    text = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
    assert f"{more / 1e6:.3f} M parameters, {(plain.parameters + more) / 1e6:.2f} M in all" in text


def test_a_network_without_entry_is_measured_on_a_slice():
    (size,) = measure_models(["tiny"])
    pixels = 224 * 224
    assert size.parameters == (4 * 6 * 9 + 6) + 2 * 6 + (6 * 3 + 3)
    assert size.flops == 2 * pixels * (4 * 6 * 9 + 6 * 3)


def test_every_network_is_measured_unless_some_are_named(monkeypatch):
    for name in set(MODELS) - {"tiny"}:
        monkeypatch.delitem(MODELS, name)
    monkeypatch.setitem(MODELS, "another", MODELS["tiny"])
    assert [size.variant.label for size in measure_models()] == ["tiny", "another"]


def test_rows_that_quote_another_variant_are_flagged():
    sizes = measure_models(["nnformer", "transbts"])
    tumour, synapse, transbts = sizes
    assert (tumour.variant.published, synapse.variant.published.parameters_m) == (None, 149.68)
    assert abs(synapse.differences()[0]) < 0.5
    assert synapse.shape == (1, 4, 64, 128, 128)
    lines = remarks(sizes)
    assert [line.split(":")[0] for line in lines] == ["nnformer", "nnformer, Synapse", "transbts"]
    assert "abdominal CT" in lines[1]
    assert transbts.parameters + 264_544 == pytest.approx(32.99e6, rel=1e-3)


def test_an_unknown_network_is_refused():
    with pytest.raises(InputError, match="--model alexnet"):
        measure_models(["alexnet"])


def test_differences_are_relative_to_the_paper():
    assert SIZES[0].differences() == pytest.approx((5.0, -20.0))


def test_the_table_shows_ours_the_papers_and_the_difference():
    file = io.StringIO()
    Console(width=80, file=file).print(size_table(SIZES))
    rows = [line.replace("│", " ").split() for line in file.getvalue().splitlines()]
    assert ["flat", "4x224x224", "2.10", "2", "+5.00", "40.00", "50", "-20.00"] in rows
    assert ["deep", "4x6x5x3", "0.03", "-", "-", "0.07", "-", "-"] in rows


def test_the_document_says_the_same(tmp_path):
    write_sizes(tmp_path / "sizes.json", SIZES)
    flat, deep = json.loads((tmp_path / "sizes.json").read_text())
    assert flat["published"] == {"gflops": 50.0, "parameters_m": 2.0, "source": "a table"}
    assert flat["difference_percent"] == pytest.approx({"parameters": 5.0, "flops": -20.0})
    assert (deep["parameters"], deep["flops"]) == (30_000, 70_000_000)
    assert deep["input_shape"] == [1, 4, 6, 5, 3]
    assert deep["published"] is deep["difference_percent"] is None


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(InputError, match=r"^--json .*sizes\.json cannot be written"):
        write_sizes(tmp_path / "taken" / "sizes.json", SIZES)
