"""What the documentation shows is run: each Python block, and each command as far as reading its arguments."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from sonic_parsl import site as site_file
from sonic_parsl.cli import main
from tests.leaks import assert_nothing_is_left

ROOT = Path(__file__).parents[1]
FILES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
RUN_S = 200
"""A block may bring a site up and run an analysis, on a busy machine."""

FENCE = re.compile(
    r"(?:<!--\s*not run:(?P<reason>.*?)-->\s*?\n\s*)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
SHELL = {"", "bash", "console", "sh", "shell"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a Markdown file.

    Attributes
    ----------
    line
        Line of the file that its code starts at, from 1.
    reason
        Why it is not run; None where it is.
    """

    language: str
    code: str
    line: int
    reason: str | None


def blocks(text: str) -> Iterator[Block]:
    for found in FENCE.finditer(text):
        reason = found["reason"]
        yield Block(
            found["language"],
            textwrap.dedent(found["code"]),
            text.count("\n", 0, found.start("code")) + 1,
            reason.strip() if reason is not None else None,
        )


def python_blocks(text: str) -> list[Block]:
    return [block for block in blocks(text) if block.language in {"python", "py"}]


def script(found: list[Block]) -> str:
    """One program out of blocks, whose lines have the numbers that they have in the file."""
    lines: list[str] = []
    for block in found:
        lines += [""] * (block.line - 1 - len(lines))
        lines += block.code.splitlines()
    return "\n".join(lines) + "\n"


def commands(text: str) -> Iterator[list[str]]:
    """Arguments of each ``sonic-parsl`` command in the shell blocks and between backquotes."""
    shell = [block.code for block in blocks(text) if block.language in SHELL]
    lines = [line for code in shell for line in code.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`(sonic-parsl [^`\n]*)`", FENCE.sub("", text))
    for line in (*lines, *inline):
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        if words[:1] == ["sonic-parsl"]:
            end = next((i for i, word in enumerate(words) if word in {"|", "&&", "||", ";", ">", "&"}), None)
            yield words[1:end]


def parse(arguments: list[str]) -> None:
    """Read the arguments as the command line does, and run nothing."""
    command: click.Command = main
    context: click.Context | None = None
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context, info_name=command.name, **command.context_settings)
        options, arguments, _ = command.make_parser(context).parse_args(list(arguments))
        if not arguments or options.keys() & {"help", "version"}:
            return
        _, found, arguments = command.resolve_command(context, arguments)
        assert found is not None
        command = found
    with suppress(click.exceptions.Exit):  # --help and --version say what they have to say
        command.make_context(command.name, arguments, parent=context)


def complaint(arguments: list[str]) -> str | None:
    """What the command line has against arguments."""
    try:
        parse(arguments)
    except click.UsageError as error:
        return f"sonic-parsl {shlex.join(arguments)}: {error.format_message()}"
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
@pytest.mark.timeout(RUN_S + 60)
def test_each_python_block_runs(path: Path, tmp_path: Path) -> None:
    found = [block for block in python_blocks(path.read_text()) if block.reason is None]
    if found:
        (tmp_path / "doc.py").write_text(script(found))
        done = subprocess.run(
            [sys.executable, "doc.py"],
            cwd=tmp_path,
            env={**os.environ, "MPLBACKEND": "agg"},
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )
        assert done.returncode == 0, f"{path.name}, lines as there:\n{done.stdout[-2000:]}\n{done.stderr[-8000:]}"
        assert_nothing_is_left()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_python_block_that_is_not_run_needs_a_cluster_and_compiles(path: Path) -> None:
    for block in python_blocks(path.read_text()):
        if block.reason is not None:
            assert "cluster" in block.reason, f"{path.name}, line {block.line}: no reason not to run it"
            compile(block.code, f"{path.name} from line {block.line}", "exec")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_command_can_be_read(path: Path) -> None:
    wrong = [problem for arguments in commands(path.read_text()) if (problem := complaint(arguments))]
    assert not wrong


# These tests themselves ----------------------------------------------------------

EXAMPLE = """
Use `sonic-parsl doctor --site here`, or

    <!-- not run: needs a cluster -->
    ```python
    1 / 0
    ```

```bash
$ sonic-parsl run btag_ttbar \\
    --output out/ && ls  # a comment
make demo
```

```python
x = 1
```

<!-- another comment -->
```python
assert x == 1
```
"""


def test_blocks_are_found_with_their_lines_and_reasons() -> None:
    found = python_blocks(EXAMPLE)
    assert [(block.line, block.reason) for block in found] == [(6, "needs a cluster"), (16, None), (21, None)]
    assert script(found[1:]).splitlines()[15:] == ["x = 1", "", "", "", "", "assert x == 1"]


def test_commands_are_found_in_shell_blocks_and_between_backquotes() -> None:
    assert sorted(commands(EXAMPLE)) == [["doctor", "--site", "here"], ["run", "btag_ttbar", "--output", "out/"]]
    for arguments in commands(EXAMPLE):
        parse(arguments)


@pytest.mark.parametrize("line", ["nothing", "run", "run btag_ttbar --colour red", "data fetsch", "models check a b"])
def test_a_wrong_command_is_noticed(line: str) -> None:
    assert complaint(line.split())


@pytest.mark.parametrize("line", ["--help", "--version", "run --help", "server install", "--debug doctor"])
def test_a_right_command_is_read_and_not_run(line: str) -> None:
    assert complaint(line.split()) is None


SITES = [
    pytest.param(block.code, id=f"line {block.line}")
    for block in blocks((ROOT / "docs" / "sites.md").read_text())
    if block.language == "yaml"
]


@pytest.mark.parametrize("text", SITES)
def test_a_site_file_that_is_shown_is_one(text: str, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(text)
    assert site_file.read(tmp_path / "site.yaml").servers
