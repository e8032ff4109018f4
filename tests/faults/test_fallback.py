"""Runs that go on without servers, where the site file allows it: the same scores, and the report says who computed them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import sonic_parsl as sonic
from sonic_parsl.errors import PoolLostError
from sonic_parsl.executors.chunks.checkpointer import model_digests
from sonic_parsl.executors.site import Site
from sonic_parsl.pool import named
from tests.faults.runs import Analysis, agents, wait_at, wait_whole, write_site
from tests.leaks import assert_nothing_is_left, wait_until

PROGRAM = Path(sys.executable).with_name("sonic-parsl")
FALLBACK = "fallback: cpu\n"
FALLEN = "Model btag was computed by the workers themselves, in fp32 with ONNX Runtime. The pool"
"""... is lost, or, where its owner has ended since: its registry cannot be reached. A run may hear both."""


def site_file(folder: Path, init: str, *, fallback: str = FALLBACK, start_timeout_s: float = 5.0) -> Path:
    """Write a site whose jobs of servers begin with `init`."""
    path = write_site(folder, init=init)
    path.write_text(path.read_text().replace("start-timeout: 120", f"start-timeout: {start_timeout_s:g}") + fallback)
    return path


@contextmanager
def nothing_is_left() -> Iterator[None]:
    yield
    assert_nothing_is_left()


def check_report(site: Site, *, alone: bool) -> None:
    """Check that chunks say who computed them, and the report's warnings why."""
    report = site.report()
    fallen = [line for line in report.chunk_records if line.fallback]
    assert fallen
    assert not alone or len(fallen) == len(report.chunk_records)
    assert {line.numeric_kind for line in report.chunk_records} == {"fp32"}
    assert not [line for line in fallen if line.servers]
    assert len([text for text in report.warnings if text.startswith(FALLEN)]) in {1, 2}
    (model,) = report.models
    assert (model.numeric_kind, model.verified) == ("fp32", True)
    assert report.rows == sum(line.rows for line in report.models)


def test_a_queue_that_never_starts_a_server_is_no_end(analysis: Analysis, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with nothing_is_left(), sonic.load_site(site_file(tmp_path, wait_at(gate))) as site:
        site.wait_ready()
        with pytest.warns(RuntimeWarning, match=FALLEN):
            analysis.check(analysis.run(site.coffea_executor(status=False)))
        check_report(site, alone=True)
        assert list(model_digests(site.pool.table, site.pool.ref.fallback)) == ["btag/1", "shape_demo/1"]


def test_without_a_fallback_it_is_the_end(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    path = site_file(tmp_path, wait_at(gate), fallback="")
    with nothing_is_left(), sonic.load_site(path) as site, pytest.raises(PoolLostError):
        site.wait_ready()


class Doom:
    """Servers that go and of which none comes again.

    Attributes
    ----------
    init
        What jobs of servers begin with.
    """

    def __init__(self, folder: Path) -> None:
        self._broken = folder / "broken"
        self.init = f"test ! -e {self._broken} || exit 3"

    def come(self) -> None:
        """Let it come."""
        self._broken.touch()
        for agent in agents():
            agent.kill()


def test_a_pool_that_is_lost_in_the_middle_of_a_run_is_no_end(analysis: Analysis, tmp_path: Path) -> None:
    doom = Doom(tmp_path)
    with nothing_is_left(), sonic.load_site(site_file(tmp_path, doom.init, start_timeout_s=60)) as site:
        wait_whole(site)
        with pytest.warns(RuntimeWarning, match=FALLEN):
            analysis.check(analysis.run_and(doom.come, site, chunksize=25))
        check_report(site, alone=False)
        assert "3 servers in a row failed to start" in (site.pool.table.lost or "")
        assert not agents()


def test_a_run_that_attached_to_a_pool_goes_on_when_the_pool_is_lost(analysis: Analysis, home: Path) -> None:
    doom = Doom(home)
    path = site_file(home, doom.init, start_timeout_s=60)
    subprocess.run([PROGRAM, "pool", "start", "--site", path, "--name", "ours", "--daemon"], check=True)
    with nothing_is_left():
        with sonic.load_site(path, pool="ours") as site:
            wait_whole(site)
            with pytest.warns(RuntimeWarning, match=FALLEN):
                analysis.check(analysis.run_and(doom.come, site, chunksize=25))
            check_report(site, alone=False)
        wait_until(lambda: not named.running(), 60)
