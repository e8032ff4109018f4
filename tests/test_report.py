"""The report counts each event, row and request once, in a fixed format."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from coffea.processor.executor import WorkItem
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sonic_parsl.client.latency import bucket
from sonic_parsl.client.records import CallRecord, ServerShare
from sonic_parsl.client.scope import Chunk
from sonic_parsl.protocol import ServedModel, ServerEntry, ServerInfo, ServerLoad
from sonic_parsl.report import ChunkRecord, Report, RunLog

CHUNK = Chunk(fileuuid="2a1d", entrystart=0, entrystop=100)
SERVER = "triton-0-3fa9c1"


def entry(server: str = SERVER, *, load: ServerLoad | None = None, **changes: Any) -> ServerEntry:
    model = ServedModel("btag", "1", max_batch_size=64, inputs=(), outputs=(), source_digest="d1")
    fields: dict[str, Any] = {
        "group": "triton",
        "kind": "cpu",
        "fidelity": "hardware",
        "node": "node7",
        "address": "a:1",
        "block_id": "0",
        "job_id": "4711",
        "models": (model,),
    }
    return ServerEntry(info=ServerInfo(id=server, **(fields | changes)), state="ready", load=load or ServerLoad())


def call(rows: int = 10, **changes: Any) -> CallRecord:
    share = ServerShare(rows=rows, requests=1, latencies={bucket(0.010): 1})
    fields: dict[str, Any] = {"requests": 1, "servers": {SERVER: share}, "numeric_kind": "fp32", "read": True}
    return CallRecord("btag", "1", rows=rows, **(fields | changes))


def item(start: int, stop: int) -> WorkItem:
    return WorkItem("tt", "a.root", "Events", start, stop, b"\x00" * 16, {})


def log_of(*calls: CallRecord) -> RunLog:
    log = RunLog()
    items = [item(0, 100), item(100, 150)]
    with log.running(items):
        log.take([ChunkRecord.of(CHUNK, call) for call in calls], {"out": {}, "processed": set(items)})
    return log


def written(report: Report, folder: Path) -> Any:
    report.write(folder / "report.json")
    return json.loads((folder / "report.json").read_text())


TOP = [
    *("schema", "events_in", "events_out", "chunks", "rows", "rows_cached", "rows_sent", "rows_retried"),
    *("rows_padded", "nans", "requests", "retries", "failovers", "wall_s", "waiting_s"),
    *("servers", "models", "chunk_records", "warnings"),
]
SERVERS = [
    *(
        "id",
        "group",
        "kind",
        "fidelity",
        "node",
        "job_id",
        "devices",
        "rows",
        "verified",
        "p50_ms",
        "p99_ms",
        "queue_ms",
        "compute_ms",
    ),
]
CHUNKS = [
    *("fileuuid", "entrystart", "entrystop", "model", "servers", "numeric_kind", "fallback", "waiting_s"),
]


def test_the_file_has_exactly_the_fields_that_others_read(tmp_path: Path) -> None:
    data = written(log_of(call(waiting_s=0.5)).report([entry()]), tmp_path)
    assert list(data) == TOP
    assert [list(line) for line in data["servers"]] == [SERVERS]
    assert [list(line) for line in data["chunk_records"]] == [CHUNKS]
    assert [list(line) for line in data["models"]] == [
        ["name", "version", "numeric_kind", "rows", "requests", "source_digest", "verified"]
    ]
    assert data["schema"] == 1
    assert data["chunk_records"][0] == {
        "fileuuid": "2a1d",
        "entrystart": 0,
        "entrystop": 100,
        "model": "btag",
        "servers": [SERVER],
        "numeric_kind": "fp32",
        "fallback": False,
        "waiting_s": 0.5,
    }


def test_a_run_without_inference_has_a_report_too(tmp_path: Path) -> None:
    data = written(log_of().report([entry()]), tmp_path)
    assert (data["events_in"], data["events_out"], data["chunks"], data["rows"]) == (150, 150, 2, 0)
    assert data["servers"][0]["p50_ms"] is None
    assert data["servers"][0]["queue_ms"] is None
    assert data["wall_s"] >= 0


def test_events_that_do_not_come_back_are_missed() -> None:
    log = RunLog()
    with log.running([item(0, 100), item(100, 150)]):
        log.take([], {"out": {}, "processed": {item(0, 100)}})
    report = log.report([])
    assert (report.events_in, report.events_out, report.chunks) == (150, 100, 1)


def test_a_run_that_fails_still_counts_its_time_and_its_events() -> None:
    log = RunLog()
    with pytest.raises(ValueError, match="broken"), log.running([item(0, 100)]):
        raise ValueError("broken")
    report = log.report([])
    assert (report.events_in, report.events_out) == (100, 0)
    assert report.wall_s > 0


counts = st.integers(0, 1000)
records = st.builds(
    call,
    rows=counts,
    requests=counts,
    retries=counts,
    rows_retried=counts,
    failovers=counts,
    waiting_s=st.floats(0, 100),
    numeric_kind=st.sampled_from(["fp32", "int8"]),
)


@given(in_chunks=st.lists(records, max_size=8), outside=st.lists(records, max_size=3))
def test_totals_are_the_sums_over_models_servers_and_calls(
    in_chunks: list[CallRecord], outside: list[CallRecord]
) -> None:
    report = log_of(*in_chunks).report([entry()], outside)
    calls = [*in_chunks, *outside]
    for name in ("rows", "requests", "retries", "rows_retried", "failovers"):
        assert getattr(report, name) == sum(getattr(call, name) for call in calls)
    assert report.waiting_s == pytest.approx(sum(call.waiting_s for call in calls))
    assert report.rows_sent == report.rows - report.rows_cached
    assert report.rows == sum(line.rows for line in report.models) == sum(line.rows for line in report.servers)
    assert report.requests == sum(line.requests for line in report.models)
    assert [line.numeric_kind for line in report.models] == sorted({call.numeric_kind for call in calls})
    assert {line.source_digest for line in report.models} <= {"d1"}
    assert [line.numeric_kind for line in sorted(report.chunk_records, key=lambda line: line.numeric_kind)] == sorted(
        {call.numeric_kind for call in in_chunks}
    )
    assert sum(line.waiting_s for line in report.chunk_records) == pytest.approx(
        sum(call.waiting_s for call in in_chunks)
    )


def test_a_chunk_that_is_processed_again_and_again_is_one_line() -> None:
    log, other = RunLog(), "triton-1-77ab01"
    for server in (SERVER, other, SERVER):
        log.take([ChunkRecord.of(CHUNK, call(servers={server: ServerShare(1, 1)}, waiting_s=0.5))], {})
    log.take([ChunkRecord.of(Chunk("2a1d", 100, 200), call())], {})
    again, once = log.report([entry()]).chunk_records
    assert (again.servers, again.waiting_s) == ((SERVER, other), 1.5)
    assert (once.entrystart, once.servers) == (100, (SERVER,))


def test_latencies_are_merged_over_calls_and_queue_times_are_means() -> None:
    calls = [call(servers={SERVER: ServerShare(1, 1, {bucket(ms * 1e-3): 1})}) for ms in (1, 2, 3, 4, 100)]
    loaded = entry(load=ServerLoad(rows=5, requests=4, queue_ms=20.0, compute_ms=8.0))
    (line,) = log_of(*calls).report([loaded]).servers
    assert line.p50_ms == pytest.approx(3, rel=0.03)
    assert line.p99_ms == pytest.approx(100, rel=0.03)
    assert (line.queue_ms, line.compute_ms) == (5.0, 2.0)


def test_a_server_that_never_became_ready_is_not_listed() -> None:
    report = log_of(call()).report([entry(), entry("triton-1-aaaaaa", models=())])
    assert [line.id for line in report.servers] == [SERVER]


# What goes wrong without stopping the run ------------------------------------


def test_a_failed_column_that_nobody_reads_is_a_warning() -> None:
    unread = call(error="The server says [no].", read=False)
    with pytest.warns(RuntimeWarning, match=r"Chunk 2a1d:0-100: a column of model btag failed, and was never read"):
        log = log_of(unread)
    assert log.report([]).warnings == (
        "Chunk 2a1d:0-100: a column of model btag failed, and was never read: The server says [no].",
    )


def test_a_failed_column_that_was_read_raised_there_and_is_no_warning() -> None:
    assert log_of(call(error="x", read=True), call(read=False)).report([]).warnings == ()


# For the eye -----------------------------------------------------------------


def shown(report: Report, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(report)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_at_80_columns_the_table_cuts_neither_ids_nor_numbers() -> None:
    servers = [
        entry("triton-0-3fa9c1", kind="gpu", node="r05n03.cluster.example.org", load=ServerLoad(requests=1)),
        entry("triton-11-77ab01", fidelity="emulated"),
    ]
    share = ServerShare(rows=1_234_567, requests=1, latencies={bucket(2.5): 1})
    calls = [call(rows=1_234_567, servers={server.info.id: share}) for server in servers]
    text = shown(log_of(*calls).report(servers))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for word in ("triton-0-3fa9c1", "triton-11-77ab01", "r05n03", "1234567", "compute", "2469134", "btag v1 (fp32)"):
        assert word in text


def test_brackets_in_a_warning_are_shown_as_they_are() -> None:
    with pytest.warns(RuntimeWarning, match="never read"):
        log = log_of(call(error="shape [3, 4] is not [/5]", read=False))
    assert "shape [3, 4] is not [/5]" in shown(log.report([]), width=200)


def test_models_of_a_server_that_does_not_say_what_they_are_made_from_are_called_unverified() -> None:
    model = ServedModel("btag", "1", max_batch_size=64, inputs=(), outputs=())
    servers = [entry(), entry("gate-static-0", models=(model,), kind="gpu")]
    known, unknown = call(), call(servers={"gate-static-0": ServerShare(rows=10, requests=1)})
    report = log_of(known).report(servers)
    assert [(line.source_digest, line.verified) for line in report.models] == [("d1", True)]
    assert [line.verified for line in report.servers] == [True, False]
    assert "gpu (unverified)" in shown(report, width=200)
    assert "btag v1 (fp32)" in shown(report)
    for calls, digest in (((unknown,), ""), ((known, unknown), "d1")):
        report = log_of(*calls).report(servers)
        assert [(line.source_digest, line.verified) for line in report.models] == [(digest, False)]
        assert "btag v1 (fp32, unverified)" in shown(report)


def test_chunks_that_workers_computed_are_marked_counted_and_warned_of() -> None:
    note = "Model btag was computed by the workers themselves, in fp32 with ONNX Runtime. The pool is lost: x."
    alone = call(servers={}, fallback=True, source_digest="d1", notes=(note,))
    log = RunLog()
    with pytest.warns(RuntimeWarning, match="computed by the workers themselves"):
        log.take([ChunkRecord.of(CHUNK, alone), ChunkRecord.of(CHUNK, call()), ChunkRecord.of(CHUNK, alone)], {})
    log.take([ChunkRecord.of(Chunk("2a1d", 100, 200), alone)], {})  # warned of already
    report = log.report([entry()])
    assert [line.fallback for line in report.chunk_records] == [True, False, True]
    assert report.warnings == (note,)
    (model,) = report.models
    assert (model.rows, model.source_digest, model.verified) == (40, "d1", True)
    shown = io.StringIO()
    Console(file=shown, width=100).print(report)
    assert re.search(r"chunks inferred without servers +2", shown.getvalue())
