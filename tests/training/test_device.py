import errno
import fcntl
import resource
import subprocess
import sys

import pytest
import torch

from cache_schema.errors import InputError
from training.device import (
    choose_device,
    choose_devices,
    compile_where_it_pays,
    device_kind,
)


def test_cpu_is_cpu():
    assert choose_device("cpu") == torch.device("cpu")


def test_auto_finds_a_device_that_computes():
    assert torch.ones(2, device=choose_device("auto")).sum().item() == 2.0


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(InputError, match="--device abacus"):
        choose_device("abacus")


def test_a_list_is_one_device_for_each_entry():
    assert choose_devices("cpu,cpu") == (torch.device("cpu"),) * 2
    assert choose_devices("cpu") == (torch.device("cpu"),)


def test_a_list_is_refused_where_there_can_be_only_one():
    with pytest.raises(InputError, match="--device cpu,cpu: only `train fed`"):
        choose_device("cpu,cpu")


def test_kinds_are_not_mixed():
    with pytest.raises(InputError, match="--device cpu,meta: devices of different kinds"):
        choose_devices("cpu,meta")


@pytest.mark.parametrize(
    ("names", "kind"), [("cpu", "cpu"), ("cpu,cpu", "cpu"), ("cuda:31,cuda:7", "cuda")]
)
def test_the_kind_of_a_device_is_known_without_it(names, kind):
    assert device_kind(names) == kind


def test_auto_is_of_the_kind_that_is_there():
    assert device_kind("auto") == choose_device("auto").type


def test_compiling_where_files_cannot_be_locked_is_refused_with_what_to_do(monkeypatch, tmp_path):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "new"))
    monkeypatch.setattr(fcntl, "flock", refuse)
    network = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match=rf"{tmp_path}/new, .* without locks; .*--compile off"):
        compile_where_it_pays(network, "on", torch.device("cpu"))
    compile_where_it_pays(network, "auto", torch.device("cpu"))  # does not compile here


KEPT = """
import resource, torch
from training.device import keep_freed_memory
keep_freed_memory(torch.device("cpu"))
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"1" * 2**27  # freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_of_a_step_on_the_cpu_is_there_for_the_next_one():
    result = subprocess.run(
        [sys.executable, "-c", KEPT], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(result.stdout) * resource.getpagesize() < 2**20  # otherwise all 2**27 bytes
