from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sonic_parsl.server.leash import NO_COMMAND, leashed

SLEEP = (sys.executable, "-I", "-S", "-c", "import time; print('up', flush=True); time.sleep(600)")
PARENT = """
import subprocess, sys
from sonic_parsl.server.leash import leashed
child = subprocess.Popen(leashed(sys.argv[2:], death_signal=int(sys.argv[1])), stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline(), flush=True)
child.wait()
"""


def started_by_a_parent(death_signal: signal.Signals, *command: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    argv = [sys.executable, "-c", PARENT, str(int(death_signal)), *command]
    parent = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    return parent, psutil.Process(int(parent.stdout.readline().split()[0]))


def kill(parent: subprocess.Popen[str]) -> None:
    parent.kill()
    parent.communicate()


def test_the_command_dies_with_a_parent_that_is_killed() -> None:
    parent, command = started_by_a_parent(signal.SIGKILL, *SLEEP)
    assert command.is_running()
    kill(parent)
    assert not psutil.wait_procs([command], timeout=5)[1]


def test_the_command_gets_the_signal_that_was_asked_for(tmp_path: Path) -> None:
    said = tmp_path / "said"
    handler = (
        "import pathlib, signal, sys, time\n"
        f"def end(*_): pathlib.Path({str(said)!r}).write_text('terminated'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(600)"
    )
    parent, command = started_by_a_parent(signal.SIGTERM, sys.executable, "-I", "-c", handler)
    kill(parent)
    assert not psutil.wait_procs([command], timeout=5)[1]
    assert said.read_text() == "terminated"


def test_the_command_replaces_the_leash_and_keeps_its_exit_code_and_arguments() -> None:
    argv = [sys.executable, "-I", "-c", "import os, sys; print(os.getpid(), sys.argv[1:]); sys.exit(7)", "a b", "$c"]
    process = subprocess.Popen(leashed(argv), stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=30)
    assert output.split(maxsplit=1) == [str(process.pid), "['a b', '$c']\n"]
    assert process.returncode == 7


def test_a_command_whose_parent_is_gone_already_never_runs(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    argv = leashed(["touch", str(touched)])
    argv[argv.index(str(os.getpid()))] = str(psutil.Process().ppid())
    done = subprocess.run(argv, check=False, timeout=30)
    assert done.returncode == -signal.SIGKILL
    assert not touched.exists()


def test_a_command_that_is_not_there_is_named() -> None:
    done = subprocess.run(leashed(["no-such-server"]), check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == NO_COMMAND
    assert done.stderr == "no-such-server cannot be started: No such file or directory.\n"


def test_the_leash_imports_nothing_of_the_project_and_starts_fast() -> None:
    loaded = "import sys; sys.exit(any(m.startswith(('sonic_parsl', 'numpy', 'site')) for m in sys.modules))"
    source = Path(leashed(["true"])[3]).read_text().replace('if __name__ == "__main__":', "if False:")
    assert subprocess.run([sys.executable, "-I", "-S", "-c", f"{source}\n{loaded}"], check=False).returncode == 0
    start = time.perf_counter()
    subprocess.run(leashed(["true"]), check=True)
    assert time.perf_counter() - start < 5.0


@pytest.mark.parametrize("death_signal", [signal.SIGKILL, signal.SIGTERM])
def test_the_arguments_name_signal_parent_and_command(death_signal: signal.Signals) -> None:
    assert leashed(["a", "b"], death_signal=death_signal)[4:] == [str(int(death_signal)), str(os.getpid()), "a", "b"]


def test_an_interrupt_of_the_process_group_spares_the_command() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.signal(signal.SIGINT, lambda *_: None)\n" + PARENT, "9", *SLEEP],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    command = psutil.Process(int(parent.stdout.readline().split()[0]))
    assert os.getpgid(command.pid) == command.pid != os.getpgid(parent.pid)
    os.killpg(parent.pid, signal.SIGINT)
    assert command.is_running()
    kill(parent)
    assert not psutil.wait_procs([command], timeout=5)[1]
