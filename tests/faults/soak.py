"""The soak: minutes of random faults over generated NanoAOD, and nothing is lost and nothing grows.

Run it with ``make soak``, or ``python -m tests.faults.soak --minutes 2``. It exits with 1 where an event, a score
or a histogram differs, where driver, registry or workers grow, or where faults did not strike.
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

import sonic_parsl as sonic
from sonic_parsl.executors.site import Site
from sonic_parsl.pool.pool import MAX_RESTARTS
from sonic_parsl.workflows.generate import generate
from tests.faults.runs import EVENTS, Analysis, agents, tritons, wait_whole, workers, write_site
from tests.leaks import assert_nothing_is_left, mark_this_run, our_processes

PAUSE_S = (4.0, 15.0)
"""Between two faults; a replacement takes about five seconds."""
STOP_S = (1.0, 12.0)
"""How long a process is stopped: shorter and longer than a lease."""
WORKERS = 2
LONG_RUNS = 20
"""Who lived for so many runs is asked whether it grows; before that, caches fill and libraries load."""
MEMORY, DESCRIPTORS, THREADS = 8 * 2**20, 8, 4
"""So much more at the end than ever in the first half of a life is no leak: memory comes in pages of many blocks, and a
server that is replaced has a connection beside its successor's. Driver and workers hold some 300 MB, a registry 70."""
ALL_KINDS_MINUTES = 10.0
"""A soak of this length is long enough for each kind of fault, and for a long life of each role."""


@dataclass(frozen=True)
class Size:
    """What a process holds."""

    memory: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, process: psutil.Process) -> Size:
        """Measure a process."""
        return cls(process.memory_info().rss, process.num_fds(), process.num_threads())

    @classmethod
    def peak(cls, sizes: Sequence[Size]) -> Size:
        """Return the most of each."""
        return cls(
            max(size.memory for size in sizes),
            max(size.descriptors for size in sizes),
            max(size.threads for size in sizes),
        )

    def grown(self, since: Size) -> list[str]:
        """Return what has grown, a sentence each."""
        bounds = {"memory": MEMORY, "descriptors": DESCRIPTORS, "threads": THREADS}
        return [
            f"{name} grew from {getattr(since, name)} to {getattr(self, name)}"
            for name, bound in bounds.items()
            if getattr(self, name) > getattr(since, name) + bound
        ]


def kill(process: psutil.Process, _: random.Random) -> None:
    """End a process at once."""
    process.kill()


def ask_to_end(process: psutil.Process, _: random.Random) -> None:
    """Ask a process to end."""
    process.terminate()


def stop_for_a_while(process: psutil.Process, rng: random.Random) -> None:
    """Let a process stand still."""
    process.suspend()
    time.sleep(rng.uniform(*STOP_S))
    with suppress(psutil.NoSuchProcess):  # its pool may have ended it meanwhile
        process.resume()


REGISTRY = "SIGKILL of the registry"
"""So often in ten minutes its owner starts it again, and no more."""
Find = Callable[[], list[psutil.Process]]
Fault = tuple[str, Find, Callable[[psutil.Process, random.Random], None]]
FAULTS: list[Fault] = [
    ("SIGKILL of Triton", tritons, kill),
    ("SIGKILL of a model's process", lambda: our_processes("triton_python_backend_stub"), kill),
    ("SIGKILL of an agent", agents, kill),
    ("SIGKILL of a worker", lambda: workers()[:WORKERS], kill),
    (
        "SIGKILL of the workers' pool",
        lambda: our_processes("python3 -m sonic_parsl.executors.workers.worker_pool"),
        kill,
    ),
    ("SIGTERM of an agent", agents, ask_to_end),
    (REGISTRY, lambda: our_processes("sonic_parsl.pool.registry"), kill),
    ("SIGSTOP of Triton", tritons, stop_for_a_while),
    ("SIGSTOP of an agent", agents, stop_for_a_while),
    ("SIGSTOP of the registry", lambda: our_processes("sonic_parsl.pool.registry"), stop_for_a_while),
]


