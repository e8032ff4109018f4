"""A run's thread: what it returns and raises comes through, and Ctrl-C ends it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import ContextVar

import pytest

from sonic_parsl.executors.chunks.own_thread import Interrupted, OwnThread
from tests.leaks import wait_until


@contextmanager
def ctrl_c_once(begun: threading.Event) -> Iterator[None]:
    """Let Ctrl-C come to this thread after it begins to wait."""

    def press() -> None:
        begun.wait(10)
        time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    person = threading.Thread(target=press)
    person.start()
    try:
        yield
    finally:
        person.join()
        signal.signal(signal.SIGINT, before)


def threads_left() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sonic-parsl-run"]


def assert_no_thread_is_left() -> None:
    wait_until(lambda: not threads_left(), 10, what=threads_left)  # it ends soon after it said so


def test_what_it_returns_and_raises_comes_through_and_it_sees_the_callers_context() -> None:
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("of the caller")
    assert OwnThread(variable.get).result() == "of the caller"
    with pytest.raises(ZeroDivisionError):
        OwnThread(lambda: 1 // 0).result()


def test_futures_end_as_their_tasks_do() -> None:
    tasks: list[Future[int]] = [Future(), Future()]

    def work() -> list[object]:
        futures = [run.launching(lambda task=task: task)() for task in tasks]
        tasks[0].set_result(1)
        tasks[1].set_exception(KeyError("two"))
        return [future.exception() or future.result() for future in futures]

    run: OwnThread[list[object]] = OwnThread(work)
    one, two = run.result()
    assert one == 1
    assert isinstance(two, KeyError)


def never() -> Future[None]:
    return Future()


def waits(run: Callable[[], OwnThread[None]], begun: threading.Event) -> None:
    futures = [run().launching(never)() for _ in range(1000)]
    begun.set()
    wait(futures)
    for future in futures:
        future.result()


def launches(run: Callable[[], OwnThread[None]], begun: threading.Event) -> None:
    while True:
        run().launching(never)()
        begun.set()


@pytest.mark.parametrize("work", [waits, launches])
def test_ctrl_c_ends_it(work: Callable[[Callable[[], OwnThread[None]], threading.Event], None]) -> None:
    begun, ended = threading.Event(), []

    def until_interrupted() -> None:
        try:
            work(lambda: run, begun)
        except Interrupted as end:
            ended.append(end)
            raise

    run = OwnThread(until_interrupted)
    with ctrl_c_once(begun), pytest.raises(KeyboardInterrupt):
        run.result()
    assert len(ended) == 1
    assert_no_thread_is_left()


def test_ctrl_c_at_its_very_beginning_ends_it() -> None:
    main = threading.get_ident()

    def work(run: Callable[[], OwnThread[None]]) -> None:
        signal.pthread_kill(main, signal.SIGINT)  # the main thread may still wait for this one to start
        while True:
            run().launching(never)()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for _ in range(50):
            run: OwnThread[None] = OwnThread(lambda: work(lambda: run))  # noqa: B023
            with pytest.raises(KeyboardInterrupt):
                run.result()
    finally:
        signal.signal(signal.SIGINT, before)
    wait_until(lambda: not threads_left(), 10)


def test_a_task_that_ends_after_ctrl_c_is_nobodys() -> None:
    begun, task = threading.Event(), Future[int]()

    def work() -> int:
        future = run.launching(lambda: task)()
        begun.set()
        result: int = future.result()
        return result

    run = OwnThread(work)
    with ctrl_c_once(begun), pytest.raises(KeyboardInterrupt):
        run.result()
    task.set_result(1)
    assert_no_thread_is_left()
