"""What a pool lacks: memory, a port, room on the disk, a name. It goes on, or says clearly what is missing."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

import sonic_parsl as sonic
from sonic_parsl.errors import InferenceError, PoolError, PoolLostError
from sonic_parsl.ports import free_port
from tests.faults.runs import Analysis, tritons, wait_whole, write_site
from tests.leaks import assert_nothing_is_left, wait_until
from tests.pool.conftest import registry_of
from tests.server.conftest import running_triton

MODELS = Path(__file__).parents[1] / "models"
HUNGRY = sonic.Model("hungry", outputs=list("abcd"))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


# Memory -------------------------------------------------------------------------


@pytest.fixture
def hungry(tmp_path: Path) -> Path:
    """A repository with a model that wants much memory."""
    shutil.copytree(MODELS / "hungry", tmp_path / "models" / "hungry")
    return tmp_path / "models"


def test_no_memory_to_load_a_model_is_an_error_that_says_so(hungry: Path, tmp_path: Path) -> None:
    config = hungry / "hungry" / "config.pbtxt"
    config.write_text(config.read_text().replace('"asked"', '"loaded"'))
    with (
        sonic.load_site(write_site(tmp_path, count=1, more=f"models: {hungry}")) as site,
        pytest.raises(PoolLostError, match=r"3 servers in a row failed to start(?s:.*)MemoryError"),
    ):
        site.wait_ready()
    assert_nothing_is_left()


def test_no_memory_for_a_request_is_an_error_and_the_next_one_is_answered(hungry: Path, tmp_path: Path) -> None:
    rows = np.ones((3, 4), dtype="float32")
    with sonic.load_site(write_site(tmp_path, more=f"models: {hungry}")) as site:
        site.wait_ready()
        with pytest.raises(InferenceError, match="model hungry version 1") as caught:
            HUNGRY(2000 * rows, lazy=False)
        assert "MemoryError" in str(caught.value)
        assert HUNGRY(rows, lazy=False).a.to_list() == [1.0, 1.0, 1.0]
        assert len(site.pool.table.ready) == 2
    assert_nothing_is_left()


SMALL = """servers:
  small: {device: cpu, count: 1, lease: 5, start-timeout: 20, worker-init: 'export MALLOC_ARENA_MAX=1; ulimit -v 500000'}"""
"""In kB: enough for Python and its agent, and not for Triton, whose threads alone reserve more."""


def test_a_node_without_memory_for_triton_says_so_and_the_run_goes_on_elsewhere(
    analysis: Analysis, tmp_path: Path
) -> None:
    path = write_site(tmp_path, count=1)
    path.write_text(path.read_text().replace("servers:", SMALL, 1))
    with sonic.load_site(path) as site:
        assert isinstance(site.pool, sonic.ServerPool)
        pool = site.pool
        wait_until(lambda: any(one.failed for one in pool.departures), 60)
        analysis.check(analysis.run(site.coffea_executor(status=False)))
        failed = [one for one in pool.departures if one.failed]
        assert {one.group for one in failed} == {"small"}
        assert re.search(r"Triton (ended at its start with exit code|was not ready after)", failed[0].reason)
        assert failed[0].stderr
        report = site.report()
        assert [line.group for line in report.servers if line.rows] == ["triton"]
    assert_nothing_is_left()


# Ports --------------------------------------------------------------------------


@contextmanager
def taken(ports: range) -> Iterator[None]:
    """Listen on ports."""
    with ExitStack() as stack:
        for port in ports:
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        yield


def a_free_range(size: int) -> range:
    """Return so many ports in a row of which none is taken."""
    while True:
        first = free_port("127.0.0.1")
        with ExitStack() as stack:
            try:
                for port in range(first, first + size):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return range(first, first + size)


def test_ports_that_others_have_taken_are_left_out(analysis: Analysis, tmp_path: Path) -> None:
    ports = a_free_range(40)
    driver = f"port-range: [{ports[0]}, {ports[-1]}]"
    with taken(ports[:20]), sonic.load_site(write_site(tmp_path, driver=driver)) as site:
        site.wait_ready()
        analysis.check(analysis.run(site.coffea_executor(status=False)))
        addresses = [site.pool.ref.registries[0], *(entry.info.address for entry in site.pool.table.ready)]
        assert {int(address.rpartition(":")[2]) for address in addresses} <= set(ports[20:])
    assert_nothing_is_left()


def test_a_registry_whose_port_is_taken_when_it_starts_again_loses_the_pool(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pool = sonic.ServerPool(run_dir=tmp_path / "run")
    with pool, ExitStack() as stack:
        registry, port = registry_of(pool.ref), int(pool.ref.registries[0].rpartition(":")[2])
        registry.kill()

        def take() -> bool:
            try:
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                return False
            return True

        wait_until(take, 10)
        with pytest.raises(PoolLostError, match=rf"registry's port 127.0.0.1:{port} was taken when it had to start"):
            pool.wait_ready(timeout_s=30)


# The disk -----------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of so much room."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> None:
    """Leave no room on a disk."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


