"""An analysis is a packaged workflow or any Python file with a processor."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import pytest
from coffea.nanoevents import BaseSchema, NanoAODSchema
from coffea.processor import ProcessorABC

from sonic_parsl.errors import ConfigError
from sonic_parsl.workflows import loader

COUNT = """
from coffea import processor

class Count(processor.ProcessorABC):
    def __init__(self, step=1):
        self.step = step
    def process(self, events):
        return {"events": len(events) * self.step + OFFSET}
    def postprocess(self, accumulator):
        return accumulator

OFFSET = 5
"""

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str, name: str = "mine.py") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write_file


def test_the_main_job_is_packaged_with_its_models_input_and_pictures() -> None:
    assert loader.packaged_names() == ["btag_ttbar"]
    workflow = loader.load("btag_ttbar")
    assert isinstance(workflow.processor, ProcessorABC)
    assert issubclass(workflow.schema, NanoAODSchema)
    assert workflow.models is not None
    assert (workflow.models / "btag" / "config.pbtxt").is_file()
    assert workflow.fileset is not None
    assert workflow.draw is not None


def test_a_file_with_one_processor_class_is_enough(write: Write) -> None:
    workflow = loader.load(write(COUNT))
    assert workflow.name == "mine"
    assert workflow.processor.process([1, 2]) == {"events": 7}
    assert workflow.schema is NanoAODSchema
    assert (workflow.models, workflow.fileset, workflow.draw) == (None, None, None)


def test_a_file_may_name_its_processor_schema_models_input_and_pictures(write: Write, tmp_path: Path) -> None:
    more = """
class Other(Count):
    pass

from coffea.nanoevents import BaseSchema as schema
processor = Other(step=10)
models = "my_models"
def fileset():
    return {"a": {"files": {"a.root": "Events"}}}
def draw(output, folder):
    return []
"""
    workflow = loader.load(write(COUNT + more))
    assert type(workflow.processor).__name__ == "Other"
    assert workflow.processor.process([1]) == {"events": 15}
    assert workflow.schema is BaseSchema
    assert workflow.models == tmp_path / "my_models"
    assert workflow.fileset is not None
    assert workflow.fileset() == {"a": {"files": {"a.root": "Events"}}}
    assert workflow.draw is not None
    assert workflow.draw({}, tmp_path) == []


def test_a_users_processor_runs_where_its_file_cannot_be_imported(write: Write) -> None:
    processor = loader.load(write(COUNT)).processor
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).process([1, 2, 3]))"
    done = subprocess.run(
        [sys.executable, "-c", code], input=cloudpickle.dumps(processor), capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == "{'events': 8}"


def test_a_packaged_processor_travels_by_name() -> None:
    data = pickle.dumps(loader.load("btag_ttbar").processor)
    assert b"sonic_parsl.workflows.btag_ttbar" in data
    assert isinstance(pickle.loads(data), ProcessorABC)


def test_a_file_named_like_a_library_does_not_hide_it(write: Write) -> None:
    import hist

    loader.load(write(COUNT, "hist.py"))
    assert sys.modules["hist"] is hist


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1", r"should define one ProcessorABC class, found: none\. Say which one with"),
        (COUNT + "class Two(Count): pass", r"should define one ProcessorABC class, found: Count, Two\. Say which"),
        (COUNT.replace("step=1", "step"), r"Count in .*mine\.py cannot be made without arguments: .*step.* Make it in"),
        ("import sys\n\n1 / 0", r"mine\.py cannot be imported, line 3: ZeroDivisionError: division by zero\."),
        ("def f():\n  raise KeyError('x')\n\nf()", r"mine\.py cannot be imported, line 2: KeyError: 'x'\."),
        ("def f(:\n", r"mine\.py cannot be imported:.*line 1"),
        ("import no_such_module", r"cannot be imported, line 1: ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_what_is_wrong_with_a_file_is_a_sentence(write: Write, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){sentence}") as caught:
        loader.load(write(text))
    assert caught.value.__cause__ is None


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"There is no workflow 'ttbar'\. Give the path .*, or one of: btag_ttbar\."):
        loader.load("ttbar")


def test_a_module_that_is_no_workflow_is_not_run_as_one() -> None:
    with pytest.raises(ConfigError, match="There is no workflow 'samples'"):
        loader.load("samples")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no analysis file .*gone\.py\."):
        loader.load(str(tmp_path / "gone.py"))
