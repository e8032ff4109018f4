from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import parsl
import pytest
from coffea.processor import FuturesExecutor, IterativeExecutor

import sonic_parsl as sonic
from sonic_parsl.errors import ConfigError
from sonic_parsl.executors.site import Site
from tests.executors.conftest import write_site
from tests.executors.scores import MODEL, Scores, assert_scores_are_right, run
from tests.leaks import our_processes


def test_every_score_equals_onnx_runtime_in_process(site: Site) -> None:
    before = site.report()
    out = run(site.coffea_executor(), Scores(), chunksize=50)
    assert_scores_are_right(out)
    report = site.report()
    assert report.events_in - before.events_in == report.events_out - before.events_out == 400
    assert report.rows - before.rows == 1504 + 1636
    assert sum(line.rows for line in report.servers) == report.rows
    assert report.rows_padded == report.rows_retried == 0
    assert {line.numeric_kind for line in report.chunk_records} == {"fp32"}


def test_both_servers_take_their_share(site: Site) -> None:
    run(site.coffea_executor(), Scores(), chunksize=20)
    assert all(line.rows > 0 for line in site.report().servers)


@pytest.mark.parametrize("executor", [IterativeExecutor(), FuturesExecutor(workers=2)], ids=["iterative", "futures"])
def test_other_coffea_executors_reach_the_pool_too(site: Site, executor: Any) -> None:
    assert_scores_are_right(run(executor, Scores()))


def test_the_pools_file_is_for_its_owner_only_and_names_no_secret_elsewhere(site: Site) -> None:
    credentials = site.pool.ref.credentials
    assert credentials is not None
    secret = credentials.key.splitlines()[1]
    assert stat.S_IMODE(site.pool.ref_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(site.run_dir.stat().st_mode) == 0o700
    assert secret not in repr(site.pool.ref) + repr(site) + repr(site.pool)
    assert all(secret not in " ".join(process.cmdline()) for process in our_processes())
    logs = [path.read_text(errors="replace") for path in site.run_dir.rglob("*") if path.suffix in {".log", ".err"}]
    assert logs
    assert all(secret not in text for text in logs)


def test_a_second_site_in_the_same_process_is_refused(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="A Parsl DataFlowKernel is loaded already"):
        sonic.load_site(write_site(tmp_path))


def test_parsl_apps_use_numpy_arrays_without_coffea(site: Site) -> None:
    @parsl.python_app(executors=["workers"])  # type: ignore[untyped-decorator]
    def score(rows: Any) -> Any:
        import sonic_parsl as sonic

        tagger = sonic.Model("btag", inputs=["x"], outputs=["b", "c", "light"])
        return tagger(rows, lazy=False).b.to_numpy()

    rows = np.linspace(0, 50, 12 * 40, dtype="float32").reshape(40, 12)
    expected = onnxruntime.InferenceSession(MODEL).run(["scores"], {"features": rows})[0][:, 0]
    np.testing.assert_allclose(score(rows).result(), expected, atol=1e-6)
