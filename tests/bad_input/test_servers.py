"""Servers and workers that do not come up: what each block said last, and what to do, as the program's last words."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from parsl.executors.high_throughput.errors import WorkerLost
from parsl.jobs.errors import TooManyJobFailuresError

from sonic_parsl.errors import PoolError, PoolLostError
from sonic_parsl.executors.chunks.explain import parsl_explained
from sonic_parsl.pool.failures import LINES, tell
from sonic_parsl.pool.pool import ServerPool
from tests.bad_input.conftest import PACKAGED, assert_says
from tests.server.agents import agent

PROGRAM = Path(sys.executable).with_name("sonic-parsl")
END_S = 240.0
"""What a run may need to give up, on a busy machine."""

ENDS = "#!/bin/sh\necho 'I1019 starting' >&2\necho 'E1019 CUDA driver is too old' >&2\nexit 3\n"
HANGS = "#!/bin/sh\necho 'W1019 waiting for a licence' >&2\nexec sleep 1000\n"
DIVIDES = """
from coffea.processor import ProcessorABC
from sonic_parsl.workflows.btag_ttbar import schema

class Mine(ProcessorABC):
    def process(self, events):
        return {"sum": len(events) / 0}
    def postprocess(self, accumulator):
        return accumulator
"""


@dataclass(frozen=True)
class Run:
    """A run that cannot succeed.

    Attributes
    ----------
    server, workers
        Settings of the site file.
    """

    server: str = ""
    workers: str = ""
    workflow: str = "btag_ttbar"
    options: tuple[str, ...] = ()


RUNS = {
    "a Triton that ends": Run("runtime: host, binary: {folder}/ends"),
    "a job that hangs before its server starts": Run(
        "start-timeout: 4, worker-init: 'echo no licence for module cuda >&2; sleep 1000'"
    ),
    "workers that do not start": Run(workers="worker-init: 'echo no module gcc >&2; exit 7'"),
    "an error in process(), with --debug": Run(workflow="{folder}/mine.py", options=("--debug",)),
}
LAST_WORDS = {
    "a Triton that ends": (
        "The pool is lost: 3 servers in a row failed to start. Mend what they say:\n"
        "  blocks 0, 1, 2: Triton ended at its start with exit code 3.\n"
        "    I1019 starting\n    E1019 CUDA driver is too old"
    ),
    "a job that hangs before its server starts": (
        "The pool is lost: 3 servers in a row failed to start. Mend what they say:\n"
        "  blocks 0, 1, 2: no server was ready 4 s after it started\n"
        "    no licence for module cuda"
    ),
    "workers that do not start": (
        "Parsl could not run the work on its workers. Look at workers, worker-init and options, in the site file:\n"
        "…EXIT CODE: 7…no module gcc"
    ),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory, events: Path) -> Iterator[dict[str, tuple[int, str]]]:
    """Start every run at once, since they mostly wait; return exit codes and what they said, by their names."""
    folder = tmp_path_factory.mktemp("runs")
    write_script(folder / "ends", ENDS)
    (folder / "mine.py").write_text(DIVIDES)
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(started(run, folder / str(i), events))
            for i, (name, run) in enumerate(RUNS.items())
        }
        said = {name: process.communicate(timeout=END_S)[1] for name, process in running.items()}
        yield {
            name: (process.returncode, said[name].replace(str(folder), "{folder}")) for name, process in running.items()
        }


def write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@contextmanager
def started(run: Run, folder: Path, events: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a run in a folder of its own; end it where the test does not wait for it."""
    folder.mkdir()
    above = str(folder.parent)
    (folder / "site.yaml").write_text(
        f"servers: {{triton: {{count: 1, lease: 6, {run.server.replace('{folder}', above)}}}}}\n"
        f"workers: {{workers-per-node: 1, {run.workers}}}\ndriver: {{run-dir: {folder}/runs}}\n"
    )
    command = [
        str(PROGRAM),
        *run.options,
        "run",
        run.workflow.replace("{folder}", above),
        str(events),
        "--site",
        "site.yaml",
    ]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=END_S)


