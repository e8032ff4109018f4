"""Files of events that cannot be read: each is refused before anything starts, by name, with what is wrong."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import uproot

from sonic_parsl.errors import ConfigError, DataError
from sonic_parsl.workflows.inputs import make_fileset
from tests.bad_input.conftest import Call, assert_says, told

Make: TypeAlias = Callable[[Path, bytes], object]
"""Writes what a case needs into a folder, from the bytes of a real file."""

SIZE = 980772
COPY_AGAIN = "Copy it again, or leave it out."
CUT_OR_DAMAGED = "It was cut off or is damaged: copy it again, or leave it out."
NOTHING = "It was closed before anything was written, or is damaged: copy it again, or leave it out."
NAME_OR_LEAVE = "Name it, or leave it out: a shell makes such a name of a variable that is not set."
CORRECT_PATH = "Correct its path; one that does not begin with / starts in the folder you are in."
NAME_IT = 'Name the tree in a fileset JSON: {"dataset": {"files": {"bad.root": "%s"}}}.'
FORM = 'It should look like {"dataset": ["file.root"]}.'


def text(name: str, content: str) -> Make:
    return lambda folder, _: (folder / name).write_text(content)


def cut(at: int) -> Make:
    return lambda folder, whole: (folder / "bad.root").write_bytes(whole[:at])


def objects(**content: object) -> Make:
    """Write a real ROOT file with these trees and histograms."""

    def write(folder: Path, _: bytes) -> None:
        with uproot.recreate(folder / "bad.root") as file:
            for name, value in content.items():
                file[name] = value

    return write


TREE = {"x": np.arange(3)}
HISTOGRAM = np.histogram([1.0, 2.0])

CASES: list[tuple[str, Make, str, str]] = [
    ("missing", text("other", ""), "bad.root", f"There is no file bad.root. {CORRECT_PATH}"),
    (
        "a pattern",
        text("a.root", ""),
        "b*.root",
        "There is no file b*.root. The shell found no file that matches: correct the pattern.",
    ),
    (
        "a folder",
        lambda folder, _: (folder / "bad.root").mkdir(),
        "bad.root",
        "bad.root is a folder. Name the files in it: bad.root/*.root.",
    ),
    ("no bytes", text("bad.root", ""), "bad.root", f"bad.root is empty. {CUT_OR_DAMAGED}"),
    (
        "a text",
        text("bad.root", "pt eta phi\n" * 9),
        "bad.root",
        "bad.root is not a readable ROOT file: it begins with b'pt eta p'. Name ROOT files.",
    ),
    (
        "a web page in its place",
        text("bad.root", "<!DOCTYPE html><title>Log in</title>"),
        "bad.root",
        "bad.root is not a readable ROOT file: it begins with b'<!DOCTYP'. Name ROOT files.",
    ),
    ("an empty name", text("other", ""), "", f"A file has an empty name. {NAME_OR_LEAVE}"),
    (
        "an empty name in a list",
        text("bad.json", '{"tt": [""]}'),
        "bad.json",
        f"A file has an empty name. {NAME_OR_LEAVE}",
    ),
    (
        "two empty names in a list",
        text("bad.json", '{"tt": ["", ""]}'),
        "bad.json",
        f"A file has an empty name. {NAME_OR_LEAVE}",
    ),
    (
        "compressed as a whole",
        lambda folder, whole: (folder / "bad.root").write_bytes(gzip.compress(whole[:999], mtime=0)),
        "bad.root",
        r"bad.root is not a readable ROOT file: it begins with b'\x1f\x8b\x08\x00\x00\x00\x00\x00'. Name ROOT files.",
    ),
    ("cut in its header", cut(10), "bad.root", f"bad.root was cut off: it has 10 of 20 bytes. {COPY_AGAIN}"),
    ("cut after its header", cut(100), "bad.root", f"bad.root was cut off: it has 100 of {SIZE} bytes. {COPY_AGAIN}"),
    (
        "cut in its list of objects",
        cut(1400),
        "bad.root",
        f"bad.root was cut off: it has 1400 of {SIZE} bytes. {COPY_AGAIN}",
    ),
    (
        # uproot opens it, and coffea would fail on a worker, at the first branch beyond.
        "cut in the middle of its events",
        cut(SIZE // 2),
        "bad.root",
        f"bad.root was cut off: it has {SIZE // 2} of {SIZE} bytes. {COPY_AGAIN}",
    ),
    (
        "a byte short",
        cut(SIZE - 1),
        "bad.root",
        f"bad.root was cut off: it has {SIZE - 1} of {SIZE} bytes. {COPY_AGAIN}",
    ),
    (
        "zeros after its header",
        lambda folder, whole: (folder / "bad.root").write_bytes(whole[:100] + bytes(SIZE - 100)),
        "bad.root",
        f"bad.root has no tree 'Events'; it has nothing. {NOTHING}",
    ),
    (
        "other bytes after its header",
        lambda folder, whole: (folder / "bad.root").write_bytes(whole[:100] + b"\x7f" * (SIZE - 100)),
        "bad.root",
        f"bad.root is not a readable ROOT file: … {CUT_OR_DAMAGED}",
    ),
    ("another tree", objects(Runs=TREE), "bad.root", "bad.root has no tree 'Events'; it has Runs. " + NAME_IT % "Runs"),
    ("no tree", objects(), "bad.root", f"bad.root has no tree 'Events'; it has nothing. {NOTHING}"),
    (
        "a histogram for a tree",
        objects(Events=HISTOGRAM),
        "bad.root",
        "'Events' of bad.root is a TH1D and not a tree. There is no tree in it.",
    ),
    (
        "a histogram beside a tree",
        objects(Events=HISTOGRAM, EventTree=TREE),
        "bad.root",
        "'Events' of bad.root is a TH1D and not a tree. Did you mean EventTree?",
    ),
    (
        "a list that is missing",
        text("other", ""),
        "bad.json",
        f"bad.json cannot be read: No such file or directory. {CORRECT_PATH}",
    ),
    (
        "a list that is no JSON",
        text("bad.json", '{"tt": ["a.root"'),
        "bad.json",
        f"bad.json is not valid JSON: Expecting ',' delimiter: line 1 column 17 (char 16). {FORM}",
    ),
    (
        "a list with too many brackets",
        text("bad.json", "[" * 5000 + "]" * 5000),
        "bad.json",
        f"bad.json is nested too deeply. {FORM}",
    ),
    ("a list of names only", text("bad.json", '["a.root"]'), "bad.json", f"bad.json is not a fileset. {FORM}"),
    (
        "a dataset without files",
        text("bad.json", '{"tt": []}'),
        "bad.json",
        'bad.json: dataset tt names no files. Write {"dataset": ["file.root"]}.',
    ),
    (
        "metadata that is a word",
        text("bad.json", '{"tt": {"files": ["a.root"], "metadata": "x"}}'),
        "bad.json",
        (
            "bad.json: metadata of dataset tt is 'x'; it should be a mapping. "
            'Write {"dataset": {"files": ["file.root"], "metadata": {"xsec": 832.0}}}.'
        ),
    ),
    (
        "steps, which would be dropped",
        text("bad.json", '{"tt": {"files": {"a.root": {"object_path": "Events", "steps": [[0, 100]]}}}}'),
        "bad.json",
        (
            "bad.json: a.root of dataset tt has steps, and only whole files are read. "
            "Leave the steps out; --chunksize says how many events are read at once."
        ),
    ),
    (
        "a file that is listed twice",
        text("bad.json", '{"tt": ["a.root", "b.root", "./a.root"]}'),
        "bad.json",
        (
            "a.root and ./a.root are one file, which is named twice; its events would count twice. "
            "Leave one of them out."
        ),
    ),
    (
        "a file of a list",
        text("bad.json", '{"tt": ["gone.root"]}'),
        "bad.json",
        f"There is no file gone.root. {CORRECT_PATH}",
    ),
    (
        "a tree of a list",
        lambda folder, whole: (
            text("bad.json", '{"tt": {"files": {"bad.root": "Lumi"}}}')(folder, whole),
            objects(Events=TREE)(folder, whole),
        ),
        "bad.json",
        "bad.root has no tree 'Lumi'; it has Events. " + NAME_IT % "Events",
    ),
]


@pytest.mark.parametrize(("make", "argument", "sentence"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_a_file_that_cannot_be_read_is_named_before_anything_starts(
    call: Call, tmp_path: Path, events: Path, make: Make, argument: str, sentence: str
) -> None:
    make(tmp_path, events.read_bytes())
    assert_says(told(call("run", "btag_ttbar", argument)), sentence)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("make", "argument", "sentence"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_in_python_it_is_an_error_of_ours_that_coffea_does_not_take_for_a_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Path, make: Make, argument: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, events.read_bytes())
    with pytest.raises((DataError, ConfigError)) as caught:
        make_fileset([argument])
    assert_says(str(caught.value), sentence)
    assert caught.value.hint, "it names no way out"
    assert caught.value.__cause__ is None
    assert not isinstance(caught.value, OSError)


def test_a_cache_folder_that_cannot_be_made_is_named(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SONIC_PARSL_CACHE", "/etc/passwd/x")
    sentence = "The folder /etc/passwd/x/samples cannot be made: Not a directory. Set SONIC_PARSL_CACHE to …."
    assert_says(told(call("data", "fetch")), sentence)


LONG = "a" * 300
TOO_LONG: list[tuple[str, ...]] = [
    ("run", f"{LONG}.py"),
    ("run", "btag_ttbar", f"{LONG}.root"),
    ("run", "btag_ttbar", f"{LONG}.json"),
    ("doctor", "--site", LONG),
]


@pytest.mark.parametrize("args", TOO_LONG, ids=lambda args: args[-1][-6:])
def test_a_name_that_the_system_refuses_is_said_without_pythons_words(call: Call, args: tuple[str, ...]) -> None:
    assert_says(told(call(*args)), f"{args[-1]} cannot be used: File name too long. Correct the path, or …")


def test_an_output_folder_that_cannot_be_made_is_named(call: Call, tmp_path: Path, events: Path) -> None:
    (tmp_path / "taken").write_text("")
    sentence = "The folder taken/plots cannot be made: Not a directory. Name another one with --output."
    assert told(call("run", "btag_ttbar", events, "--output", "taken/plots")) == sentence


def test_an_output_folder_that_cannot_be_written_to_is_named_before_anything_starts(call: Call, events: Path) -> None:
    sentence = "The folder /proc cannot be written to: …. Name another one with --output."
    assert_says(told(call("run", "btag_ttbar", events, "--output", "/proc")), sentence)


def test_debug_shows_where_it_was_noticed(call: Call) -> None:
    result = call("--debug", "run", "btag_ttbar", "gone.root")
    assert result.exit_code == 1
    assert isinstance(result.exception, DataError)  # which Python shows with its traceback
