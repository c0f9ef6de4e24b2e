"""A network as a file: it computes the same, it says what it is, or it is not there."""

import json
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cache_schema.errors import InputError
from training.config import read_config
from training.export import (
    FORMATS,
    METADATA_NAME,
    SLICES_TO_CHECK,
    Probabilities,
    export_network,
    export_run,
    largest_difference,
)
from training.models.trained import trained_model


@pytest.fixture(scope="module", params=sorted(FORMATS))
def exported(request, tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / f"model{request.param}"
    assert export_run(tiny_run, out) <= 1e-4
    return out


def metadata_of(path):
    if path.suffix == ".onnx":
        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(METADATA_NAME)]
        return json.loads(archive.read(name))


def test_any_number_of_slices_of_any_size_gives_the_same_probabilities(exported, tiny_run):
    network, _ = trained_model(tiny_run, read_config(tiny_run))
    network.eval()
    run = FORMATS[exported.suffix].load(exported)
    for shape in ((5, 4, 160, 96), (1, 4, 256, 256)):
        image = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = network(image).final.sigmoid().numpy()
        np.testing.assert_allclose(run(image.numpy()), expected, atol=1e-5)


def test_the_file_says_what_goes_in_and_what_comes_out(exported):
    found = metadata_of(exported)
    assert json.loads(found["modalities"]) == ["t1", "t1ce", "t2", "flair"]
    assert json.loads(found["planes"]) == {"NEC": [1], "ED": [2], "ET": [4]}
    assert found["label_convention"] == "brats2018-2020"
    assert json.loads(found["preprocessing"])["normalize"] == "zscore"
    assert (found["model"], found["round"]) == ("tiny", "2")
    assert "after the sigmoid" in found["output"]


def test_the_file_stands_alone_and_names_no_folder_of_this_machine(exported):
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]
    content = exported.read_bytes()
    if exported.suffix == ".pt2":
        with zipfile.ZipFile(exported) as archive:
            content = b"".join(map(archive.read, archive.namelist()))
    assert b".py" not in content
    assert str(exported.parent).encode() not in content


def test_input_and_output_have_names_in_onnx(tiny_run, tmp_path):
    export_run(tiny_run, tmp_path / "m.onnx")
    onnx.checker.check_model(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["image"]
    assert [each.name for each in session.get_outputs()] == ["probability"]


@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_a_changed_weight_is_noticed_and_leaves_no_file(suffix, tiny_run, tmp_path, monkeypatch):
    network, _ = trained_model(tiny_run, read_config(tiny_run))
    form = FORMATS[suffix]

    def spoil(path, program, metadata):
        weight = next(iter(program.state_dict.values()))
        weight.data[0, 0, 0, 0] += 0.5
        form.write(path, program, metadata)
        weight.data[0, 0, 0, 0] -= 0.5

    monkeypatch.setitem(FORMATS, suffix, type(form)(spoil, form.load))
    with pytest.raises(InputError, match=r"would differ from the network by .*nothing was written"):
        export_network(network, tmp_path / f"m{suffix}", {})
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_is_no_number_is_a_difference(tiny_run):
    network, _ = trained_model(tiny_run, read_config(tiny_run))
    broken = largest_difference(
        Probabilities(network).eval(),
        lambda image: np.full(image[:, :3].shape, np.nan),
        SLICES_TO_CHECK,
    )
    assert np.isnan(broken)


def test_a_name_without_a_known_suffix_is_refused(tiny_run, tmp_path):
    with pytest.raises(InputError, match=r"give a name that ends in \.onnx or \.pt2"):
        export_run(tiny_run, tmp_path / "model.pth")