@pytest.mark.timeout(2 * END_S)
@pytest.mark.parametrize("name", LAST_WORDS)
def test_the_last_words_of_a_run_say_what_failed(ends: dict[str, tuple[int, str]], name: str) -> None:
    code, said = ends[name]
    assert code == 1
    assert "Traceback" not in said
    assert_says(f"\n{said}".partition("\nError: ")[2].strip(), LAST_WORDS[name])


@pytest.mark.timeout(2 * END_S)
def test_with_debug_the_traceback_of_the_worker_is_shown_too(ends: dict[str, tuple[int, str]]) -> None:
    code, said = ends["an error in process(), with --debug"]
    assert code == 1
    assert "line 7, in process" in said
    assert said.count("ZeroDivisionError: division by zero") >= 2
    assert "sonic_parsl.errors.AnalysisError: The analysis failed in process() ({folder}/mine.py, line 7)" in said


def test_a_triton_that_is_not_ready_in_time_says_what_it_wrote(tmp_path: Path) -> None:
    write_script(tmp_path / "hangs", HANGS)
    late: dict[str, Any] = {"runtime": "host", "binary": str(tmp_path / "hangs"), "start_timeout_s": 2.0}
    with ServerPool(run_dir=tmp_path / "run") as pool, agent(pool, tmp_path, PACKAGED, "btag", **late) as one:
        departure = one.departure()
    assert departure.failed
    assert (departure.reason, departure.stderr) == ("Triton was not ready after 2 s", "W1019 waiting for a licence")


# Ports -------------------------------------------------------------------------


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_registry_without_a_port_says_which_it_tried(tmp_path: Path, taken: int) -> None:
    with pytest.raises(PoolError) as caught:
        ServerPool(run_dir=tmp_path / "run", port_range=(taken, taken)).start()
    assert str(caught.value) == (
        f"The pool's registry did not start: There is no port from {taken} to {taken} to listen on at 127.0.0.1: "
        "Address already in use. Widen port-range in the site file, or correct the address."
    )


def test_a_server_without_a_port_says_which_it_tried(tmp_path: Path, taken: int) -> None:
    with (
        ServerPool(run_dir=tmp_path / "run") as pool,
        agent(pool, tmp_path, PACKAGED, "btag", port_range=(taken, taken)) as one,
    ):
        assert one.departure().reason == (
            f"There is no port from {taken} to {taken} to listen on at 127.0.0.1: Address already in use. "
            "Widen port-range in the site file, or correct the address."
        )


# What is told of blocks ----------------------------------------------------------


def test_each_block_has_a_paragraph_and_those_that_say_the_same_share_one() -> None:
    why = "Triton ended at its start with exit code 1.\nE1019 12:00:0{} 77 no such GPU"
    assert tell([("10", why.format(1)), ("2", why.format(2)), ("3", "its job ended as TIMEOUT")]) == (
        "  blocks 2, 10: Triton ended at its start with exit code 1.\n"
        "    E1019 12:00:01 77 no such GPU\n"
        "  block 3: its job ended as TIMEOUT"
    )
    assert tell([("0", "")]) == "  block 0: it does not say why"
    assert tell([("0", "reason\n" + "\n".join(map(str, range(99))))]).count("\n") == LINES


def test_servers_that_are_not_ready_in_time_are_told_with_the_blocks_that_failed(tmp_path: Path) -> None:
    with ServerPool(run_dir=tmp_path / "run") as pool:
        pool.failures["gpu"] = [("0", "its job ended as FAILED, exit code 7\nno module cuda")]
        with pytest.raises(PoolLostError) as caught:
            pool.wait_ready(timeout_s=0.1)
    assert str(caught.value) == (
        "0 of 1 servers are ready after 0.1 s: none joined. Raise start-timeout, or look at the batch system's queue, "
        "and at what failed:\n  block 0: its job ended as FAILED, exit code 7\n    no module cuda"
    )


def test_what_parsl_found_is_an_error_of_ours() -> None:
    with pytest.raises(PoolError) as lost, parsl_explained():
        raise WorkerLost(3, "node7")
    assert str(lost.value) == (
        "Each worker that tried a chunk was lost: Task failure due to loss of worker 3 on host node7. "
        "It may have had too little memory: try smaller chunks, or ask for more in the site file."
    )
    with pytest.raises(PoolError, match="Look at workers, worker-init and options"), parsl_explained():
        raise TooManyJobFailuresError("Error 1: EXIT CODE: 7")
