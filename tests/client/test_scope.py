from __future__ import annotations

import json
import pickle
import threading
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from sonic_parsl.client import scope
from sonic_parsl.client.call import Call, Ledger
from sonic_parsl.client.records import CallRecord, merged
from sonic_parsl.client.scope import Chunk, Scope, chunk_scope, current_pool, current_scope, set_default_pool
from sonic_parsl.errors import DeadlineError, InferenceError, PoolNotFoundError, RejectedError
from sonic_parsl.poolref import POOL_ENV, PoolRef
from sonic_parsl.protocol import ServedModel

MODEL = ServedModel("btag", "3", 8, (), ())
OUTPUT = {"score": np.zeros(3, np.float32)}


def pool(name: str) -> PoolRef:
    return PoolRef(name, ("127.0.0.1:1",))


def new_call() -> Call:
    return Call(Ledger(MODEL, 3, 1), "file:0-3")


def test_the_scopes_pool_comes_before_the_process_and_that_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(POOL_ENV, raising=False)
    with pytest.raises(PoolNotFoundError, match="not told of a pool"):
        current_pool()
    pool("environment").write(tmp_path / "pool.json")
    monkeypatch.setenv(POOL_ENV, str(tmp_path / "pool.json"))
    assert current_pool().run_id == "environment"
    set_default_pool(pool("default"))
    try:
        assert current_pool().run_id == "default"
        with chunk_scope(pool("chunk"), Chunk("file", 0, 3)):
            assert current_pool().run_id == "chunk"
    finally:
        set_default_pool(None)
    assert current_pool().run_id == "environment"


def test_a_chunk_ends_with_its_block_and_is_its_threads_only() -> None:
    outside = current_scope()
    seen = []
    with chunk_scope(None, Chunk("file", 0, 3)) as inside:
        assert current_scope() is inside
        thread = threading.Thread(target=lambda: seen.append(current_scope()))
        thread.start()
        thread.join()
    assert seen == [outside]
    assert current_scope() is outside


def test_a_scope_waits_for_its_calls_and_keeps_their_records() -> None:
    one = Scope(chunk=Chunk("file", 0, 3))
    call = new_call()
    one.add(call)
    assert list(one.pending) == [call]
    timer = threading.Timer(0.1, call.finish, (OUTPUT,))
    timer.start()
    one.wait()
    assert not list(one.pending)
    (record,) = one.records()
    assert (record.model, record.rows, record.read, record.error) == ("btag", 3, False, None)
    assert 0.05 < record.waiting_s < 5.0
    timer.join()


def test_an_exception_in_the_chunk_cancels_what_is_pending() -> None:
    call = new_call()

    def process() -> None:
        with chunk_scope(None, Chunk("file", 0, 3)):
            current_scope().add(call)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        process()
    with pytest.raises(InferenceError, match=r"cancelled before its result came.*btag version 3, chunk file:0-3"):
        call.result()
    assert call.ledger.record().error == "cancelled"


def test_reading_is_noted_and_errors_are_too() -> None:
    one = Scope(chunk=Chunk("file", 0, 3))
    for outcome in (OUTPUT, RejectedError("The server refuses.")):
        call = new_call()
        one.add(call)
        call.finish(outcome)
    assert call.exception() is not None
    with pytest.raises(RejectedError, match="The server refuses"):
        call.result()
    assert [(r.read, r.error) for r in one.records()] == [(False, None), (True, "The server refuses.")]


def test_a_result_that_does_not_come_in_time_is_no_oserror() -> None:
    with pytest.raises(DeadlineError, match=r"no result after 0.01 s.*chunk file:0-3"):
        new_call().result(0.01)


def test_records_travel_as_pickle_and_json() -> None:
    ledger = Ledger(MODEL, 3, 1)
    ledger.answered("gpu-1", 3, 0.01)
    record = ledger.record()
    assert pickle.loads(pickle.dumps(record)) == record
    assert json.loads(json.dumps(asdict(record)))["servers"]["gpu-1"]["rows"] == 3


def test_merged_records_are_the_sum_of_their_numbers() -> None:
    ledgers = [Ledger(MODEL, 3, 1) for _ in range(2)]
    ledgers[0].answered("gpu-1", 3, 0.01)
    ledgers[1].tried_again(3, elsewhere=True)
    ledgers[1].answered("gpu-2", 3, 0.02)
    (total,) = merged(ledger.record() for ledger in ledgers)
    assert (total.calls, total.rows, total.requests, total.retries, total.failovers) == (2, 6, 2, 1, 1)
    assert {name: share.rows for name, share in total.servers.items()} == {"gpu-1": 3, "gpu-2": 3}
    assert merged([CallRecord("a", "1"), CallRecord("b", "1")]) == (CallRecord("a", "1"), CallRecord("b", "1"))


def test_old_calls_outside_of_chunks_are_kept_as_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scope, "KEPT_CALLS", 10)
    one = Scope()
    for _ in range(95):
        call = new_call()
        one.add(call)
        call.finish(OUTPUT)
    assert len(one.records()) < 25
    assert sum(record.calls for record in one.records()) == 95
    assert sum(record.rows for record in one.records()) == 95 * 3
