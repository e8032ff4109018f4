"""What coffea makes of a pool that is lost: never fewer events without a word, and no minutes of retries."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from coffea.processor import Runner
from typing_extensions import override

import sonic_parsl as sonic
from sonic_parsl.errors import PoolLostError
from sonic_parsl.executors.chunks.checkpointer import Checkpointer, key_of
from sonic_parsl.executors.site import Site
from sonic_parsl.workflows import btag_ttbar
from sonic_parsl.workflows.generate import generate
from tests.faults.runs import CHUNK, EVENTS, Analysis, agents, workers, write_site
from tests.leaks import assert_nothing_is_left, wait_until

PACKAGED = Path(sonic.__file__).parent / "workflows" / "models"
MODELS = Path(__file__).parents[1] / "models"
AT_ONCE_S = 10.0
"""A run has failed so long after its pool was lost; what a worker has begun, it finishes."""


class Noted(btag_ttbar.BTagTTbar):
    """Notes each time it is run, in a file."""

    def __init__(self, notes: Path) -> None:
        self.notes = str(notes)

    @override
    def process(self, events: Any) -> dict[str, Any]:
        with Path(self.notes).open("a") as file:
            file.write(f"{events.metadata['entrystart']}\n")
        return super().process(events)


def fileset(analysis: Analysis) -> dict[str, Any]:
    return {"ttbar": {"files": {str(analysis.path): "Events"}}}


def notes_of(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


@pytest.fixture
def dying(tmp_path: Path) -> Any:
    """A site whose servers can be ended for good: once the file ``broken`` exists, no other starts."""
    return write_site(tmp_path, init=f"[ ! -e {tmp_path / 'broken'} ] || exit 1")


def end_servers(folder: Path) -> None:
    """Kill every server, and let none start again."""
    (folder / "broken").touch()
    for process in agents():
        process.kill()


@pytest.mark.parametrize("options", [{}, {"skipbadfiles": True}, {"skipbadfiles": (Exception,)}], ids=str)
def test_a_lost_pool_raises_and_each_chunk_is_tried_once(
    options: dict[str, Any], dying: Path, analysis: Analysis, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    with sonic.load_site(dying) as site:
        site.wait_ready()
        runner = Runner(
            executor=site.coffea_executor(status=False), schema=btag_ttbar.schema, chunksize=CHUNK, **options
        )
        lost_at: list[float] = []
        disturbed = _later(site, tmp_path, lost_at)
        with pytest.raises(PoolLostError, match="3 servers in a row failed to start"):
            runner(fileset(analysis), Noted(notes))
        failed_at = time.monotonic()
        disturbed.join()
        assert failed_at - lost_at[0] < AT_ONCE_S
        tried = notes_of(notes)
        assert len(tried) == len(set(tried)), "a chunk was tried again"
        assert len(tried) < EVENTS / CHUNK
    assert_nothing_is_left()


def _later(site: Site, folder: Path, lost_at: list[float]) -> threading.Thread:
    """End the servers in mid-run; note when the pool is lost."""

    def end() -> None:
        wait_until(lambda: len(notes_of(folder / "notes")) > 10, 60)
        end_servers(folder)
        wait_until(lambda: site.pool.table.lost, 60)
        lost_at.append(time.monotonic())

    thread = threading.Thread(target=end)
    thread.start()
    return thread


def test_what_was_finished_is_kept_by_a_recoverable_run(dying: Path, analysis: Analysis, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with sonic.load_site(dying) as site:
        site.wait_ready()
        executor = site.coffea_executor(status=False, recoverable=True)
        runner = Runner(executor=executor, schema=btag_ttbar.schema, chunksize=CHUNK)
        disturbed = _later(site, tmp_path, [])
        with pytest.raises(PoolLostError, match="3 servers in a row failed") as caught:
            runner(fileset(analysis), Noted(notes))
        disturbed.join()
        kept = vars(caught.value)["partial_output"]  # coffea puts it there
        report = site.report()
    assert 0 < kept["events"] < EVENTS
    assert kept["events"] % CHUNK == 0
    assert kept["events"] == report.events_out < report.events_in == EVENTS
    assert_nothing_is_left()


MORTAL = """
    def initialize(self, _):
        from pathlib import Path

        assert not Path({broken!r}).exists(), "no server starts any more"