@needs_root
def test_a_disk_that_fills_up_in_mid_run_costs_nothing(analysis: Analysis, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        with sonic.load_site(write_site(tmp_path, driver=f"run-dir: {disk}")) as site:
            site.wait_ready()
            analysis.check(analysis.run_and(lambda: fill(disk), site))
        assert_nothing_is_left()


@needs_root
def test_a_run_does_not_start_on_a_full_disk_and_says_which(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        fill(disk)
        with pytest.raises(PoolError, match=rf"{disk}/.* cannot be written: No space left on device"):
            sonic.load_site(write_site(tmp_path, driver=f"run-dir: {disk}"))
        assert_nothing_is_left()


@needs_root
def test_a_node_without_room_for_the_models_is_an_error_that_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "16k") as disk:  # for folders, and not for models
        with (
            sonic.load_site(write_site(tmp_path, count=1, init=f"export TMPDIR={disk}")) as site,
            pytest.raises(PoolLostError, match=r"A copy of the models in .* cannot be written to .*: No space left"),
        ):
            site.wait_ready()
        assert_nothing_is_left()


# Names --------------------------------------------------------------------------

HOSTS = "127.0.0.1 localhost\n127.0.0.1 sonic-facility\n"
BY_NAME_SITE = """
workers: {provider: local, workers-per-node: 2}
servers: {facility: {static: [{url: "grpc://sonic-facility:%d", models: [btag], insecure: true}]}}
"""

BY_NAME = """
import sys
from pathlib import Path
import sonic_parsl as sonic
from tests.faults.runs import Analysis
from tests.pool.conftest import registry_of
from tests.server.conftest import running_triton
from tests.leaks import wait_until

def forget_the_name():
    hosts.write_text("127.0.0.1 localhost\\n")
    registry_of(site.pool.ref).kill()  # the next one has to connect anew, to a name that is no more
    wait_until(lambda: not site.pool.table.ready, 40)
    hosts.write_text(known)

if __name__ == "__main__":
    hosts, data, site_file = map(Path, sys.argv[1:])
    known = hosts.read_text()
    analysis = Analysis(data)
    with sonic.load_site(site_file) as site:
        site.wait_ready()
        analysis.check(analysis.run_and(forget_the_name, site))
    print("right", flush=True)
"""


@needs_root
def test_a_server_whose_name_stops_resolving_for_a_while_costs_nothing(analysis: Analysis, tmp_path: Path) -> None:
    hosts, script, site = tmp_path / "hosts", tmp_path / "by_name.py", tmp_path / "by-name.yaml"
    hosts.write_text(HOSTS)
    script.write_text(BY_NAME)
    packaged = Path(sonic.__file__).parent / "workflows" / "models"
    with running_triton(packaged, ("btag",), tmp_path / "triton.log") as triton:
        site.write_text(BY_NAME_SITE % triton.options.port)
        mounted = f"mount --bind {hosts} /etc/hosts && exec {sys.executable} {script} {hosts} {analysis.path} {site}"
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", mounted],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("right\n")
    assert_nothing_is_left(60)


# Models -------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["1/model.onnx", "weights.bin"])
def test_a_model_replaced_in_mid_run_does_not_come_in_with_the_next_server(
    file: str, analysis: Analysis, tmp_path: Path
) -> None:
    packaged = Path(sonic.__file__).parent / "workflows" / "models"
    shutil.copytree(packaged, tmp_path / "models")
    (tmp_path / "models" / "btag" / "weights.bin").write_bytes(b"what a program may read beside its versions")
    replaced = tmp_path / "models" / "btag" / file
    other = packaged / "shape_demo" / "1" / "model.onnx"
    with sonic.load_site(write_site(tmp_path, more=f"models: {tmp_path / 'models'}, serve: [btag]")) as site:
        site.wait_ready()
        wait_whole(site)

        def replace_model_and_kill_a_server() -> None:
            shutil.copy(other, replaced)
            tritons()[0].kill()

        analysis.check(analysis.run_and(replace_model_and_kill_a_server, site))
        assert isinstance(site.pool, sonic.ServerPool)
        pool = site.pool
        changed = re.compile("Model btag in .* was changed after the pool was started")
        wait_until(
            lambda: any(changed.search(departure.reason) for departure in pool.departures),
            30,
            what=lambda: pool.departures,
        )
        assert len(site.pool.table.ready) == 1
    assert_nothing_is_left()
