"""What the digests of a model depend on, and what not."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings

from sonic_parsl.errors import RepositoryError
from sonic_parsl.repository import check, read, require, served

Write = Callable[..., Path]

NAMES = st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=2).map("/".join)
TREES = st.dictionaries(NAMES, st.binary(max_size=4), min_size=1, max_size=4).filter(
    lambda tree: not any(inner.startswith(f"{outer}/") for outer in tree for inner in tree)
)
"""Files of a version by relative path; few letters, so that names and contents often look alike."""


def digests(tree: Mapping[str, bytes], config: str = 'backend: "custom"') -> tuple[str, str]:
    """Return source and artifact digest of a model with one version, written to a new place."""
    with tempfile.TemporaryDirectory() as place:
        for name, content in {"config.pbtxt": config.encode(), **{f"1/{k}": v for k, v in tree.items()}}.items():
            file = Path(place, "m", name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        (model,) = read(Path(place))
        return model.source_digest("1"), model.artifact_digest


@settings(deadline=None, max_examples=50)
@given(TREES, st.randoms(use_true_random=False))
def test_digests_depend_on_neither_place_nor_order_nor_caches(tree: dict[str, bytes], random: Random) -> None:
    shuffled = dict(random.sample(list(tree.items()), len(tree)))
    caches = {".hidden": b"1", "__pycache__/model.pyc": b"2", "c/.cache": b"3"}
    assert digests(tree) == digests(shuffled | caches)


@settings(deadline=None, max_examples=100)
@given(TREES, TREES)
def test_different_files_have_different_digests(left: dict[str, bytes], right: dict[str, bytes]) -> None:
    assume(left != right)
    assert set(digests(left)).isdisjoint(digests(right))


@settings(deadline=None, max_examples=50)
@given(TREES, st.data())
def test_any_byte_changes_the_digests(tree: dict[str, bytes], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(tree)))
    position = data.draw(st.integers(0, len(tree[name])))
    byte = data.draw(st.binary(min_size=1, max_size=1))
    changed = tree[name][:position] + byte + tree[name][position + 1 :]
    assume(changed != tree[name])
    assert set(digests(tree)).isdisjoint(digests(tree | {name: changed}))


def test_names_and_contents_cannot_be_taken_for_each_other() -> None:
    alike = [{"a": b"bc"}, {"ab": b"c"}, {"a": b"", "bc": b""}, {"a/bc": b""}, {"a": b"b", "c": b""}]
    assert len({digest for tree in alike for digest in digests(tree)}) == 2 * len(alike)


def test_a_file_larger_than_one_piece_is_read_to_its_end() -> None:
    big = bytes(3 << 20)
    assert set(digests({"weights": big + b"a"})).isdisjoint(digests({"weights": big + b"b"}))


def test_the_configuration_is_part_of_the_artifact_only() -> None:
    source, artifact = digests({"model": b"x"})
    other_source, other_artifact = digests({"model": b"x"}, 'backend: "custom" # a comment')
    assert source == other_source
    assert artifact != other_artifact


def test_what_lies_beside_the_versions_is_part_of_the_model_and_texts_for_people_are_not(
    tmp_path: Path, write: Write
) -> None:
    folder = write(files={"1/model.onnx": b"x", "weights/a.bin": b"old", "configs/gpu.pbtxt": b"", "README.md": b"old"})
    (model,) = read(tmp_path)
    source, artifact = model.source_digest("1"), model.artifact_digest
    (folder / "README.md").write_bytes(b"new")
    assert (model.source_digest("1"), model.artifact_digest) == (source, artifact)
    (folder / "configs" / "gpu.pbtxt").write_bytes(b"new")
    assert model.source_digest("1") == source
    assert model.artifact_digest != artifact
    (folder / "weights" / "a.bin").write_bytes(b"new")
    assert model.source_digest("1") != source


def test_digests_depend_neither_on_times_nor_on_versions_that_are_not_served(tmp_path: Path, write: Write) -> None:
    folder = write(files={"1/model.onnx": b"old", "2/model.onnx": b"new"})
    (model,) = read(tmp_path)
    before = model.source_digest("2"), model.artifact_digest
    os.utime(folder / "2" / "model.onnx", (0, 0))
    (folder / "1" / "model.onnx").write_bytes(b"older")
    assert (model.source_digest("2"), model.artifact_digest) == before


def test_a_linked_version_has_the_digests_of_what_it_links_to(
    tmp_path: Path, write: Write, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write("plain", files={"1/model.onnx": b"x", "1/data/weights": b"y"})
    store = shutil.copytree(tmp_path / "plain" / "1", tmp_path_factory.mktemp("store") / "version")
    (write("linked", files={}) / "1").symlink_to(store)
    ours, theirs = read(tmp_path)
    assert (ours.source_digest("1"), ours.artifact_digest) == (theirs.source_digest("1"), theirs.artifact_digest)


def test_a_built_artifact_names_what_it_was_made_from(tmp_path: Path, write: Write) -> None:
    folder = write()
    (folder / "source.sha256").write_text("AB" * 32 + "\n")
    (model,) = require(tmp_path)
    assert model.source_digest("1") == "ab" * 32
    (folder / "source.sha256").write_text("soon")
    problem = "btag/source.sha256 is no SHA-256 digest; write 64 hexadecimal digits into it, or remove it."
    assert check(tmp_path) == [problem]
    with pytest.raises(RepositoryError) as caught:
        model.source_digest("1")
    assert str(caught.value) == problem


def test_a_file_that_cannot_be_read_is_an_error_of_the_repository(tmp_path: Path, write: Write) -> None:
    folder = write()
    (model,) = read(tmp_path)
    (folder / "1" / "weights").symlink_to("nowhere")
    with pytest.raises(RepositoryError, match=r"weights cannot be read \(No such file") as caught:
        served(model)
    assert caught.value.__suppress_context__
    with pytest.raises(RepositoryError, match=r"btag/7 cannot be read"):
        model.source_digest("7")
