"""A job that Grid Engine refuses is told of in its own words, as recorded from a real one."""

from __future__ import annotations

from pathlib import Path

import pytest
from parsl.providers.errors import ScaleOutFailed

import sonic_parsl as sonic
from sonic_parsl.errors import PoolLostError
from sonic_parsl.executors.batch.providers import make_provider
from sonic_parsl.site import Count, Job
from tests.leaks import assert_nothing_is_left

REFUSED = 'Unable to run job: unknown resource "gpus".\nExiting.'
SITE = """
workers: {provider: local}
servers: {gpu: {provider: gridengine, request: -l gpus=1, device: cpu}}
driver: {run-dir: runs}
"""


@pytest.fixture
def qsub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A qsub that refuses every job."""
    path = tmp_path / "qsub"
    path.write_text(f"#!/bin/sh\ncat >&2 <<'E'\n{REFUSED}\nE\nexit 1\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return path


def test_a_refused_job_is_an_error_with_qsubs_words(qsub: Path, tmp_path: Path) -> None:
    provider = make_provider(Job(provider="gridengine"), count=Count())
    provider.script_dir = str(tmp_path)
    with pytest.raises(ScaleOutFailed, match=r'exit code 1: Unable to run job: unknown resource "gpus"\. Exiting\.'):
        provider.submit("agent", 1)
    qsub.write_text("#!/bin/sh\necho 17\n")
    assert provider.submit("agent", 1) == "17"


def test_a_pool_whose_jobs_are_refused_is_lost_with_qsubs_words(
    qsub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site.yaml").write_text(SITE)
    with sonic.load_site(tmp_path / "site.yaml") as site, pytest.raises(PoolLostError) as caught:
        site.wait_ready(60)
    assert 'qsub takes no job, exit code 1: Unable to run job: unknown resource "gpus".' in str(caught.value)
    assert_nothing_is_left()