@contextmanager
def faults(
    rng: random.Random, kinds: Sequence[Fault] = FAULTS, pause_s: tuple[float, float] = PAUSE_S
) -> Iterator[list[str]]:
    """Do one fault after the other in the ``with`` block; yield what has struck.

    Each kind has its turn before one comes again. What goes wrong in the doing is raised at the end of the block.
    """
    done, log = threading.Event(), list[str]()

    def go_on() -> None:
        turns: list[Fault] = []
        while not done.wait(rng.uniform(*pause_s)):
            turns = turns or rng.sample(kinds, len(kinds))
            name, find, act = turns.pop()
            if name == REGISTRY and log.count(REGISTRY) >= MAX_RESTARTS:
                continue
            if victims := find():
                with suppress(psutil.NoSuchProcess):
                    act(rng.choice(victims), rng)
                    log.append(name)
                    click.echo(f"  {name}")

    with ThreadPoolExecutor(1) as thread:
        outcome = thread.submit(go_on)
        try:
            yield log
        finally:
            done.set()
    outcome.result()


def missed(log: Sequence[str], minutes: float) -> list[str]:
    """Return what did not strike in a run that was long enough for it, a sentence each."""
    if not log:
        return ["no fault has struck"]
    kinds = [name for name, _, _ in FAULTS] if minutes >= ALL_KINDS_MINUTES else []
    return [f"{name} has never struck" for name in kinds if name not in log]


class Growth:
    """Sizes of driver, registry and workers after each run.

    Faults replace processes. So each that lived long is compared to what it was in the first half of its life; and
    the last of a role to the first: what a registry takes over from the one before must not grow either.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, dict[psutil.Process, list[Size]]] = {"driver": {}, "registry": {}, "worker": {}}

    def note(self) -> None:
        """Measure every process that is there now."""
        now = {
            "driver": [psutil.Process()],
            "registry": our_processes("sonic_parsl.pool.registry"),
            "worker": workers()[:WORKERS],
        }
        for role, processes in now.items():
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    self.sizes[role].setdefault(process, []).append(Size.of(process))

    def found(self) -> list[str]:
        """Return what has grown, a sentence each, and say what was compared."""
        grown = []
        for role in self.sizes:
            long_lived = self.long_lived(role)
            for process, sizes in long_lived.items():
                first_half = Size.peak(sizes[: len(sizes) // 2])
                click.echo(f"{role} {process.pid}, {len(sizes)} runs: {first_half} at most, in the end {sizes[-1]}")
                since_own = sizes[-1].grown(first_half)
                first = next(iter(long_lived.values()))
                since_first = [] if since_own else sizes[-1].grown(Size.peak(first[: len(first) // 2]))
                grown += [f"{role} {process.pid}: {text}" for text in since_own + since_first]
        return grown

    def long_lived(self, role: str) -> dict[psutil.Process, list[Size]]:
        """Return the processes of a role of which can be said whether they grow."""
        return {process: sizes for process, sizes in self.sizes[role].items() if len(sizes) >= LONG_RUNS}

    def unknown(self, minutes: float) -> list[str]:
        """Return of which role nothing is known, though the soak was long enough, a sentence each."""
        roles = self.sizes if minutes >= ALL_KINDS_MINUTES else ()
        return [
            f"{role}: none lived for {LONG_RUNS} runs, so that nothing is known of it"
            for role in roles
            if not self.long_lived(role)
        ]


def soak(site: Site, analysis: Analysis, minutes: float, rng: random.Random) -> list[str]:
    """Run the analysis again and again between faults; return what has grown, and what did not strike."""
    growth, runs = Growth(), 0

    def run() -> None:
        analysis.check(analysis.run(site.coffea_executor(status=False)))
        growth.note()

    run()
    end = time.monotonic() + 60 * minutes
    with faults(rng) as log:
        while time.monotonic() < end:
            run()
            runs += 1
            held = Size.of(psutil.Process()).memory // 2**20
            click.echo(
                f"run {runs}: {EVENTS} events, every score and histogram as undisturbed; "
                f"{len(log)} faults so far; driver {held} MiB"
            )
    wait_whole(site)
    run()
    click.echo(f"{runs} runs of {EVENTS} events, {len(log)} faults")
    return growth.found() + growth.unknown(minutes) + missed(log, minutes)


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True)
@click.option("--seed", type=int, help="Of the faults; another one each time by default, which is printed.")
def main(minutes: float, seed: int | None) -> None:
    """Run an analysis for minutes under random faults."""
    mark_this_run()
    seed = seed if seed is not None else random.SystemRandom().randrange(10**6)
    click.echo(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        analysis = Analysis(generate(Path(folder) / "events.root", events=EVENTS))
        with sonic.load_site(write_site(Path(folder))) as site:
            site.wait_ready()
            wrong = soak(site, analysis, minutes, random.Random(seed))
    assert_nothing_is_left(60)
    for text in wrong:
        click.echo(f"Error: {text}", err=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
