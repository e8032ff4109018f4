"""What jobs take along, and how a worker finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from coffea.processor.accumulator import set_accumulator
from coffea.processor.executor import FileMeta, WorkItem
from parsl.executors import HighThroughputExecutor
from parsl.providers import CondorProvider

from sonic_parsl.errors import DataError
from sonic_parsl.executors.batch.carried import INPUTS_ENV, WhereItLies, equip_workers, link_tree, take_along
from sonic_parsl.executors.site import PACKAGED
from sonic_parsl.executors.workers.worker_pool import LAUNCH_COMMAND
from sonic_parsl.poolref import Fallback, LocalModel
from sonic_parsl.repository.digests import files_of, tree_digest


@pytest.fixture
def equipped(tmp_path: Path) -> HighThroughputExecutor:
    """Workers whose jobs bring two files of the same name along."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nano.root").write_text(folder)
    executor = HighThroughputExecutor(address="127.0.0.1", launch_cmd=LAUNCH_COMMAND, provider=CondorProvider())
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    names = [f"{tmp_path}/a/nano.root", f"{tmp_path}/b/nano.root", "root://xrootd//far.root"]
    model = LocalModel("btag", str(PACKAGED / "btag"), "")
    equip_workers(executor, run, pool=run / "pool.json", inputs=names, fallback=Fallback((model,)))
    return executor


def test_workers_bring_key_pool_and_input_along(equipped: HighThroughputExecutor, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert equipped.provider.transfer_input_files == [
        f"{run}/certificates",
        f"{run}/pool.json",
        f"{run}/inputs",
        f"{run}/models",
    ]
    assert "--cert_dir certificates --logdir=logs" in equipped.launch_cmd
    assert str(tmp_path) not in equipped.launch_cmd + equipped.provider.worker_init
    assert sorted(path.read_text() for path in (run / "inputs").iterdir()) == ["a", "b"]
    assert tree_digest(files_of(run / "models" / "btag")) == tree_digest(files_of(PACKAGED / "btag"))


def test_what_one_provider_takes_along_no_other_does(tmp_path: Path) -> None:
    first, second = CondorProvider(), CondorProvider()
    take_along(first, tmp_path)
    assert second.transfer_input_files == []


def test_an_input_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    executor = HighThroughputExecutor(address="127.0.0.1", provider=CondorProvider())
    with pytest.raises(DataError, match=r"absent\.root cannot be sent to the workers: there is no such file"):
        equip_workers(executor, tmp_path, pool=tmp_path / "pool.json", inputs=["absent.root"])


def test_a_chunk_is_read_where_the_file_lies_under_the_name_that_the_driver_knows(
    equipped: HighThroughputExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INPUTS_ENV, str(tmp_path / "run" / "inputs"))
    item = WorkItem("tt", f"{tmp_path}/b/nano.root", "Events", 0, 9, b"", {"year": 2024})

    def work(moved: WorkItem) -> dict[str, Any]:
        return {"out": (Path(moved.filename).read_text(), moved.usermeta), "processed": {moved}}

    out = WhereItLies(work)(item)
    assert out == {"out": ("b", {"year": 2024, "filename": item.filename}), "processed": {item}}


def test_metadata_is_of_the_file_that_the_driver_knows(
    equipped: HighThroughputExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INPUTS_ENV, str(tmp_path / "run" / "inputs"))
    meta = FileMeta("tt", f"{tmp_path}/a/nano.root", "Events")

    def work(moved: FileMeta) -> Any:
        text = Path(moved.filename).read_text()
        return set_accumulator([FileMeta(moved.dataset, moved.filename, moved.treename, {"text": text})])

    (found,) = WhereItLies(work)(meta)
    assert found == meta
    assert found.metadata == {"text": "a"}


@pytest.mark.parametrize("name", ["root://xrootd//far.root", "/cvmfs/near.root"])
def test_what_the_job_did_not_bring_keeps_its_name(
    equipped: HighThroughputExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(INPUTS_ENV, str(tmp_path / "run" / "inputs"))
    assert WhereItLies(lambda item: item.filename)(WorkItem("tt", name, "Events", 0, 9, b"")) == name


def test_links_make_the_same_model_with_its_empty_folders(tmp_path: Path) -> None:
    source = tmp_path / "model"
    (source / "1").mkdir(parents=True)
    (source / "config.pbtxt").write_text("name: 'model'")
    (source / ".git").mkdir()
    link_tree(source, tmp_path / "links")
    assert tree_digest(files_of(tmp_path / "links")) == tree_digest(files_of(source))
    assert (tmp_path / "links" / "1").is_dir()
    assert not (tmp_path / "links" / ".git").exists()
