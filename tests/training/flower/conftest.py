"""What a hospital holds: its own part of a cache, and a site."""

import shutil
from pathlib import Path

import pytest

from training.flower.site import Site, init_site


@pytest.fixture
def own_cache(small_cache, tmp_path) -> Path:
    """The part of client 1: no other client, no test set."""
    part = tmp_path / "own"
    shutil.copytree(small_cache / "clients/client-01", part / "clients/client-01")
    shutil.copy(small_cache / "manifest.json", part)
    return part


@pytest.fixture
def site(own_cache, tmp_path) -> Path:
    settings = Site(client=7, cache=str(own_cache), cache_client=1, device="cpu", loader_workers=0)
    init_site(tmp_path / "site", settings)
    return tmp_path / "site"
