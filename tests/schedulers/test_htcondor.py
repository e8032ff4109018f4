"""HTCondor whose nodes share no file with the driver: all that a run needs travels with its jobs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import awkward as ak
import coffea.util
import numpy as np
import onnxruntime
import psutil
import pytest
from coffea.nanoevents import NanoEventsFactory

from sonic_parsl.workflows import btag_ttbar
from sonic_parsl.workflows.btag_inputs import CLASSES, FEATURES
from sonic_parsl.workflows.generate import generate
from tests.executors import scores
from tests.faults.runs import EVENTS
from tests.leaks import wait_until
from tests.schedulers.htcondor import CACHE, PYTHON, UID, HTCondor, htcondor
from tests.schedulers.runs import packaged

HOME = Path("/home/physicist")
START_S, RUN_S, GONE_S = 120.0, 150.0, 90.0
NOBODY = 65534
OF_JOBS = ("sonic_parsl", "tritonserver", "multiprocessing")
"""Words of the command lines of what jobs start."""

OWN_INIT = f"export PATH={PYTHON}/bin:$PATH SONIC_PARSL_CACHE={CACHE}"
SITE = f"""
shared-filesystem: false
workers:
  provider: htcondor
  workers-per-node: 2
  worker-init: export PATH={PYTHON}/bin:$PATH
  request: [request_cpus = 1, request_memory = 1 GB]
servers:
  triton:
    provider: htcondor
    count: 2
    lease: 6
    start-timeout: 120
    models: {HOME}/models
    serve: [btag]
    worker-init: {OWN_INIT}
    request: [request_cpus = 1, request_memory = 1 GB, request_fpgas = 1]
"""
NEVER = "request_cpus = 99"
"""What no machine of the pool has."""
WITHOUT_SERVERS = SITE.replace("request_fpgas = 1", NEVER).replace("start-timeout: 120", "start-timeout: 15")
ONE = SITE.replace("count: 2", "count: 1")
"""A server that goes is missed: without another one the run does not end."""
SITES = {
    "site": SITE,
    "one": ONE,
    "without_servers": WITHOUT_SERVERS,
    "with_fallback": f"{WITHOUT_SERVERS}fallback: cpu\n",
    "packaged": packaged(
        "htcondor",
        {
            "request_gpus = 1, request_cpus = 2, request_memory = 8 GB": "request_fpgas = 1, request_memory = 1 GB",
            "request_cpus = 4, request_memory = 8 GB": "request_cpus = 1, request_memory = 1 GB",
            "workers-per-node: 4": "workers-per-node: 1",
            "worker-init: export PATH=/opt/sonic/bin:$PATH         #": f"worker-init: {OWN_INIT}  #",
        },
    ),
}
SMALL = 15
"""Events of a chunk, where a run should go on for a while."""
PROBED = 100
"""A server has answered fewer rows than this before the first chunk, which has more."""
AS_SUBMITTED = {"LeaveJobInQueue": "false", "TransferOutput": '""', "EncryptInputFiles": '"*"'}
ANALYSIS = """

class ScoresAndHistograms(Scores):
    @override
    def process(self, events):
        return {**btag_ttbar.BTagTTbar.process(self, events), **super().process(events)}


processor = ScoresAndHistograms()
schema = btag_ttbar.schema
"""


@pytest.fixture(scope="module")
def pool() -> Iterator[HTCondor]:
    """A pool, and a user with an analysis, models and events at home."""
    with tempfile.TemporaryDirectory(prefix="htcondor-") as folder, htcondor(Path(folder)) as started:
        Path(folder).chmod(0o755)
        generate(started.home / "events.root", events=EVENTS)
        shutil.copytree(Path(btag_ttbar.__file__).parent / "models", started.home / "models")
        (started.home / "analysis.py").write_text(Path(scores.__file__).read_text() + ANALYSIS)
        for name, text in SITES.items():
            (started.home / f"{name}.yaml").write_text(text)
        for path in [started.home, *started.home.rglob("*")]:
            os.chown(path, UID, UID)
        yield started


@contextmanager
def driver(pool: HTCondor, site: str = "site.yaml", chunksize: int = 100) -> Iterator[subprocess.Popen[str]]:
    """Run the analysis on the submit machine, as its user would."""
    shutil.rmtree(pool.home / "out", ignore_errors=True)
    options = ["--site", site, "--output", "out", "--chunksize", str(chunksize)]
    argv = pool.submit.command("sonic-parsl", "run", "analysis.py", f"{HOME}/events.root", *options)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            for child in psutil.Process(process.pid).children() if process.poll() is None else []:
                child.kill()


def wait_until_scored(pool: HTCondor, process: subprocess.Popen[str]) -> None:
    """Wait until servers on the other machine have answered the workers."""

    def answered() -> bool:
        assert process.poll() is None, process.communicate()[0]
        pools = json.loads(pool.submit.run("sonic-parsl", "status", "--json"))["pools"]
        servers = [server for one in pools for group in one["groups"] for server in group["servers"]]
        return any(server["rows"] > PROBED for server in servers)

    wait_until(answered, START_S, lambda: f"{pool.queue()}\n{logs(pool)}")


def on_node(pool: HTCondor, word: str) -> list[psutil.Process]:
    """Return the processes of the machine where jobs run whose command line holds a word."""
    found = []
    for process in psutil.Process(pool.execute.pid).children(recursive=True):
        try:
            if word in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def logs(pool: HTCondor) -> str:
    return "\n".join(
        f"{path.name}:\n{path.read_text(errors='replace')[-1500:]}"
        for path in sorted(pool.home.rglob("runs/**/*"))
        if path.suffix in {".log", ".stdout", ".stderr"} and path.stat().st_size
    )


def runs(pool: HTCondor) -> list[Path]:
    """Return the folders of the user's runs, as the submit machine has them."""
    return [HOME / run.relative_to(pool.home) for run in pool.home.glob(".local/state/sonic-parsl/runs/*")]


