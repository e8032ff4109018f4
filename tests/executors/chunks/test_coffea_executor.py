from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import awkward as ak
import cloudpickle
import coffea.processor
import pytest
from coffea.processor import ProcessorABC, Runner
from typing_extensions import override

import sonic_parsl as sonic
from sonic_parsl.errors import AnalysisError, InferenceError
from sonic_parsl.executors.chunks.coffea_executor import CoffeaExecutor
from sonic_parsl.executors.site import Site
from sonic_parsl.workflows import btag_ttbar, samples
from sonic_parsl.workflows.btag_inputs import CLASSES
from tests.executors.conftest import write_site
from tests.executors.scores import MODEL, Scores, run


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two workers, and two servers of the tagger and of a model that fails."""
    folder = tmp_path_factory.mktemp("site")
    for model in (MODEL.parents[1], Path(__file__).parents[2] / "models" / "failing"):
        shutil.copytree(model, folder / "models" / model.name)
    with sonic.load_site(write_site(folder), models=folder / "models") as opened:
        opened.wait_ready()
        yield opened


class ReadsNothing(ProcessorABC):  # type: ignore[misc]
    """Asks for scores, some of which cannot come, and reads none of them."""

    failing = sonic.Model("failing", inputs=["pt"], outputs=["score"])

    def __init__(self, *, read: bool = False) -> None:
        self.read = read

    @override
    def process(self, events: Any) -> dict[str, Any]:
        scores = self.failing(events.Jet)
        return {"events": len(events), "sum": float(ak.sum(scores.score)) if self.read else 0.0}

    @override
    def postprocess(self, accumulator: Any) -> Any:
        return accumulator


class ReturnsUnread(btag_ttbar.BTagTTbar):
    """Returns a column that nobody has read when process() ends."""

    @override
    def process(self, events: Any) -> dict[str, Any]:
        scores = self.tagger(events.Jet)
        return {"events": len(events), "scores": coffea.processor.column_accumulator(ak.flatten(scores.b).to_numpy())}


def test_it_has_every_field_of_coffeas_executor_and_other_defaults_only_where_it_must() -> None:
    ours = {field.name: getattr(CoffeaExecutor(), field.name) for field in fields(CoffeaExecutor)}
    theirs = coffea.processor.ParslExecutor()
    for field in fields(coffea.processor.ParslExecutor):
        if field.name not in {"merging", "jobs_executors", "merges_executors"}:
            assert ours[field.name] == getattr(theirs, field.name)
    assert ours["jobs_executors"] == ours["merges_executors"] == ["workers"]
    assert ours["merging"] == (5, 4, 100)


def test_a_copy_keeps_pool_and_log_and_neither_shows_in_the_repr(site: Site) -> None:
    executor = site.coffea_executor(recoverable=True)
    copied = executor.copy(unit="chunk")
    assert copied.log is executor.log
    assert copied.pool_ref is executor.pool_ref
    credentials = site.pool.ref.credentials
    assert credentials is not None
    assert credentials.key.splitlines()[1] not in repr(copied)


def test_a_failed_column_that_nobody_reads_is_a_warning_never_silence(site: Site) -> None:
    with pytest.warns(RuntimeWarning, match="was never read"):
        out = run(site.coffea_executor(status=False), ReadsNothing())
    assert out["events"] == 400
    assert any("failing" in text and "never read" in text for text in site.report().warnings)


@pytest.mark.parametrize("skipbadfiles", [False, True])
def test_a_failed_column_that_is_read_fails_the_run_and_drops_no_events(site: Site, *, skipbadfiles: bool) -> None:
    executor = site.coffea_executor(status=False, retries=0)
    runner = Runner(executor=executor, schema=btag_ttbar.schema, chunksize=100, skipbadfiles=skipbadfiles)
    with pytest.raises(InferenceError, match="this model always fails") as caught:
        runner(samples.fileset(), ReadsNothing(read=True))
    assert {"model", "server", "request", "chunk", "file"} <= set(caught.value.context)
    assert caught.value.__cause__ is None


class Leaves(btag_ttbar.BTagTTbar):
    """Ends its process, as a script would."""

    @override
    def process(self, events: Any) -> dict[str, Any]:
        sys.exit("no such sample")


def test_a_processor_that_exits_fails_the_run_and_no_worker(site: Site) -> None:
    with pytest.raises(AnalysisError, match=r"failed in process\(\) .*: SystemExit: no such sample"):
        run(site.coffea_executor(status=False), Leaves())


def test_results_leave_with_the_chunk_and_merge_on_the_workers(site: Site) -> None:
    out = run(site.coffea_executor(status=False), ReturnsUnread(), chunksize=10)
    assert len(out["scores"].value) == 1504 + 1636


@pytest.mark.parametrize("options", [{"merging": False}, {"compression": None}, {"recoverable": True}], ids=str)
def test_coffeas_own_options_work(site: Site, options: dict[str, Any]) -> None:
    out = run(site.coffea_executor(status=False, **options), Scores(), chunksize=50)
    assert out["events"] == 400


def test_savemetrics_works_and_chunk_records_name_chunk_model_and_servers(site: Site) -> None:
    before = len(site.report().chunk_records)
    runner = Runner(
        executor=site.coffea_executor(status=False), schema=btag_ttbar.schema, chunksize=40, savemetrics=True
    )
    _, metrics = runner(samples.fileset(), Scores())
    assert metrics["entries"] == 400
    records = site.report().chunk_records[before:]
    assert sum(record.entrystop - record.entrystart for record in records) == 400
    assert {record.model for record in records} == {"btag"}
    known = {entry.info.id for entry in site.pool.servers}
    assert all(record.servers and set(record.servers) <= known for record in records)
    assert all(len(record.fileuuid) == 36 and record.waiting_s >= 0 for record in records)


def test_a_processor_with_a_model_pickles_without_a_connection() -> None:
    again = cloudpickle.loads(cloudpickle.dumps(btag_ttbar.BTagTTbar()))
    assert again.tagger == btag_ttbar.BTagTTbar.tagger
    assert tuple(CLASSES) == ("b", "c", "light")


def test_a_run_leaves_the_processs_alarm_clock_alone(site: Site) -> None:
    rings: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: rings.append(number))
    left_s = signal.alarm(1000)
    try:
        run(site.coffea_executor(status=False), Scores())
        assert signal.alarm(0) > 0
        signal.raise_signal(signal.SIGALRM)
        assert rings == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.alarm(left_s)
