"""What checkpoints are known by."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from coffea.processor import ProcessorABC
from typing_extensions import override

from sonic_parsl.executors.chunks.checkpointer import key_of

PROGRAM = """
from coffea.processor import ProcessorABC
from sonic_parsl.executors.chunks.checkpointer import key_of

class Mine(ProcessorABC):
    def __init__(self):
        self.branches = {"pt", "eta", "phi", "mass"}
        self.cuts = {"tight": frozenset({("pt", 30), ("eta", 2)}), "by year": [{"2017", "2018"}]}
        self.is_good = lambda name: name in {"pt", "eta", "phi"}
    def process(self, events): ...
    def postprocess(self, accumulator): ...

print(key_of(Mine(), {}))
"""


class Selection(ProcessorABC):  # type: ignore[misc]
    """A processor that holds what it is given."""

    def __init__(self, holds: object) -> None:
        self.holds = holds

    @override
    def process(self, events: object) -> None: ...

    @override
    def postprocess(self, accumulator: object) -> object:
        return accumulator


def test_sets_of_strings_give_one_key_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PROGRAM)
    runs = [
        subprocess.Popen(
            [sys.executable, tmp_path / "mine.py"],
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2", "3")
    ]
    keys = [run.communicate()[0] for run in runs]
    assert len(set(keys)) == 1
    assert len(keys[0].strip()) == 16


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a"}, {"b"}),
        ({"a"}, {"a", "b"}),
        ({"a"}, frozenset({"a"})),
        ({"a"}, ["a"]),
        ({1}, {"1"}),
        ({frozenset({"a"})}, {frozenset({"b"})}),
    ],
)
def test_what_a_set_holds_is_part_of_the_key(one: object, other: object) -> None:
    assert key_of(Selection(one), {}) != key_of(Selection(other), {})
    assert key_of(Selection(one), {}) == key_of(Selection(one), {})