def jobs(pool: HTCondor, word: str) -> list[str]:
    """Return the ids of the jobs in the queue with a word in the name of their script."""
    return [line.split()[0] for line in pool.queue() if word in line]


def in_process(path: Path) -> dict[str, Any]:
    """The analysis of all events, with scores from ONNX Runtime in this process."""
    events = NanoEventsFactory.from_root(
        {str(path): "Events"}, schemaclass=btag_ttbar.schema, mode="virtual", metadata={"dataset": "events"}
    ).events()
    session = onnxruntime.InferenceSession(scores.MODEL)

    def tagger(jets: Any) -> Any:
        columns = [ak.to_numpy(ak.flatten(jets[name])).astype("float32") for name in FEATURES]
        out = session.run(["scores"], {"features": np.stack(columns, axis=1)})[0]
        return ak.zip({name: ak.unflatten(out[:, index], ak.num(jets)) for index, name in enumerate(CLASSES)})

    analysis = btag_ttbar.BTagTTbar()
    analysis.tagger = tagger  # type: ignore[assignment]
    return analysis.process(events)


def assert_right(pool: HTCondor) -> None:
    """Check that the run has each event once, with its scores and histograms."""
    out, right = coffea.util.load(pool.home / "out/analysis.coffea"), in_process(pool.home / "events.root")
    for name in ("events", "jets", "b score", "b tags"):
        assert out[name] == right[name], name
    assert {name for name, _, _ in out["scores"]} == {f"{HOME}/events.root"}
    by_start = sorted((start, stop, found) for (_, start, stop), found in out["scores"].items())
    assert [start for start, _, _ in by_start] == [0, *(stop for _, stop, _ in by_start[:-1])]
    expected = scores.in_process(str(pool.home / "events.root"), 0, EVENTS)
    np.testing.assert_allclose(np.concatenate([found for _, _, found in by_start]), expected, atol=1e-6)


def test_the_packaged_site_file_runs_edited_where_it_says(pool: HTCondor) -> None:
    with driver(pool, "packaged.yaml") as process:
        said, _ = process.communicate(timeout=RUN_S)
        assert process.returncode == 0, said
    assert_right(pool)
    (server,) = json.loads((pool.home / "out/report.json").read_text())["servers"]
    assert (server["group"], server["kind"], server["fidelity"]) == ("gpu", "a100", "emulated")
    assert_gone(pool)


def test_a_server_that_is_removed_in_the_middle_says_good_bye_and_is_replaced(pool: HTCondor) -> None:
    with driver(pool, "one.yaml", SMALL) as process:
        wait_until_scored(pool, process)
        (removed,) = jobs(pool, "triton.block-0")
        assert submitted(pool, removed)["JobMaxVacateTime"] == "60"
        pool.submit.run("condor_rm", removed)
        wait_until_said_good_bye(pool)
        said, _ = process.communicate(timeout=RUN_S)
        assert process.returncode == 0, said
    assert_right(pool)
    assert_replaced(pool, removed)
    assert_gone(pool)


def test_jobs_that_are_preempted_in_the_middle_are_replaced_the_server_after_a_good_bye(pool: HTCondor) -> None:
    with driver(pool, "one.yaml", SMALL) as process:
        wait_until_scored(pool, process)
        (server,) = jobs(pool, "triton.block-0")
        workers, *_ = jobs(pool, "workers.block-0")
        agent, lost = on_node(pool, "server.agent --block 0"), on_node(pool, "multiprocessing.spawn")
        assert agent
        pool.submit.run("condor_vacate_job", server)
        pool.submit.run("condor_vacate_job", "-fast", workers)
        wait_until_said_good_bye(pool)
        wait_until(lambda: not any(one.is_running() for one in (*agent, *lost)), 60.0, lambda: on_node(pool, ""))
        said, _ = process.communicate(timeout=RUN_S)
        assert process.returncode == 0, said
    assert_right(pool)
    assert_replaced(pool, server)
    assert_gone(pool)


