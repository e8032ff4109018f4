"""What the benchmarks share: a site with models of known speed, measuring in turns, the table and the JSON rows."""

from __future__ import annotations

import gc
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import click
from rich.console import Console
from rich.table import Table

from sonic_parsl.executors.site import Site, load_site
from sonic_parsl.workflows.generate import generate

ROUNDS = 5
QUICK_ROUNDS = 1
READY_S = 120.0
MODELS = Path(__file__).parents[1] / "tests" / "models"
"""Real models of the python backend: ``identity``, and ``timed``, which sleeps before it answers its input."""

SITE = """
workers: {{provider: local, workers-per-node: 1}}
servers:
{groups}
driver: {{run-dir: {folder}/runs, address: {address}}}
security: {security}
"""
GROUP = "  {name}: {{device: cpu, count: {servers}, lease: {lease_s:g}, start-timeout: {ready_s:g}, models: {models}}}"

TIMED = """
name: "{name}"
backend: "python"
max_batch_size: {max_batch_size}
input [ {{ name: "INPUT0" data_type: TYPE_FP32 dims: [4] }} ]
output [ {{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [4] }} ]
instance_group [ {{ count: {instances} kind: KIND_CPU }} ]
parameters {{ key: "t0_ms" value {{ string_value: "{service_ms:g}" }} }}
parameters {{ key: "t_row_us" value {{ string_value: "0" }} }}
"""

# A site ----------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    """A model that answers its input, four numbers a row, after a slept service time.

    Attributes
    ----------
    service_ms
        Service time of a request, in ms, whatever its size.
    instances
        So many requests are served at once.
    """

    name: str
    service_ms: float
    instances: int = 1
    max_batch_size: int = 64

    def write(self, repository: Path) -> None:
        """Write it into a model repository."""
        shutil.copytree(MODELS / "timed", repository / self.name)
        (repository / self.name / "config.pbtxt").write_text(TIMED.format(**asdict(self)))


@dataclass(frozen=True)
class Identity:
    """A model that answers its input of 32 numbers a row as fast as Triton's python backend can."""

    WIDTH: ClassVar[int] = 32
    max_batch_size: int

    @property
    def name(self) -> str:
        """Its name, which says its limit."""
        return f"identity_{self.max_batch_size}"

    def write(self, repository: Path) -> None:
        """Write it into a model repository."""
        config = shutil.copytree(MODELS / "identity", repository / self.name) / "config.pbtxt"
        text = config.read_text().replace('"identity"', f'"{self.name}"')
        config.write_text(text.replace("max_batch_size: 1024", f"max_batch_size: {self.max_batch_size}"))


@contextmanager
def serve(
    *groups: Sequence[Timed | Identity],
    servers: int = 1,
    lease_s: float = 15.0,
    tls: bool = True,
    address: str = "127.0.0.1",
) -> Iterator[Site]:
    """Bring up a site, wait for its servers, and leave nothing of it.

    Parameters
    ----------
    groups
        Groups of servers, each as the models it has.
    servers
        How many each group has.
    tls
        Whether connections are encrypted, with certificates on both sides, as they are by default.
    address
        Where driver and servers listen: an address, or the name of an interface.
    """
    with tempfile.TemporaryDirectory(prefix="sonic-parsl-benchmark-") as name:
        folder = Path(name)
        lines = []
        for number, models in enumerate(groups):
            for model in models:
                model.write(folder / f"models-{number}")
            lines.append(
                GROUP.format(
                    name=f"triton-{number}",
                    servers=servers,
                    lease_s=lease_s,
                    ready_s=READY_S,
                    models=folder / f"models-{number}",
                )
            )
        path = folder / "benchmark.yaml"
        path.write_text(
            SITE.format(groups="\n".join(lines), folder=folder, security="tls" if tls else "none", address=address)
        )
        with load_site(path) as site:
            site.pool.wait_ready(servers * len(groups), timeout_s=READY_S)
            yield site


@contextmanager
def jets_file(events: int) -> Iterator[Path]:
    """Write a NanoAOD file with so many events, about eight jets each, for the time of a ``with`` block."""
    with tempfile.TemporaryDirectory(prefix="sonic-parsl-benchmark-") as folder:
        yield generate(Path(folder) / "nano.root", events=events)


# Measuring -------------------------------------------------------------------


def in_turns(rounds: int, *ways: Callable[[], Any], warm_up: bool = True) -> list[list[Any]]:
    """Return what each way measures in each round; all take part in a round, one after the other.

    Whatever else the machine does then meets all of them. A round before the first warms up.
    """
    found = [[_tidy(way) for way in ways] for _ in range(rounds + warm_up)]
    return [list(values) for values in zip(*found[warm_up:], strict=True)]


def _tidy(way: Callable[[], Any]) -> Any:
    gc.collect()
    return way()


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes
    ----------
    what
        What was measured.
    ours, peer
        Medians, in `unit`.
    ratio
        How much better ours is: the median of the rounds' own ratios.
    reach
        The ratio to reach; None where none is set.
    """

    what: str
    ours: float
    peer: float
    unit: str
    ratio: float
    reach: float | None = None


def faster(what: str, ours: Sequence[float], peer: Sequence[float], unit: str, reach: float | None = None) -> Row:
    """Return the row of two rates: more is better."""
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    return Row(what, median(ours), median(peer), unit, median(ratios), reach)


def sooner(what: str, ours: Sequence[float], peer: Sequence[float], unit: str, reach: float | None = None) -> Row:
    """Return the row of two times: less is better."""
    ratios = [b / a for a, b in zip(ours, peer, strict=True)]
    return Row(what, median(ours), median(peer), unit, median(ratios), reach)


# A script --------------------------------------------------------------------


def script(measure: Callable[[int, bool], list[Row]]) -> click.Command:
    """Return the command of a benchmark; `measure` takes the number of rounds and whether it is to be quick."""

    @click.command(help=measure.__doc__)
    @click.option("--rounds", type=click.IntRange(1), help=f"Rounds that count; {ROUNDS} by default.")
    @click.option("--quick", is_flag=True, help="Little work and one round: shows that it runs, not how fast.")
    @click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the rows there.")
    def main(rounds: int | None, quick: bool, json_path: Path | None) -> None:
        os.environ.setdefault("MPLBACKEND", "agg")
        rows = measure(rounds or (QUICK_ROUNDS if quick else ROUNDS), quick)
        show(rows, title=measure.__doc__)
        if json_path is not None:
            json_path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")

    return main


def show(rows: Sequence[Row], *, title: str | None) -> None:
    """Print the table."""
    table = Table(title=title, caption=f"{os.cpu_count()} cores, {platform.machine()}")
    for name in ("what", "ours", "peer", "unit", "ratio", "to reach"):
        table.add_column(name, justify="left" if name in {"what", "unit"} else "right")
    for row in rows:
        table.add_row(row.what, _short(row.ours), _short(row.peer), row.unit, _ratio(row), _short(row.reach))
    Console().print(table)


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _ratio(row: Row) -> str:
    text = f"{row.ratio:.2f}"
    return f"[red]{text}[/]" if row.reach is not None and row.ratio < row.reach else text
