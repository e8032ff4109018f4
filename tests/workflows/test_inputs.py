"""Input is checked before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot

from sonic_parsl.errors import ConfigError, DataError
from sonic_parsl.workflows.inputs import make_fileset


@pytest.fixture
def root_file(tmp_path: Path) -> str:
    return write_root(tmp_path / "a.root", "Events")


def write_root(path: Path, *trees: str) -> str:
    path.parent.mkdir(exist_ok=True)
    with uproot.recreate(path) as file:
        for tree in trees:
            file[tree] = {"x": np.arange(3)}
    return str(path)


def write_json(folder: Path, data: Any, name: str = "fileset.json") -> str:
    (folder / name).write_text(data if isinstance(data, str) else json.dumps(data))
    return str(folder / name)


def test_each_file_is_a_dataset_named_after_it(root_file: str, tmp_path: Path) -> None:
    other = write_root(tmp_path / "b.root", "Events", "Runs")
    expected = {"a": {"files": {root_file: "Events"}}, "b": {"files": {other: "Events"}}}
    assert make_fileset([root_file, other]) == expected


def test_files_of_one_name_from_two_folders_stay_apart(root_file: str, tmp_path: Path) -> None:
    second, third = (write_root(tmp_path / sub / "a.root", "Events") for sub in ("two", "three"))
    assert make_fileset([root_file, second, third]) == {
        "a": {"files": {root_file: "Events"}},
        "a-2": {"files": {second: "Events"}},
        "a-3": {"files": {third: "Events"}},
    }


def test_a_file_that_is_named_twice_is_refused_whatever_its_name(
    root_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.root").symlink_to(root_file)
    listed = write_json(tmp_path, {"one": ["a.root", "./a.root"]})
    for names in (["a.root", "./a.root"], [root_file, "link.root"], [listed], ["a.root", "a.root"]):
        with pytest.raises(ConfigError, match=r"is named twice; its events would count twice\. Leave one of them out"):
            make_fileset(names)
    url = "root://eos.example.org//store/a.root"
    with pytest.raises(ConfigError, match="is named twice"):
        make_fileset([url, url])


def test_a_file_may_be_in_two_datasets_which_are_analysed_apart(root_file: str, tmp_path: Path) -> None:
    fileset = {"nominal": {"files": {root_file: "Events"}}, "varied": {"files": {root_file: "Events"}}}
    assert make_fileset([write_json(tmp_path, fileset)]) == fileset


def test_two_trees_of_one_file_are_two_datasets(tmp_path: Path) -> None:
    path = write_root(tmp_path / "a.root", "Events", "Runs")
    fileset = {"events": {"files": {path: "Events"}}, "runs": {"files": {path: "Runs"}}}
    assert make_fileset([write_json(tmp_path, fileset)]) == fileset


def test_remote_files_are_left_to_the_workers() -> None:
    url = "root://eos.example.org//store/a.root"
    assert make_fileset([url]) == {"a": {"files": {url: "Events"}}}


@pytest.mark.parametrize(
    ("entry", "tree"),
    [
        ('["a.root"]', "Events"),
        ('{"files": ["a.root"]}', "Events"),
        ('{"files": {"a.root": "Runs"}}', "Runs"),
        ('{"files": ["a.root"], "treename": "Runs"}', "Runs"),
        ('{"files": {"a.root": {"object_path": "Runs", "steps": null}}}', "Runs"),
        ('{"files": {"a.root": {"num_entries": 3}}, "metadata": {}}', "Events"),
    ],
)
def test_a_fileset_has_any_form_that_coffea_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, tree: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_root(tmp_path / "a.root", "Events", "Runs")
    assert make_fileset([write_json(tmp_path, f'{{"tt": {entry}}}')]) == {"tt": {"files": {"a.root": tree}}}


def test_metadata_of_a_dataset_is_kept(root_file: str, tmp_path: Path) -> None:
    fileset = {"tt": {"files": {root_file: "Events"}, "metadata": {"xsec": 832.0}}}
    assert make_fileset([write_json(tmp_path, fileset)]) == fileset


def test_a_dataset_named_twice_is_refused_instead_of_lost(root_file: str, tmp_path: Path) -> None:
    one, two = (write_json(tmp_path, {"tt": [root_file]}, name) for name in ("1.json", "2.json"))
    with pytest.raises(ConfigError, match=r"2\.json: dataset tt was named before\. Give it another name\."):
        make_fileset([one, two])


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("{", r"fileset\.json is not valid JSON: "),
        ([], r"fileset\.json is not a fileset\. It should look like"),
        ("{}", r"fileset\.json is not a fileset\."),
        ({"tt": []}, r"fileset\.json: dataset tt names no files\. Write"),
        ({"tt": 3}, r"dataset tt names no files\."),
        ({"tt": {"metadata": {}}}, r"dataset tt names no files\."),
    ],
)
def test_json_that_is_no_fileset_is_refused(tmp_path: Path, data: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_fileset([write_json(tmp_path, data)])


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no file .*gone\.root\."):
        make_fileset([str(tmp_path / "gone.root")])
    with pytest.raises(DataError, match=r"gone\.json cannot be read: No such file") as caught:
        make_fileset([str(tmp_path / "gone.json")])
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("kept", [5, 20, 100, 300, -1])
def test_a_file_that_was_cut_off_is_named_with_its_size(root_file: str, tmp_path: Path, kept: int) -> None:
    path, whole = tmp_path / "bad.root", Path(root_file).read_bytes()
    path.write_bytes(whole[:kept])
    with pytest.raises(DataError, match=rf"bad\.root was cut off: it has {path.stat().st_size} of \d+ bytes"):
        make_fileset([str(path)])


def test_a_file_of_another_kind_is_named_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "bad.root"
    path.write_text("no ROOT file at all")
    with pytest.raises(DataError, match=r"bad\.root is not a readable ROOT file: \S"):
        make_fileset([str(path)])


def test_a_file_without_events_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.root has no tree 'Events'; it has Lumi, Runs\."):
        make_fileset([write_root(tmp_path / "a.root", "Runs", "Lumi")])
    with pytest.raises(DataError, match=r"b\.root has no tree 'Events'; it has nothing\."):
        make_fileset([write_root(tmp_path / "b.root")])
