"""What the probe's jobs show, on this machine."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from sonic_parsl.executors.checks import probe as probe_module
from sonic_parsl.executors.checks.probe import Answer, probe
from sonic_parsl.protocol import VERSION
from sonic_parsl.server.probe_job import _visit
from sonic_parsl.site import SiteFile
from tests.leaks import our_processes, wait_until

HERE = socket.gethostname()


def probed(folder: Path, *, servers: str = "{}", **workers: str) -> list[Answer]:
    """Probe a local site, and see that nothing is left of it."""
    text = {
        "workers": workers,
        "servers": {"gpu": yaml.safe_load(servers)},
        "driver": {"run-dir": str(folder / "runs")},
    }
    answers = probe(SiteFile.model_validate(text))
    wait_until(lambda: not our_processes("probe_job", "sleep 100"), 20.0)
    assert list((folder / "runs").iterdir()) == []
    return answers


def problems(answers: list[Answer]) -> list[str]:
    return [text for good, text in answers if not good]


def test_each_kind_of_job_calls_the_driver_and_workers_reach_the_servers(tmp_path: Path) -> None:
    answers = probed(tmp_path)
    assert problems(answers) == []
    texts = [text.partition(" at ")[0] for _, text in answers]
    calls = [f"{name}: {HERE} has sonic-parsl {VERSION} and reaches the driver" for name in ("workers", "servers gpu")]
    assert texts[:3] == [*calls, f"servers gpu: {HERE} has what runtime wheel needs"]
    assert texts[3].endswith(f" on {HERE} is reached from the workers' {HERE}")


def test_a_node_without_what_a_server_needs_is_named(tmp_path: Path) -> None:
    servers = f"{{runtime: host, binary: tritonserver-of-nobody, models: {tmp_path / 'nowhere'}}}"
    found = problems(probed(tmp_path, servers=servers))
    assert [text.partition(f"servers gpu: {HERE}: ")[2].partition(". ")[0] for text in found] == [
        "There is no tritonserver-of-nobody here",
        f"The model repository {tmp_path / 'nowhere'} is not there",
    ]


def test_addresses_may_be_names_of_interfaces(tmp_path: Path) -> None:
    text = {"servers": {"gpu": {"address": "lo"}}, "driver": {"run-dir": str(tmp_path), "address": "lo"}}
    answers = probe(SiteFile.model_validate(text))
    assert problems(answers) == []
    assert "servers gpu: 127.0.0.1:" in answers[-1][1]


def test_the_drivers_port_and_the_servers_are_of_the_range(tmp_path: Path) -> None:
    first = 28_000
    text = {"servers": {"gpu": {}}, "driver": {"run-dir": str(tmp_path), "port-range": [first, first + 20]}}
    answers = probe(SiteFile.model_validate(text))
    assert problems(answers) == []
    ports = [int(text.rpartition("127.0.0.1:")[2].split()[0]) for _, text in answers if "127.0.0.1:" in text]
    assert len(ports) == 3
    assert all(first <= port <= first + 20 for port in ports)


def test_a_node_whose_python_has_no_sonic_parsl_is_named_with_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a Python started in a checkout finds it there
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(Path(sys._base_executable).resolve())  # type: ignore[attr-defined]
    (problem,) = problems(probed(tmp_path, **{"worker-init": f"export PATH={tmp_path / 'bin'}:$PATH"}))
    assert problem.startswith("workers: its job ended and has not called: ")
    assert "No module named 'sonic_parsl'" in problem
    assert problem.endswith("Let worker-init prepare an environment with sonic-parsl on the node.")


def test_another_version_on_a_node_is_a_problem(tmp_path: Path) -> None:
    folder = tmp_path / "other" / "sonic_parsl-9.9.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: sonic-parsl\nVersion: 9.9\n")
    (problem,) = problems(probed(tmp_path, servers=f'{{worker-init: "export PYTHONPATH={tmp_path / "other"}"}}'))
    assert problem == (
        f"servers gpu: {HERE} has sonic-parsl 9.9, and here is {VERSION}. Install the same version everywhere."
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can cut a process off from the network")
def test_a_node_that_does_not_reach_the_driver_is_a_problem(tmp_path: Path) -> None:
    cut_off = 'python3() { unshare --net "$(type -P python3)" "$@"; }; export -f python3'
    (problem,) = problems(probed(tmp_path, **{"worker-init": cut_off}))
    assert problem.startswith(f"workers: {HERE} cannot reach the driver at 127.0.0.1:")
    assert problem.endswith(
        "Correct the driver's address in the site file, or let the nodes through to its port-range."
    )


def test_a_job_that_runs_and_never_calls_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "RUN_S", 2.0)
    start = time.monotonic()
    (problem,) = [text for text in problems(probed(tmp_path, **{"worker-init": "sleep 100"})) if "workers: its" in text]
    assert "workers: its job has run for 2 s and has not called: it wrote nothing." in problem
    assert time.monotonic() - start < 40


def test_an_address_that_is_not_the_nodes_is_a_problem(tmp_path: Path) -> None:
    (problem,) = problems(probed(tmp_path, servers="{address: 192.0.2.1}"))
    assert problem.startswith("servers gpu: its job ended and has not called: ")
    assert "no port to listen on at 192.0.2.1" in problem


def test_a_port_that_is_closed_or_somebody_elses_is_not_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        threading.Thread(target=_say, args=(other, b"what?"), daemon=True).start()
        assert _visit("a" * 32, address) == "somebody else listens there"
    assert "refused" in _visit("a" * 32, address)


def _say(door: socket.socket, text: bytes) -> None:
    visitor, _ = door.accept()
    with visitor:
        visitor.sendall(text)


@pytest.mark.parametrize("said", [b"", b"x\n", b"{}\n", b"[" * 100_000 + b"\n"])
def test_who_is_none_of_the_jobs_is_not_listened_to(said: bytes) -> None:
    async def scenario() -> bytes:
        async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await probe_module._receive([], "token", reader, writer)

        server = await asyncio.start_server(receive, "127.0.0.1", 0, limit=probe_module.MAX_LINE)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(said)
            if not said:
                writer.write_eof()
            try:
                return await asyncio.wait_for(reader.read(), 5.0)
            except ConnectionResetError:
                return b""
            finally:
                writer.close()

    assert asyncio.run(scenario()) == b""
