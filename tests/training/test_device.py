import resource
import subprocess
import sys

import pytest
import torch

from cache_schema.errors import InputError
from training.device import choose_device


def test_cpu_is_cpu():
    assert choose_device("cpu") == torch.device("cpu")


def test_auto_finds_a_device_that_computes():
    assert torch.ones(2, device=choose_device("auto")).sum().item() == 2.0


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(InputError, match="--device abacus"):
        choose_device("abacus")


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
