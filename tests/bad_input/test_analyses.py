"""Analysis files that cannot run: said before anything starts, with the line, the name and what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonic_parsl.errors import SonicError
from sonic_parsl.workflows import loader
from tests.bad_input.conftest import Call, assert_says, told

GOOD = """
import threading
from coffea.processor import ProcessorABC

class Mine(ProcessorABC):
    def process(self, events):
        return {"events": len(events)}
    def postprocess(self, accumulator):
        return accumulator
"""


def holding(line: str) -> str:
    """Return the analysis with an ``__init__`` of this line."""
    return GOOD.replace("    def process", f"    def __init__(self):\n        {line}\n    def process")


SAY_WHICH = "Say which one with a line such as `processor = MyProcessor()`."
LEAVE_OUT = "It ends Python: leave that out, or put it under `if __name__ == '__main__':`."
MAKE_IT = "Make it in the file: `processor = MyProcessor(...)`."
INSIDE = "Make it inside process(), where the worker needs it."
NOT_SENT = "Mine in {file} cannot be sent to workers:"

FILES: list[tuple[str, str, str]] = [
    ("no processor", "x = 1", f"{{file}} should define one ProcessorABC class, found: none. {SAY_WHICH}"),
    (
        "two processors",
        GOOD + "class Other(Mine): pass",
        f"{{file}} should define one ProcessorABC class, found: Mine, Other. {SAY_WHICH}",
    ),
    ("no Python", "def f(:\n", "mine.py cannot be imported: …line 1…"),
    ("its own error", "x = 1\ny = x / 0\n", "mine.py cannot be imported, line 2: ZeroDivisionError: division by zero."),
    (
        "a library that is not installed",
        "import no_such_library",
        (
            "mine.py cannot be imported, line 1: ModuleNotFoundError: No module named 'no_such_library'. "
            "Install it where driver and workers run, or name its folder in PYTHONPATH."
        ),
    ),
    (
        "a name that a library has not",
        "from coffea.processor import ProcessorABCD",
        "mine.py cannot be imported, line 1: ImportError: cannot import name 'ProcessorABCD' from …",
    ),
    (
        "a method that is not there",
        GOOD.replace("def process", "def proces"),
        "Mine in {file} does not define process. Add what is missing.",
    ),
    (
        "an argument without a default",
        GOOD.replace("    def process", "    def __init__(self, year): pass\n    def process"),
        f"Mine in {{file}} cannot be made without arguments: …missing 1 required positional argument: 'year'. {MAKE_IT}",
    ),
    (
        "an error where it is made",
        holding("self.cuts = {}['2018']"),
        f"Mine in {{file}} cannot be made without arguments, line 7: KeyError: '2018'. {MAKE_IT}",
    ),
    ("an end of Python", "import sys\nsys.exit(0)", f"mine.py cannot be imported, line 2: SystemExit: 0. {LEAVE_OUT}"),
    (
        "an end of Python where it is made",
        holding("raise SystemExit"),
        f"Mine in {{file}} cannot be made without arguments, line 7: SystemExit. {LEAVE_OUT}",
    ),
    (
        "an end of Python in its input",
        GOOD + "def fileset():\n    raise SystemExit(0)",
        "The analysis failed in fileset() ({file}, line 11): SystemExit: 0. …",
    ),
    (
        "a schema that is a word",
        GOOD + "schema = 'NanoAOD'",
        "schema in {file} is 'NanoAOD'; it should be a class of coffea.nanoevents.",
    ),
    (
        "models that are a list",
        GOOD + "models = ['btag']",
        "models in {file} is ['btag']; it should be the path of a folder.",
    ),
    (
        "input that is no function",
        GOOD + "fileset = {'a': 1}",
        "fileset in {file} is {'a': 1}; it should be a function.",
    ),
    ("a picture that is no function", GOOD + "draw = 'all'", "draw in {file} is 'all'; it should be a function."),
    (
        "a lock",
        holding("self.lock = threading.Lock()"),
        f"{NOT_SENT} its attribute lock is a _thread.lock, which cannot be pickled. {INSIDE}",
    ),
    (
        "an open file",
        holding("self.log = open('/dev/null', 'w')"),
        f"{NOT_SENT} its attribute log is a _io.TextIOWrapper, which cannot be pickled. {INSIDE}",
    ),
    (
        "a lock within",
        holding("self.tools = {'a': [1, threading.Lock()]}"),
        f"{NOT_SENT} its attribute tools['a'][1] is a _thread.lock, which cannot be pickled. {INSIDE}",
    ),
    (
        "a lock of the class",
        GOOD.replace("    def process", "    lock = threading.Lock()\n    def process"),
        f"{NOT_SENT} Mine.lock is a _thread.lock, which cannot be pickled. {INSIDE}",
    ),
    (
        "a lock of the file",
        GOOD.replace("        return {", "        LOCK.acquire()\n        return {") + "LOCK = threading.Lock()",
        f"{NOT_SENT} the global LOCK is a _thread.lock, which cannot be pickled. {INSIDE}",
    ),
    ("no input", GOOD, "mine brings no input of its own. Name ROOT files or a fileset JSON."),
    (
        "input that is missing",
        GOOD + "def fileset(): return {'tt': ['gone.root']}",
        "There is no file gone.root. Correct its path; one that does not begin with / starts in the folder you are in.",
    ),
    (
        "input that is no fileset",
        GOOD + "def fileset(): return ['a.root']",
        'What fileset() of mine returns is not a fileset. It should look like {"dataset": ["file.root"]}.',
    ),
    (
        "input that fails",
        GOOD + "def fileset():\n    return {}['2018']",
        (
            "The analysis failed in fileset() ({file}, line 11): KeyError: '2018'. "
            "`sonic-parsl --debug ...` shows the whole traceback; in Python, the error's `details` has it."
        ),
    ),
]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # what an analysis leaves open is its own affair
@pytest.mark.parametrize(("text", "sentence"), [pytest.param(*case[1:], id=case[0]) for case in FILES])
def test_an_analysis_that_cannot_run_is_named_before_anything_starts(
    call: Call, tmp_path: Path, text: str, sentence: str
) -> None:
    (tmp_path / "mine.py").write_text(text)
    assert_says(told(call("run", "mine.py")), sentence.replace("{file}", str(tmp_path / "mine.py")))
    assert not (tmp_path / "out").exists()


NAMES: list[tuple[str, str, str]] = [
    ("a word", "ttbar", "There is no workflow 'ttbar'. Give the path of a Python file, or one of: …btag_ttbar…."),
    ("a file that is no Python", "mine.txt", "There is no workflow 'mine.txt'. Give the path of a Python file, or …"),
    (
        "a file that is not there",
        "gone.py",
        "There is no analysis file gone.py. Correct the path, or name a packaged workflow: …btag_ttbar….",
    ),
]


@pytest.mark.parametrize(("name", "sentence"), [pytest.param(*case[1:], id=case[0]) for case in NAMES])
def test_an_analysis_that_is_nowhere_is_answered_with_those_there_are(call: Call, name: str, sentence: str) -> None:
    assert_says(told(call("run", name)), sentence)
    with pytest.raises(SonicError, match="There is no"):
        loader.load(name)