"""


@pytest.fixture
def mortal(tmp_path: Path) -> Path:
    """The tagger's repository, with a model that cannot be loaded once the file ``broken`` exists."""
    shutil.copytree(PACKAGED / "btag", tmp_path / "models" / "btag")
    shutil.copytree(MODELS / "failing", tmp_path / "models" / "failing")
    with (tmp_path / "models" / "failing" / "1" / "failing.py").open("a") as file:
        file.write(MORTAL.format(broken=str(tmp_path / "broken")))
    return tmp_path / "models"


def test_the_command_line_says_once_why_a_pool_was_lost_in_mid_run(mortal: Path, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("sonic-parsl")
    argv: list[str | Path] = [program, "run", "btag_ttbar", generate(tmp_path / "events.root", events=200_000)]
    argv += ["--site", write_site(tmp_path), "--models", mortal, "--chunksize", "100", "--output", tmp_path / "out"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: any(worker.cpu_times().user > 3.0 for worker in workers()), 90)
            end_servers(tmp_path)
            out, errors = process.communicate(timeout=90)
        finally:
            process.kill()
    assert process.returncode == 1
    assert "The pool is lost" not in out
    before, verdict = errors.split("Error: The pool is lost: 3 servers in a row failed to start.")
    told = [line.strip() for line in verdict.splitlines() if line.startswith("    ")]
    assert any("no server starts any more" in line for line in told), verdict
    assert not [line for line in told if line in before]
    assert "Traceback" not in before + verdict
    assert " left: " not in before
    assert_nothing_is_left(60)


# Checkpoints -----------------------------------------------------------------------


def test_a_checkpoint_is_found_again_and_not_after_a_change_of_model_or_analysis(
    analysis: Analysis, tmp_path: Path
) -> None:
    models, notes, kept = tmp_path / "models", tmp_path / "notes", tmp_path / "kept"
    shutil.copytree(PACKAGED, models)
    path = write_site(tmp_path, count=1, more=f"models: {models}, serve: [btag]")

    def chunks_run(processor: Noted) -> tuple[int, Any]:
        before = len(notes_of(notes))
        with sonic.load_site(path) as site:
            checkpointer = site.checkpointer(kept, processor)
            executor = site.coffea_executor(status=False)
            runner = Runner(executor=executor, schema=btag_ttbar.schema, chunksize=1000, checkpointer=checkpointer)
            out = runner(fileset(analysis), processor)
        return len(notes_of(notes)) - before, out

    count, first = chunks_run(Noted(notes))
    assert count == EVENTS / 1000
    again, second = chunks_run(Noted(notes))
    assert again == 0
    assert second["b score"] == first["b score"]
    changed = Noted(notes)
    changed.cut = 3  # any attribute counts
    assert chunks_run(changed)[0] == count
    config = models / "btag" / "config.pbtxt"
    config.write_text(f"{config.read_text()}\n# a setting, as far as anybody knows\n")
    assert chunks_run(Noted(notes))[0] == count
    assert_nothing_is_left()


def test_the_key_of_a_checkpoint_is_that_of_analysis_and_models(tmp_path: Path) -> None:
    models = {"btag/1": "abc fp32"}
    key = key_of(Noted(tmp_path), models)
    assert key == key_of(Noted(tmp_path), models)
    assert key != key_of(Noted(tmp_path / "other"), models)
    assert key != key_of(Noted(tmp_path), {"btag/1": "abd fp32"})
    assert key != key_of(btag_ttbar.BTagTTbar(), models)
    assert Checkpointer("x", processor=Noted(tmp_path), models=models).checkpoint_dir.endswith(f"x/{key}")
