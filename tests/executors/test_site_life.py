from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest

import sonic_parsl as sonic
from sonic_parsl import site as site_file
from sonic_parsl.errors import ConfigError, RepositoryError
from sonic_parsl.executors.site import Site
from tests.client import onnx_files as onnx
from tests.executors.conftest import write_site
from tests.executors.scores import Scores, assert_scores_are_right, run
from tests.leaks import assert_nothing_is_left


def test_a_bad_model_repository_stops_it_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="no-such-folder"):
        sonic.load_site(write_site(tmp_path), models=tmp_path / "no-such-folder")
    assert_nothing_is_left()
    assert "SONIC_PARSL_POOL" not in os.environ


def test_an_exception_in_the_with_block_ends_everything(tmp_path: Path) -> None:
    site = sonic.load_site(write_site(tmp_path))

    def analyse() -> None:
        with site:
            site.wait_ready()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        analyse()
    assert_nothing_is_left()
    assert not site.run_dir.exists()


def test_it_works_under_asyncio_and_from_another_thread(tmp_path: Path) -> None:
    outcome: list[Any] = []

    async def cell() -> None:
        with sonic.load_site(write_site(tmp_path, count="1")) as site:
            outcome.append(run(site.coffea_executor(status=False), Scores()))

    thread = threading.Thread(target=lambda: asyncio.run(cell()))
    thread.start()
    thread.join()
    assert_scores_are_right(outcome[0])
    assert_nothing_is_left()


def test_close_may_be_called_twice_and_the_site_opened_again(tmp_path: Path) -> None:
    for _ in range(2):
        site = sonic.load_site(write_site(tmp_path, count="1"))
        site.close()
        site.close()
    assert_nothing_is_left()


def test_a_model_may_be_called_before_a_server_is_ready(tmp_path: Path) -> None:
    tagger = sonic.Model("btag", inputs=["x"], outputs=["b", "c", "light"])
    with sonic.load_site(write_site(tmp_path)) as site:
        for _ in range(3):
            scores = tagger(np.ones((5, 12), dtype="float32"), lazy=False)
            assert ak.to_numpy(scores.b + scores.c + scores.light) == pytest.approx(1.0)
        assert site.report().retries == 0
    assert_nothing_is_left()


def test_a_way_that_is_not_encrypted_is_named_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "far.yaml").write_text(
        'servers: {gate: {static: [{url: "grpc://192.0.2.1:1", models: [btag], insecure: true}]}}'
    )
    with Site("far", site_file.read(tmp_path / "far.yaml"), run_dir=tmp_path / "run", has_workers=False).open() as site:
        assert site.report().warnings == ("The way to server gate-static-0 at 192.0.2.1:1 is not encrypted.",)


def test_two_kinds_of_numbers_stop_it_before_anything_runs(tmp_path: Path) -> None:
    onnx.write(tmp_path / "fp32", "linear", onnx.linear(), onnx.ROW)
    onnx.write(tmp_path / "fp16", "linear", onnx.linear(), onnx.ROW, more=onnx.kind("fp16"))
    path = tmp_path / "site.yaml"
    path.write_text("servers: {one: {models: fp32}, two: {models: fp16}}\n")
    with pytest.raises(ConfigError, match="linear counts in fp32 in group one and in fp16 in group two"):
        sonic.load_site(path)
    path.write_text("fallback: cpu\nservers: {two: {models: fp16}}\n")
    with pytest.raises(ConfigError, match="linear counts in fp16 in group two and in fp32 where `fallback: cpu`"):
        sonic.load_site(path)
    assert_nothing_is_left()
