"""The command line: exit codes, and errors as sentences, said before anything starts."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import uproot
from click.testing import CliRunner, Result

from sonic_parsl.cli import main
from sonic_parsl.protocol import VERSION
from sonic_parsl.site import packaged_folder

MODELS = packaged_folder().parent / "workflows" / "models"
PROGRAM = Path(sys.executable).with_name("sonic-parsl")

Call = Callable[..., Result]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Call]:
    """Return a function that runs the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    handler, level = signal.getsignal(signal.SIGTERM), logging.getLogger("parsl").level
    yield lambda *args: CliRunner().invoke(main, [str(arg) for arg in args])
    signal.signal(signal.SIGTERM, handler)
    logging.getLogger("parsl").setLevel(level)


def program(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *args], cwd=cwd, capture_output=True, text=True, check=False)


def failure(result: Result) -> str:
    """Return what a failed command says."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


# Help and versions ----------------------------------------------------------


def commands(command: click.Command = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))


COMMANDS = [pytest.param(path, id=" ".join(("sonic-parsl", *path))) for path in commands()]


def test_the_commands_are_these() -> None:
    leaves = {" ".join(path) for path in commands()}
    assert {"run", "doctor", "status", "server install", "models check", "data fetch", "data generate"} <= leaves


@pytest.mark.parametrize("path", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_has_help(call: Call, path: tuple[str, ...], option: str) -> None:
    result = call(*path, option)
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")
    assert len(result.stdout.splitlines()) >= 5


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_tells_the_version(call: Call, path: tuple[str, ...]) -> None:
    result = call(*path, "--version")
    assert (result.exit_code, result.stdout) == (0, f"sonic-parsl, version {VERSION}\n")


# Wrong usage is 2 -----------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ((), "Usage: "),
        (("rnu",), "No such command 'rnu'"),
        (("run",), "Missing argument 'WORKFLOW'"),
        (("run", "btag_ttbar", "--chunksize", "0"), "Invalid value for '--chunksize'"),
        (("run", "btag_ttbar", "--sites", "local"), "No such option"),
        (("doctor", "local"), "Got unexpected extra argument (local)"),
        (("models",), "Usage: "),
        (("pool", "start", "--idle", "nan"), "Invalid value for '--idle': nan is not a finite number."),
        (("data", "generate", "x.root"), "Missing option '--events'"),
        (("data", "generate", "x.root", "--events", "-1"), "Invalid value for '--events'"),
    ],
)
def test_wrong_usage_exits_with_2(call: Call, args: tuple[str, ...], sentence: str) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_an_output_that_is_a_file_is_wrong_usage(call: Call, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    result = call("run", "btag_ttbar")
    assert result.exit_code == 2
    assert "Directory 'out' is a file." in result.stderr


# What fails is 1, and says why ----------------------------------------------


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("nosuch",), "Error: There is no workflow 'nosuch'. Give the path of a Python file, or one of: btag_ttbar."),
        (("gone.py",), "Error: There is no analysis file gone.py."),
        (("empty.py",), "should define one ProcessorABC class, found: none."),
        (("mine.py",), "Error: mine brings no input of its own. Name ROOT files or a fileset JSON."),
        (("btag_ttbar", "gone.root"), "Error: There is no file gone.root."),
        (("btag_ttbar", "empty.py"), "Error: empty.py is not a readable ROOT file: "),
        (("btag_ttbar", "bad.json"), "Error: bad.json is not valid JSON: "),
        (("btag_ttbar", "runs.root"), "Error: runs.root has no tree 'Events'; it has Runs."),
        (("btag_ttbar", "events.root", "--site", "nosuch"), "Error: There is no site 'nosuch'."),
        (("btag_ttbar", "events.root", "--site", "bad.json"), "Error: bad.json is not a site file."),
    ],
)
def test_a_run_that_cannot_work_fails_before_anything_starts(
    call: Call, tmp_path: Path, args: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "empty.py").write_text("x = 1")
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "bad.json").write_text("- 'a'")
    for name in ("Events", "Runs"):
        with uproot.recreate(tmp_path / f"{name.lower()}.root") as file:
            file[name] = {"x": np.arange(3)}
    assert sentence in failure(call("run", *args))
    assert not [path.name for path in (tmp_path / "out").glob("*")]


MINE = """
from coffea.processor import ProcessorABC
class Mine(ProcessorABC):
    def process(self, events): return {}
    def postprocess(self, accumulator): return accumulator
