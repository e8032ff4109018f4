"""Several runs at once: on one pool, on one node, of two users. What ends one of them is no affair of the others."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import coffea.util
import numpy as np
import psutil
import pytest

import sonic_parsl
from sonic_parsl.cache import cache_dir
from sonic_parsl.errors import PoolError
from sonic_parsl.pool import named
from sonic_parsl.pool.attached import AttachedPool
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.workflows.generate import generate
from tests.faults.runs import EVENTS, Analysis, workers, write_site
from tests.faults.users import UID, as_another_user
from tests.leaks import POOL_WORDS, assert_nothing_is_left, our_processes, told, wait_until
from tests.live.test_notebook import LOAD, notebook

PROGRAM = Path(sys.executable).with_name("sonic-parsl")
CHECKOUT = Path(sonic_parsl.__file__).parents[1]
END_S = 120.0
RUN = "SONIC_PARSL_TEST_FOLDER"
"""Environment variable by which a run's workers are known: a job of the local provider is no child of its driver."""


@contextmanager
def run(folder: Path, data: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run an analysis on the command line."""
    argv: list[str | Path] = [PROGRAM, "run", "btag_ttbar", data, "--output", folder / "out", "--chunksize", "100"]
    folder.mkdir(exist_ok=True)
    with (
        (folder / "log").open("w+") as log,
        subprocess.Popen(
            [*argv, *options], stdout=log, stderr=log, text=True, env={**os.environ, RUN: str(folder)}
        ) as one,
    ):
        try:
            yield one
        finally:
            one.kill()


@contextmanager
def run_as_another_user(folder: Path, data: Path, site: Path) -> Iterator[subprocess.Popen[str]]:
    """The same as another user, whose home is `folder`."""
    argv: list[str | Path] = [PROGRAM, "run", "btag_ttbar", data, "--site", site, "--chunksize", "100"]
    argv += ["--output", folder / "out"]
    folder.mkdir()
    os.chown(folder, UID, UID)
    with (
        (folder / "log").open("w+") as log,
        subprocess.Popen(
            by_another_user(*argv), stdout=log, stderr=log, text=True, env=env_at(folder), cwd=folder
        ) as one,
    ):
        try:
            yield one
        finally:
            one.kill()


def by_another_user(*argv: str | Path) -> list[str]:
    return as_another_user(argv, sees=[cache_dir(), CHECKOUT])


def env_at(home: Path) -> dict[str, str]:
    """Return the environment of another user, whose home is `home`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    return {**env, "HOME": str(home), "TMPDIR": "/tmp", "SONIC_PARSL_CACHE": str(cache_dir())}


def told_another_user(home: Path, *argv: str | Path, **env: str) -> tuple[int, str]:
    """Return what a command of another user, whose home is `home`, comes to: exit code and all it prints."""
    done = subprocess.run(
        by_another_user(*argv),
        env=env_at(home) | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=home,
    )
    return done.returncode, done.stdout


def open_to_all(folder: Path) -> None:
    """Let others go through a folder of pytest's."""
    for each in (folder, *folder.parents[:-2]):
        each.chmod(each.stat().st_mode | 0o011)


def said(folder: Path) -> str:
    return (folder / "log").read_text()


def result(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return what a run brought home: its accumulator and its report."""
    report: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    return coffea.util.load(folder / "out" / "btag_ttbar.coffea"), report


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("many") / "events.root", events=200_000)


USE = """
from pathlib import Path
from coffea.nanoevents import NanoEventsFactory

events = NanoEventsFactory.from_root({{{data!r}: "Events"}}, schemaclass=NanoAODSchema, mode="virtual").events()
tagger = sonic.Model("btag", inputs=btag_inputs.FEATURES, outputs=btag_inputs.CLASSES)

def use():
    scores = tagger(events.Jet)
    found = np.stack([ak.to_numpy(ak.flatten(scores[name])) for name in btag_inputs.CLASSES], axis=1)
    np.testing.assert_allclose(found, np.load("right.npy"), atol=1e-6)

use()
"""
USE_MEANWHILE = """
while not Path("over").exists():
    use()
    Path("used").touch()
"""


def test_two_runs_and_a_notebook_use_one_pool_and_one_of_them_is_killed(
    home: Path, analysis: Analysis, many: Path
) -> None:
    site = write_site(home)
    subprocess.run([PROGRAM, "pool", "start", "--site", site, "--name", "ours", "--daemon"], check=True)
    servers = {process.pid for process in our_processes("bin/tritonserver --model")}
    load = LOAD.format(site=str(site)).replace(f"{str(site)!r})", f"{str(site)!r}, pool='ours')")
    attached = ("--site", str(site), "--pool", "ours")
    np.save(home / "right.npy", analysis.right)

    def wait_until_used_again() -> None:
        (home / "used").unlink(missing_ok=True)
        wait_until((home / "used").exists, END_S)

    def kill_one_of_two() -> None:
        with (
            run(home / "killed", many, *attached) as victim,
            run(home / "other", analysis.path, *attached) as other,
        ):
            wait_until(lambda: _computes(home / "killed"), END_S, what=lambda: said(home / "killed"))
            wait_until_used_again()
            victim.kill()
            wait_until_used_again()
            (home / "over").touch()
            assert other.wait(END_S) == 0, said(home / "other")

    async def use() -> None:
        async with notebook(home) as opened:
            await opened.run(load, USE.format(data=str(analysis.path)))
            await asyncio.gather(opened.run(USE_MEANWHILE), asyncio.to_thread(kill_one_of_two))
            await opened.run("use()", "site.close()")

    asyncio.run(use())
    out, report = result(home / "other")
    assert report["events_out"] == EVENTS
    analysis.check_output(out)
    now = {process.pid for process in our_processes("bin/tritonserver --model")}
    assert now >= servers, "the pool's servers went with a run"
    assert [record.name for record in named.running()] == ["ours"]
    subprocess.run([PROGRAM, "pool", "stop", "ours"], check=True)
    wait_until(lambda: not our_processes(*POOL_WORDS), 5)
    assert_nothing_is_left(60)


def _computes(folder: Path) -> bool:
    """Whether a worker of this run has been at work for some seconds."""
    with suppress(psutil.NoSuchProcess):
        return any(worker.cpu_times().user > 3.0 for worker in workers() if worker.environ().get(RUN) == str(folder))
    return False


def test_a_pool_ends_when_nobody_asks_it_and_says_so(home: Path) -> None:
    done = subprocess.run(
        [PROGRAM, "pool", "start", "--site", write_site(home, count=1), "--name", "short", "--idle", "8"],
        capture_output=True,
        text=True,
        check=True,
        timeout=END_S,
    )
    assert (
        "Pool short is up, with no servers ready so far; use it with `sonic-parsl run ... --pool short`" in done.stdout
    )
    assert "Pool short ended: nobody has asked it anything for 8 s." in done.stdout
    late = subprocess.run(
        [PROGRAM, "run", "btag_ttbar", "--pool", "short"], capture_output=True, text=True, check=False
    )
    assert late.returncode == 1
    assert "Error: The pool short has ended." in late.stderr
    assert_nothing_is_left()


def test_a_second_pool_of_the_same_name_and_a_name_that_is_none_are_refused(home: Path) -> None:
    with named.owning("mine", site=home):
        for args, sentence in (
            (("start", "--name", "mine"), "A pool named mine runs already."),
            (("start", "--name", "a/b"), "A pool cannot be named 'a/b'."),
            (("stop", "other"), "There is no pool named other. Running are: mine."),
        ):
            done = subprocess.run([PROGRAM, "pool", *args], capture_output=True, text=True, check=False)
            assert (done.returncode, sentence in done.stderr) == (1, True), done.stderr
        listed = subprocess.run([PROGRAM, "pool", "list"], capture_output=True, text=True, check=True)
        assert listed.stdout.startswith(f"mine: site {home}, process {os.getpid()} on ")
    assert not named.running()


def test_a_pools_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    path.write_text("{}")
    path.chmod(0o640)
    with pytest.raises(PoolError, match="holds a key and can be read by others"):
        AttachedPool(path)


def test_two_runs_on_one_node_do_not_see_each_other(analysis: Analysis, many: Path, tmp_path: Path) -> None:
    site = write_site(tmp_path, count=1)
    with (
        run(tmp_path / "one", many, "--site", str(site)) as one,
        run(tmp_path / "two", analysis.path, "--site", str(site)) as two,
    ):
        wait_until(lambda: _computes(tmp_path / "one"), END_S, what=lambda: said(tmp_path / "one"))
        one.send_signal(signal.SIGTERM)
        assert two.wait(END_S) == 0, said(tmp_path / "two")
        one.wait(60)
    out, report = result(tmp_path / "two")
    assert report["events_out"] == EVENTS
    analysis.check_output(out)
    assert len(report["servers"]) == 1
    assert report["retries"] == 0
    assert_nothing_is_left()


def _pool_of(uid: int) -> int:
    """Return how many processes of pools a user has: registry, agent, Triton ..."""
    return told(our_processes(*POOL_WORDS), lambda process: process.uids().real).count(uid)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


@needs_root
def test_two_users_run_on_one_node_and_neither_sees_the_other(home: Path, analysis: Analysis) -> None:
    open_to_all(home)
    data = home / "events.root"
    data.write_bytes(analysis.path.read_bytes())
    data.chmod(0o644)
    site = write_site(home, count=1)
    subprocess.run([PROGRAM, "pool", "start", "--site", site, "--name", "ours", "--daemon"], check=True)
    with (
        run(home / "one", data, "--site", str(site), "--pool", "ours") as one,
        run_as_another_user(home / "two", data, site) as two,
    ):
        for uid in (os.getuid(), UID):
            wait_until(lambda uid=uid: _pool_of(uid) >= 3, END_S, what=lambda: said(home / "two"))  # type: ignore[misc]
        (theirs,) = (home / "two" / ".local/state/sonic-parsl/runs").iterdir()
        assert (theirs.stat().st_uid, theirs.stat().st_mode & 0o777) == (UID, 0o700)
        wait_until((theirs / "pool.json").exists, END_S)
        code, status = told_another_user(home / "two", PROGRAM, "status", "--json")
        assert (code, [pool["folder"] for pool in json.loads(status)["pools"]]) == (0, [str(theirs)])
        assert_nothing_is_seen_of_the_pool(home)
        assert one.wait(END_S) == 0, said(home / "one")
        assert two.wait(END_S) == 0, said(home / "two")
    for name in ("one", "two"):
        out, report = result(home / name)
        assert report["events_out"] == EVENTS
        analysis.check_output(out)
        assert (len(report["servers"]), report["retries"]) == (1, 0)
    subprocess.run([PROGRAM, "pool", "stop", "ours"], check=True)
    assert_nothing_is_left(60)


def assert_nothing_is_seen_of_the_pool(home: Path) -> None:
    """Let another user look for this user's pool named ours, also where it lies."""
    there, folder = {"XDG_STATE_HOME": str(home / "state")}, named.run_dir("ours")
    assert (folder / "pool.json").is_file()
    told = partial(told_another_user, home / "two")
    assert told(PROGRAM, "pool", "list") == (0, "")
    assert told(PROGRAM, "pool", "list", **there) == (0, "")
    assert told(PROGRAM, "status", "--run-dir", folder)[1].startswith(f"Error: There is no run in {folder}.")
    attach: list[str | Path] = [PROGRAM, "run", "btag_ttbar", home / "events.root", "--pool", "ours"]
    assert told(*attach, **there)[1].startswith("Error: There is no pool named ours.")
    assert "Permission denied" in told("cat", folder / "pool.json")[1]


ATTACH = """
import sys
from pathlib import Path
from sonic_parsl.errors import PoolError
from sonic_parsl.pool.attached import AttachedPool
from sonic_parsl.pool.pool import ServerPool
try:
    AttachedPool(Path(sys.argv[1]))
except PoolError as error:
    print(error)
"""


@needs_root
def test_only_its_owners_processes_can_attach_to_a_pool_whose_file_others_find(tmp_path: Path) -> None:
    open_to_all(tmp_path)
    with ServerPool(run_dir=tmp_path / "run") as pool:
        AttachedPool(pool.ref_path)
        attach: list[str | Path] = [sys.executable, "-c", ATTACH, pool.ref_path]
        code, text = told_another_user(tmp_path, *attach)
        assert (code, "cannot be read: Permission denied" in text) == (0, True), text
        pool.run_dir.chmod(0o755)
        code, text = told_another_user(tmp_path, *attach)
        assert (code, "is another user's; only its owner's processes can attach" in text) == (0, True), text
        assert "Permission denied" in told_another_user(tmp_path, "cat", pool.ref_path)[1]
