"""When a pool that outlives its runs ends by itself."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sonic_parsl.errors import PoolError
from sonic_parsl.executors import lasting_pool
from sonic_parsl.executors.lasting_pool import IdleWatch, count_ready, keep_pool, start_in_background
from sonic_parsl.pool import authority, named
from tests.executors.conftest import write_site
from tests.leaks import assert_nothing_is_left, our_processes, wait_until


@given(idle_s=st.floats(1, 1e4), part=st.floats(0, 0.99))
def test_it_is_over_after_the_idle_time_and_not_before(idle_s: float, part: float) -> None:
    watch = IdleWatch(idle_s)
    assert not watch.is_over(0, 100.0, waits=False)
    assert not watch.is_over(0, 100.0 + part * idle_s, waits=False)
    assert watch.is_over(0, 100.0 + 1.01 * idle_s, waits=False)


@given(idle_s=st.floats(1, 1e4), queued_s=st.floats(0, 1e5), part=st.floats(0, 0.99))
def test_waiting_for_a_server_is_not_idle(idle_s: float, queued_s: float, part: float) -> None:
    watch, now = IdleWatch(idle_s), 100.0
    for _ in range(2):  # for the first one, and for the next where a walltime ended
        assert not watch.is_over(0, now, waits=True)
        now += queued_s
        assert not watch.is_over(0, now, waits=True)
        now += part * idle_s
        assert not watch.is_over(0, now, waits=False)
    assert watch.is_over(0, now + 1.01 * idle_s, waits=False)


@given(idle_s=st.floats(1, 1e4), gaps=st.lists(st.floats(0, 0.99), max_size=20))
def test_each_request_lets_it_begin_anew(idle_s: float, gaps: list[float]) -> None:
    watch, now = IdleWatch(idle_s), 0.0
    for requests, gap in enumerate(gaps):
        now += gap * idle_s
        assert not watch.is_over(requests, now, waits=False)


ROOT = Path(__file__).parents[2]
ATTACH = """
import sys
import threading
from pathlib import Path

from sonic_parsl.client.session import Session
from sonic_parsl.errors import PoolLostError
from sonic_parsl.poolref import PoolRef
from tests.leaks import wait_until

session = Session(PoolRef.read(Path(sys.argv[1])), grace_s=1.0)
session.wait_for(lambda table: bool(table.ready) or table.lost is not None, 120)
Path("served").touch()
session.wait_for(lambda table: table.lost is not None, 120)
print(*(model.name for entry in session.seen for model in entry.info.models))
wait_until(lambda: session.problem is not None, 10)
told = session.problem
wait_until(lambda: session.problem is not told, 30)  # that its registry does not answer any more is no news
try:
    session.served("btag", deadline_s=1)
except PoolLostError as error:
    print(error.message)
session.close()
"""


WHY = {
    "idle": "nobody has asked it anything for 1 s",
    "certificates": "its certificates are about to expire",
    "stopped": "it was stopped",
}


@pytest.mark.parametrize("kind", WHY)
def test_who_is_attached_when_it_ends_is_told_why_and_how_to_start_it_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    site, attached = str(write_site(tmp_path, count="1")), list[subprocess.Popen[str]]()

    def attach(ready: int) -> None:
        assert ready == 0
        argv = [sys.executable, "-c", ATTACH, str(named.run_dir("mine") / "pool.json")]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        attached.append(subprocess.Popen(argv, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True))
        if kind != "idle":
            threading.Thread(target=end_it_once_it_serves).start()

    def end_it_once_it_serves() -> None:
        wait_until((tmp_path / "served").exists, 120)
        assert count_ready("mine") == 1
        if kind == "stopped":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            monkeypatch.setattr(lasting_pool, "BEFORE_EXPIRY_S", 2 * authority.VALID.total_seconds())

    idle_s = 1.0 if kind == "idle" else 600.0  # shorter than a server's start, which does not count
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # who started the tests may have it ignored
    try:
        why = keep_pool("mine", site, models=None, idle_s=idle_s, console=Console(file=io.StringIO()), on_up=attach)
    finally:
        signal.signal(signal.SIGINT, before)
    assert why == WHY[kind]
    (one,) = attached
    seen, said = one.communicate(timeout=60)[0].splitlines()
    assert seen == "btag shape_demo", "it ended before its server was ready"
    assert said == (
        f"The pool is lost: the pool mine ended, for {why}. Start it again: `sonic-parsl pool start --site {site} "
        "--name mine`, where --idle says for how long it waits; then attach to it again"
    )
    assert not named.run_dir("mine").exists(), "what is no failure leaves no folder"
    assert_nothing_is_left()


def test_a_second_pool_of_a_name_leaves_the_log_of_the_first_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    site = write_site(tmp_path)
    with named.owning("mine", site=site):
        log = named.log_path("mine")
        log.write_text("of the first\n")
        there = sorted(log.parent.iterdir())
        with pytest.raises(PoolError, match="did not start: A pool named mine runs already"):
            start_in_background("mine", ["pool", "start", "--site", str(site), "--name", "mine"])
        assert log.read_text() == "of the first\n"
        assert sorted(log.parent.iterdir()) == there


def test_ctrl_c_while_a_pool_starts_in_the_background_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    # Who started the tests may have had them ignore Ctrl-C.
    argv = ["env", "--default-signal=INT", sys.executable, "-c", lasting_pool.PROGRAM, "pool", "start"]
    argv += ["--site", str(write_site(tmp_path)), "--name", "mine", "--daemon"]
    with subprocess.Popen(argv, start_new_session=True, stderr=subprocess.PIPE, text=True) as starting:
        wait_until(named.running, 60)
        os.killpg(starting.pid, signal.SIGINT)
        _, said = starting.communicate(timeout=60)
    assert (starting.returncode, said) == (1, "Error: The pool mine was stopped before it was up.\n")
    assert not named.running()
    assert not our_processes("pool start")
    assert not list(named.log_path("mine").parent.glob("*.log"))
    assert_nothing_is_left()
