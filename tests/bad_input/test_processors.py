"""Analyses that fail on a worker: the line of the user's code, or the file and branch, comes home as a sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from coffea.processor import Runner

from sonic_parsl.errors import AnalysisError, DataError, InputError, ModelNotFoundError, SonicError
from sonic_parsl.executors.site import Site
from sonic_parsl.workflows import loader
from tests.bad_input.conftest import assert_says

FILE = """
import awkward as ak
from coffea.processor import ProcessorABC
from sonic_parsl import Model
from sonic_parsl.workflows.btag_ttbar import schema

class Mine(ProcessorABC):
    def process(self, events):
        {}
        return {{"sum": float(ak.sum(events.Jet.pt))}}

    def postprocess(self, accumulator):
        return accumulator

class Odd(Exception):
    def __init__(self, what, why):
        super().__init__(f"{{what}}, {{why}}")

def deeper(value):
    return 1 / value
"""
LINE = "{file}, line 9"
SEE_MORE = "`sonic-parsl --debug ...` shows the whole traceback; in Python, the error's `details` has it."
WHERE = "(chunk …:0-200, file {events})"

CODE: list[tuple[str, str, type[SonicError], str]] = [
    (
        "an error of Python's",
        "x = len(events) / 0",
        AnalysisError,
        f"The analysis failed in process() ({LINE}): ZeroDivisionError: division by zero. {WHERE} {SEE_MORE}",
    ),
    (
        "an error in a function of its file",
        "x = deeper(0)",
        AnalysisError,
        f"The analysis failed in deeper() ({{file}}, line 20): ZeroDivisionError: division by zero. {WHERE} {SEE_MORE}",
    ),
    (
        "an error of a class of its own",  # which pickle could not make again
        "raise Odd('cuts', 'none left')",
        AnalysisError,
        f"The analysis failed in process() ({LINE}): …Odd: cuts, none left. {WHERE} {SEE_MORE}",
    ),
    (
        "an error in a library it calls",
        "x = ak.unflatten(events.Jet.pt, 'two')",
        AnalysisError,
        f"The analysis failed in process() ({LINE}): …Error: …. {WHERE} {SEE_MORE}",
    ),
    (
        "a file of its own that is not there",
        "x = open('/no/such/weights.json')",
        AnalysisError,
        (
            f"The analysis failed in process() ({LINE}): FileNotFoundError: [Errno 2] No such file or directory: "
            f"'/no/such/weights.json'. {WHERE} {SEE_MORE}"
        ),
    ),
    (
        "a branch that is almost there",
        "x = events.Jet.ptt",
        AnalysisError,
        f"Jet has no field 'ptt', wanted in process() ({LINE}). {WHERE} Did you mean pt?",
    ),
    (
        "a branch by a name in brackets",
        "x = events.Jet['etaa']",
        AnalysisError,
        f"Jet has no field 'etaa', wanted in process() ({LINE}). {WHERE} Did you mean eta?",
    ),
    (
        "a collection that is not there",
        "x = events.Jett.pt",
        AnalysisError,
        f"The events have no field 'Jett', wanted in process() ({LINE}). {WHERE} Did you mean …Jet…?",
    ),
    (
        "a branch like no other",
        "x = events.MET.zzzzzz",
        AnalysisError,
        f"MissingET has no field 'zzzzzz', wanted in process() ({LINE}). {WHERE} There are: ….",
    ),
    (
        "a branch that the model needs",
        "x = Model('small', inputs=['pt', 'etaa'], outputs=['a', 'b'])(events.Jet)",
        InputError,
        (
            "The array has no field 'etaa', wanted as 'etaa'; near it are: eta. (…file {events}…) "
            "A computed property must first be stored: jets['name'] = jets.name."
        ),
    ),
    (
        "a model that nobody serves",
        "x = Model('btagg', inputs=['pt'], outputs='a')(events.Jet)",
        ModelNotFoundError,
        "No server of the pool has model 'btagg'. (…file {events}…) They have: ….",
    ),
    (
        "no result",
        "return None",
        AnalysisError,
        (
            "The analysis failed: ValueError: Output of process() should not be None. Make sure your processor's "
            f"process() function returns an accumulator. {WHERE} {SEE_MORE}"
        ),
    ),
    (
        "a result that cannot be pickled",
        "return {'jets': (jet for jet in events.Jet)}",
        AnalysisError,
        (
            "What process() returns, or takes, cannot be sent between driver and workers: cannot pickle 'generator' "
            "object. Return numbers, histograms and arrays, in dictionaries and lists."
        ),
    ),
]


def run(site: Site, folder: Path, line: str, file: Path) -> SonicError:
    """Run an analysis with this line and return how it failed."""
    (folder / "mine.py").write_text(FILE.format(line))
    analysis = loader.load(str(folder / "mine.py"))
    executor = site.coffea_executor(status=False, retries=0)
    with pytest.raises(SonicError) as caught:
        Runner(executor=executor, schema=analysis.schema)({"tt": {"files": {str(file): "Events"}}}, analysis.processor)
    assert caught.value.__cause__ is None
    assert not isinstance(caught.value, OSError)
    return caught.value


@pytest.mark.parametrize(("line", "kind", "sentence"), [pytest.param(*case[1:], id=case[0]) for case in CODE])
def test_an_analysis_that_fails_says_where_in_its_own_code(
    site: Site, tmp_path: Path, events: Path, line: str, kind: type[SonicError], sentence: str
) -> None:
    error = run(site, tmp_path, line, events)
    assert type(error) is kind
    assert_says(str(error), sentence.replace("{file}", str(tmp_path / "mine.py")).replace("{events}", str(events)))


def test_its_whole_traceback_comes_home_too(site: Site, tmp_path: Path, events: Path) -> None:
    details = run(site, tmp_path, "x = deeper(0)", events).details
    assert details.startswith("Traceback (most recent call last):")
    assert re.search(r"line 9, in process\n.*line 20, in deeper", details, re.DOTALL)
    assert details.endswith("ZeroDivisionError: division by zero\n")


# Files that only the worker finds damaged -------------------------------------

PT = 582127
"""Where the one basket of Jet_pt begins in the file of events; it has 4155 bytes."""
GOOD = "pass"

FILES: list[tuple[str, Any, str]] = [
    (
        "a basket of zeros",
        lambda whole: whole[:PT] + bytes(4155) + whole[PT + 4155 :],
        (
            "{bad} cannot be read, in branch Jet_pt: … (chunk …:0-200) "
            "It was cut off or is damaged: copy it again, or leave it out."
        ),
    ),
    (
        "a basket that cannot be decompressed",
        lambda whole: whole[: PT + 4000] + bytes(155) + whole[PT + 4155 :],
        (
            "{bad} cannot be read, in branch Jet_pt: Error -5 while decompressing data: incomplete or truncated stream. "
            "(chunk …:0-200) It was cut off or is damaged: copy it again, or leave it out."
        ),
    ),
    (
        "an end in the middle of a basket",
        lambda whole: whole[: PT + 2000],
        (
            "{bad} cannot be read, in branch Jet_pt: expected Chunk of length 4155, received 2000 bytes from … "
            "(chunk …:0-200) It was cut off or is damaged: copy it again, or leave it out."
        ),
    ),
]


@pytest.mark.parametrize(("spoil", "sentence"), [pytest.param(*case[1:], id=case[0]) for case in FILES])
def test_a_file_that_is_damaged_within_is_named_with_its_branch(
    site: Site, tmp_path: Path, events: Path, spoil: Any, sentence: str
) -> None:
    bad = tmp_path / "bad.root"
    bad.write_bytes(spoil(events.read_bytes()))
    error = run(site, tmp_path, GOOD, bad)
    assert type(error) is DataError
    assert_says(str(error), sentence.replace("{bad}", str(bad)))


ABSENT: list[tuple[str, str, str, str]] = [
    (
        "a file",
        "{folder}/gone.root",
        "Events",
        (
            "{file} cannot be read: [Errno 2] No such file or directory: '{file}'. "
            "Check its name, and that the workers' nodes can read it."
        ),
    ),
    ("a tree", "{events}", "Event", "{file} has no tree 'Event'. Did you mean Events?"),
    (
        "a machine",
        "http://127.0.0.1:9/a.root",
        "Events",
        (
            "{file} cannot be read: Cannot connect to host 127.0.0.1:9 …. "
            "Check its name, and that the workers' nodes can read it."
        ),
    ),
]


@pytest.mark.parametrize(("name", "tree", "sentence"), [pytest.param(*case[1:], id=case[0]) for case in ABSENT])
def test_with_coffeas_own_runner_what_is_not_there_is_named(
    site: Site, tmp_path: Path, events: Path, name: str, tree: str, sentence: str
) -> None:
    (tmp_path / "mine.py").write_text(FILE.format(GOOD))
    analysis = loader.load(str(tmp_path / "mine.py"))
    file = name.replace("{folder}", str(tmp_path)).replace("{events}", str(events))
    executor = site.coffea_executor(status=False, retries=0)
    with pytest.raises(DataError) as caught:
        Runner(executor=executor, schema=analysis.schema)({"tt": {"files": {file: tree}}}, analysis.processor)
    assert_says(str(caught.value), sentence.replace("{file}", file))


@pytest.mark.parametrize("skipbadfiles", [True, False])
def test_a_damaged_file_is_left_out_where_coffea_is_told_to_and_nothing_else_is(
    site: Site, tmp_path: Path, events: Path, *, skipbadfiles: bool
) -> None:
    bad = tmp_path / "bad.root"
    bad.write_bytes(events.read_bytes()[: PT + 2000])
    (tmp_path / "mine.py").write_text(FILE.format(GOOD))
    analysis = loader.load(str(tmp_path / "mine.py"))
    run = Runner(
        executor=site.coffea_executor(status=False, retries=0), schema=analysis.schema, skipbadfiles=skipbadfiles
    )
    fileset = {"tt": {"files": {str(bad): "Events", str(events): "Events"}}}
    if skipbadfiles:
        assert run(fileset, analysis.processor)["sum"] > 0
    else:
        with pytest.raises(DataError, match="branch Jet_pt"):
            run(fileset, analysis.processor)
