from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sonic_parsl.executors.site import Site, load_site

SITE = """
workers: {provider: local, workers-per-node: 2}
servers:
  triton: {device: cpu, count: %s, lease: %g, start-timeout: 120}
"""


def write_site(folder: Path, *, count: str = "2", lease: float = 6.0) -> Path:
    path = folder / "test-site.yaml"
    path.write_text(SITE % (count, lease))
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two workers and two servers on this machine."""
    with load_site(write_site(tmp_path_factory.mktemp("site"))) as opened:
        opened.wait_ready()
        yield opened
