"""A server's own copy of its models: all that it serves, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sonic_parsl.errors import RepositoryError
from sonic_parsl.repository import copy, read
from sonic_parsl.repository.digests import files_of

Write = Callable[..., Path]

CHAIN = """
    platform: "ensemble"
    max_batch_size: 8
    input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
    output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
    ensemble_scheduling { step [ { model_name: "btag" model_version: -1 } ] }
"""


@pytest.fixture
def to(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the copy goes."""
    return tmp_path_factory.mktemp("server") / "models"


def test_a_copy_has_the_digests_of_what_it_was_made_of(tmp_path: Path, write: Write, to: Path) -> None:
    write("btag")
    write("other")
    copy(tmp_path, ["btag"], to)
    assert [path.name for path in to.iterdir()] == ["btag"]
    (original,), (copied,) = read(tmp_path, ["btag"]), read(to, ["btag"])
    assert copied.artifact_digest == original.artifact_digest
    assert copied.source_digest("1") == original.source_digest("1")


def test_what_changes_afterwards_does_not_change_the_copy(tmp_path: Path, write: Write, to: Path) -> None:
    model = write("btag") / "1" / "model.onnx"
    kept = model.read_bytes()
    copy(tmp_path, ["btag"], to)
    model.write_bytes(b"another")
    assert (to / "btag" / "1" / "model.onnx").read_bytes() == kept


def test_links_are_followed_and_hidden_files_and_versions_not_served_are_left_out(
    tmp_path: Path, write: Write, to: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    weights = tmp_path_factory.mktemp("weights") / "weights.bin"
    weights.write_bytes(b"weights")
    model = write("btag", files={"1/model.onnx": b"old", "2/model.onnx": b"new", "2/.swp": b"", "labels.txt": b"b"})
    (model / "2" / "weights.bin").symlink_to(weights)
    (model / "2").chmod(0o500)
    try:
        copy(tmp_path, ["btag"], to)
    finally:
        (model / "2").chmod(0o700)
    copied = files_of(to / "btag")
    assert set(copied) == {"config.pbtxt", "labels.txt", "2/model.onnx", "2/weights.bin"}
    assert not copied["2/weights.bin"].is_symlink()
    assert (to / "btag" / "2").stat().st_mode & 0o200, "who may not write there cannot remove the copy"


def test_an_ensemble_comes_with_its_models(tmp_path: Path, write: Write, to: Path) -> None:
    write("btag")
    (write("chain", CHAIN, {}) / "1").mkdir()
    copy(tmp_path, ["chain"], to)
    assert (to / "chain" / "1").is_dir()
    assert (to / "btag" / "1" / "model.onnx").is_file()


def test_a_model_that_is_absent_is_named(tmp_path: Path, write: Write, to: Path) -> None:
    write("btag")
    with pytest.raises(RepositoryError, match="has no model 'ctag'"):
        copy(tmp_path, ["ctag"], to)


def test_a_place_without_room_is_no_fault_of_the_repository(tmp_path: Path, write: Write, to: Path) -> None:
    write("btag")
    to.write_text("in the way")
    with pytest.raises(NotADirectoryError):
        copy(tmp_path, ["btag"], to)