def submitted(pool: HTCondor, job: str) -> dict[str, str]:
    """Return what HTCondor holds of a job in its queue: attributes, as it writes them."""
    lines = pool.submit.run("condor_q", job, "-long").splitlines()
    return dict(line.split(" = ", 1) for line in lines if " = " in line)


def wait_until_said_good_bye(pool: HTCondor) -> None:
    """Wait until the driver has heard from its first server itself that it ends, on SIGTERM."""

    def said() -> list[str]:
        return [path.read_text() for path in pool.home.glob(".local/state/sonic-parsl/runs/*/sonic-parsl.log")]

    wait_until(lambda: any("(block 0) left: it was sent SIGTERM" in log for log in said()), GONE_S, said)


def assert_replaced(pool: HTCondor, job: str) -> None:
    """Check that the server of a job, and then one of a new job, answered in the run."""
    first, second = json.loads((pool.home / "out/report.json").read_text())["servers"]
    assert first["job_id"] == job
    assert second["job_id"] != job
    assert min(first["rows"], second["rows"]) > 0


def assert_gone(pool: HTCondor) -> None:
    """Wait until no job is in the queue and none of their processes lives."""
    wait_until(lambda: not pool.queue(), GONE_S, pool.queue)
    wait_until(lambda: not any(on_node(pool, word) for word in OF_JOBS), 20, lambda: on_node(pool, ""))


def test_models_travel_with_workers_which_compute_them_where_the_queue_starts_no_server(pool: HTCondor) -> None:
    with driver(pool, "with_fallback.yaml") as process:
        said, _ = process.communicate(timeout=RUN_S)
        assert process.returncode == 0, said
    assert_right(pool)
    report = json.loads((pool.home / "out/report.json").read_text())
    assert not report["servers"]
    assert all(line["fallback"] for line in report["chunk_records"])
    assert any("computed by the workers themselves" in text for text in report["warnings"])
    assert_gone(pool)


def test_a_run_whose_servers_never_start_fails_with_what_htcondor_says(pool: HTCondor) -> None:
    with driver(pool, "without_servers.yaml") as process:
        said, _ = process.communicate(timeout=RUN_S)
    assert process.returncode == 1, said
    said = " ".join(said.split())
    assert "the batch system started no server within 15 s" in said
    assert re.search(r"jobs of triton: block 0: .* 0 are able to run your job .* No machines matched the job", said), (
        said
    )
    assert_gone(pool)


def test_doctor_asks_the_pool_and_its_probe_jobs_reach_driver_and_servers(pool: HTCondor) -> None:
    argv = pool.submit.command("sonic-parsl", "doctor", "--site", "site.yaml", "--probe")
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=RUN_S)
    found = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    problems = [text for mark, text in found if mark != "ok"]
    assert [text.split()[0] for text in problems] == ["driver:", "The"], done.stdout + done.stderr
    for finding in (
        "condor_submit",
        "reaches the driver",
        "has what runtime wheel needs",
        "is reached from the workers'",
    ):
        assert finding in done.stdout
    assert_gone(pool)
    packaged = pool.submit.command("sonic-parsl", "doctor", "--site", "htcondor")
    said = subprocess.run(packaged, capture_output=True, text=True, check=False, timeout=RUN_S).stdout
    for job in ("workers", "servers gpu"):
        assert f"{job}: htcondor would take its job" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nobody_else_reads_what_travels_and_no_job_outlives_its_driver(pool: HTCondor, number: signal.Signals) -> None:
    with driver(pool, chunksize=SMALL) as process:
        wait_until_scored(pool, process)
        assert on_node(pool, "tritonserver")
        scratch = "/var/lib/condor/execute"
        assert not pool.execute.run("ls", str(HOME), user=0)
        assert {one.uids().real for word in OF_JOBS for one in on_node(pool, word)} == {UID}
        assert not [
            run for run in runs(pool) if pool.execute.run("sh", "-c", f"ls -d {run} 2>/dev/null || true", user=0)
        ]
        listed = pool.execute.run("sh", "-c", f"find {scratch} -mindepth 2 2>/dev/null; true", user=NOBODY)
        assert not listed
        carried = pool.execute.run("find", scratch, "-name", "*.key_secret", "-o", "-name", "pool.json", user=0).split()
        assert len(carried) == 3
        for job in jobs(pool, ".block-0"):
            told = submitted(pool, job)
            assert {name: told[name] for name in AS_SUBMITTED} == AS_SUBMITTED
        assert runs(pool)
        for run in runs(pool):
            assert stat.S_IMODE((pool.home / run.relative_to(HOME)).stat().st_mode) == 0o700
        psutil.Process(process.pid).children()[0].send_signal(number)
        process.wait()
    assert_gone(pool)
