"""One newest version and one numeric kind a model and run: two groups, or servers and workers, that count differently are refused at start."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sonic_parsl.errors import ConfigError
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.poolref import PoolRef
from sonic_parsl.repository import ModelFolder, read
from tests.client import onnx_files as onnx


def model(root: Path, kind: str = "fp32", *, backend: str = "onnxruntime") -> tuple[ModelFolder, ...]:
    folder = onnx.write(root, "linear", onnx.linear(), onnx.ROW, more=onnx.kind(kind))
    config = folder / "config.pbtxt"
    config.write_text(config.read_text().replace("onnxruntime", backend))
    return read(root)


def test_two_groups_that_count_differently_are_refused_and_both_are_named(tmp_path: Path) -> None:
    pool = ServerPool(run_dir=tmp_path / "run")
    pool.claim("cpu", model(tmp_path / "cpu"))
    with pytest.raises(
        ConfigError, match=r"linear counts in fp32 in group cpu and in fp16 in group gpu; .*mix-numerics"
    ):
        pool.claim("gpu", model(tmp_path / "gpu", "fp16"))


def test_two_groups_whose_newest_versions_differ_are_refused_and_both_are_named(tmp_path: Path) -> None:
    pool = ServerPool(run_dir=tmp_path / "run")
    pool.claim("cpu", model(tmp_path / "cpu"))
    model(tmp_path / "gpu")
    newer = tmp_path / "gpu" / "linear" / "2"
    shutil.copytree(newer.with_name("1"), newer)
    both = r"newest version of model linear is 1 in group cpu and 2 in group gpu: .*which one answers"
    with pytest.raises(ConfigError, match=both):
        pool.claim("gpu", read(tmp_path / "gpu"))


def test_groups_that_count_alike_or_may_mix_are_taken(tmp_path: Path) -> None:
    pool = ServerPool(run_dir=tmp_path / "run")
    pool.claim("cpu", model(tmp_path / "cpu", "fp16"))
    pool.claim("gpu", model(tmp_path / "gpu", "fp16"))
    mixing = ServerPool(run_dir=tmp_path / "run", mix_numerics=True, fallback="cpu")
    mixing.claim("cpu", model(tmp_path / "other"))
    mixing.claim("gpu", model(tmp_path / "third", "fp16"))


def test_a_fallback_from_another_kind_than_fp32_is_refused(tmp_path: Path) -> None:
    pool = ServerPool(run_dir=tmp_path / "run", fallback="cpu")
    sentence = "linear counts in int8 in group gpu and in fp32 where `fallback: cpu` computes it on workers"
    with pytest.raises(ConfigError, match=sentence):
        pool.claim("gpu", model(tmp_path / "gpu", "int8"))


def test_what_no_worker_can_compute_does_not_mix(tmp_path: Path) -> None:
    pool = ServerPool(run_dir=tmp_path / "run", fallback="cpu")
    pool.claim("gpu", model(tmp_path / "gpu", "fp16", backend="python"))


def test_workers_are_told_the_folder_that_onnx_runtime_does_best_with(tmp_path: Path) -> None:
    with ServerPool(run_dir=tmp_path / "run", fallback="cpu", mix_numerics=True) as pool:
        pool.claim("gpu", model(tmp_path / "gpu", "fp16"))
        pool.claim("cpu", model(tmp_path / "cpu"))
        pool.claim("own", model(tmp_path / "own", backend="python"))
        fallback = PoolRef.read(pool.ref_path).fallback  # also what was claimed after the pool was up
        assert fallback is not None
        assert fallback == pool.ref.fallback
        (local,) = fallback.models
        assert (local.name, local.folder) == ("linear", str(tmp_path / "cpu" / "linear"))
        assert fallback.mix_numerics
        assert pool.admit("cpu", "0").fallback is None  # servers need none


def test_without_one_nothing_is_told(tmp_path: Path) -> None:
    with ServerPool(run_dir=tmp_path / "run") as pool:
        pool.claim("cpu", model(tmp_path / "cpu"))
        assert pool.ref.fallback is None