"""


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("run", "btag_ttbar", "events.root", "--site", ""), "There is no site ''. Give the path of a site file, or "),
        (
            ("run", "btag_ttbar", "events.root", "--pool", ""),
            "A pool cannot be named ''. Use letters, digits, - and _.",
        ),
        (("doctor", "--site", ""), "There is no site ''."),
        (("status", "--pool", ""), "A pool cannot be named ''."),
        (("pool", "stop", ""), "A pool cannot be named ''."),
        (("pool", "start", "--name", ""), "A pool cannot be named ''."),
        (
            ("pool", "start", "--site", "my.site.yaml"),
            (
                "The pool was given no name, and that of its site, 'my.site', cannot be one. "
                "Give it one of letters, digits, - and _ with --name."
            ),
        ),
    ],
)
def test_a_name_that_is_none_is_refused_and_not_taken_for_no_name(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with uproot.recreate(tmp_path / "events.root") as file:
        file["Events"] = {"x": np.arange(3)}
    assert failure(call(*args)).startswith(f"Error: {sentence}")


def test_a_sentence_is_one_line_however_narrow_the_terminal(call: Call) -> None:
    name = "a" * 200 + "[x].root"
    assert failure(call("run", "btag_ttbar", name)).startswith(f"Error: There is no file {name}. ")


def test_an_error_of_another_library_says_how_to_see_more(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    text = failure(call("data", "generate", "file/x.root", "--events", "1"))
    assert text.startswith("Error: ")
    assert "Run again with `sonic-parsl --debug ...` for the traceback." in text


@pytest.mark.parametrize(
    ("arguments", "debug"),
    [
        (("--debug", "run", "btag_ttbar", "gone.root"), True),
        (("run", "--debug", "btag_ttbar", "gone.root"), True),
        (("run", "btag_ttbar", "gone.root", "--debug"), True),
        (("run", "btag_ttbar", "gone.root"), False),
    ],
    ids=["before", "after", "at the end", "plain"],
)
def test_only_debug_shows_a_traceback(tmp_path: Path, arguments: tuple[str, ...], debug: bool) -> None:
    done = program(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) is debug
    assert "There is no file gone.root." in done.stderr


# Commands that need no pool --------------------------------------------------


def test_the_doctor_finds_nothing_missing_for_the_local_site(call: Call) -> None:
    result = call("doctor")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("ok      site file ")
    assert "problem" not in result.stdout


def test_the_doctor_probes_the_local_site(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    result = call("doctor", "--probe")
    assert result.exit_code == 0, result.output
    assert "ok      workers: " in result.stdout
    assert " is reached from the workers' " in result.stdout


def test_the_doctor_names_what_a_batch_site_lacks_and_fails(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "cluster.yaml").write_text("servers: {gpu: {provider: slurm, runtime: host, device: gpu}}")
    result = call("doctor", "--site", "cluster.yaml")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert "problem provider slurm: there is no sbatch here. Log in to a submit node." in lines
    assert "ok      servers gpu: runtime host is for the nodes to have; --probe looks" in lines
    assert f"ok      servers gpu: models {MODELS}" in lines


def test_the_doctor_on_a_site_that_is_nowhere_fails(call: Call) -> None:
    assert failure(call("doctor", "--site", "nosuch")).startswith("Error: There is no site 'nosuch'.")


def test_the_status_where_nothing_runs_is_a_sentence(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = call("status")
    assert (result.exit_code, result.stdout) == (0, "No run and no pool of yours is up.\n")
    assert json.loads(call("status", "--json").stdout)["pools"] == []
    assert failure(call("status", "--pool", "mine")).startswith("Error: There is no pool named mine.")
    assert failure(call("status", "--run-dir", tmp_path)).startswith(f"Error: There is no run in {tmp_path}.")


def test_good_models_are_listed(call: Call) -> None:
    result = call("models", "check", MODELS)
    assert result.exit_code == 0, result.output
    assert result.stdout == "btag: versions 1, fp32: good\nshape_demo: versions 1, fp32: good\n"


def test_each_problem_of_bad_models_is_a_line(call: Call, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "models" / name).mkdir(parents=True)
    lines = failure(call("models", "check", "models")).splitlines()
    assert len(lines) >= 2
    assert {name for name in ("one", "two") if any(name in line for line in lines)} == {"one", "two"}


def test_a_repository_that_is_not_there_is_a_problem(call: Call) -> None:
    assert failure(call("models", "check", "nowhere")).startswith("There is no model repository nowhere;")


def test_generated_files_have_the_events_asked_for(call: Call, tmp_path: Path) -> None:
    result = call("data", "generate", "some[1].root", "--events", "25", "--seed", "3")
    assert (result.exit_code, result.stdout) == (0, "Wrote some[1].root\n")
    with uproot.open({tmp_path / "some[1].root": "Events"}) as tree:
        assert tree.num_entries == 25


def test_samples_that_are_there_are_listed(call: Call) -> None:
    result = call("data", "fetch")
    assert result.exit_code == 0
    paths = [line.partition(": ")[2] for line in result.stdout.splitlines()]
    assert len(paths) >= 2
    assert all(Path(path).is_file() for path in paths)


def test_the_program_runs_by_name(tmp_path: Path) -> None:
    done = program("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"sonic-parsl, version {VERSION}\n")


def test_ctrl_c_while_the_program_is_imported_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, "-m", "sonic_parsl"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "\nAborted!\n")
