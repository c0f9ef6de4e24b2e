"""The extra `onnx`: what it lacks is said in one line. What it writes is in test_export.py."""

import pytest

from cache_schema.errors import InputError
from training import onnx_format
from training.export import export_run


def test_a_missing_extra_is_named_before_anything_is_done(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_format, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(InputError, match=r"python -m pip install 'fedunetmm\[onnx\]'"):
        export_run(tiny_run, tmp_path / "model.onnx")
    export_run(tiny_run, tmp_path / "model.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
