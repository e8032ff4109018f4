from __future__ import annotations

import gc
import pickle
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from sonic_parsl.client import dispatch
from sonic_parsl.client.scope import Chunk, chunk_scope
from sonic_parsl.client.session import Session
from sonic_parsl.credentials import client_name
from sonic_parsl.errors import (
    DeadlineError,
    InferenceError,
    InputError,
    ModelNotFoundError,
    PoolError,
    PoolLostError,
    RejectedError,
)
from sonic_parsl.pool.authority import CertificateAuthority
from sonic_parsl.pool.pool import ServerPool

if TYPE_CHECKING:
    from tests.client.conftest import Registry, Server


def rows_of(count: int, width: int = 32) -> npt.NDArray[np.float32]:
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


def test_rows_come_once_and_in_order_from_two_servers(registry: Registry, session: Session, pair: list[Server]) -> None:
    registry.show(*(server.entry() for server in pair))
    x = rows_of(100_000)
    call = session.submit(session.served("identity"), {"INPUT0": x}, rows=len(x))
    np.testing.assert_array_equal(call.result()["OUTPUT0"], x)
    record = call.ledger.record()
    assert (record.rows, record.requests, record.retries, record.read) == (100_000, 98, 0, True)
    assert {server: share.rows > 0 for server, share in record.servers.items()} == {s.id: True for s in pair}
    assert sum(share.rows for share in record.servers.values()) == 100_000
    assert sum(sum(share.latencies.values()) for share in record.servers.values()) == 98


@pytest.mark.parametrize("count", [1, 1000, 5000])
def test_results_are_read_only_aligned_and_contiguous(
    registry: Registry, session: Session, pair: list[Server], count: int
) -> None:
    registry.show(pair[0].entry())
    output = session.submit(session.served("identity"), {"INPUT0": rows_of(count)}, rows=count).result()["OUTPUT0"]
    assert (output.flags.writeable, output.flags.aligned, output.flags.c_contiguous) == (False, True, True)


def test_outputs_are_freed_as_soon_as_their_reader_lets_them_go(
    registry: Registry, session: Session, pair: list[Server], wait_for: Callable[..., None]
) -> None:
    registry.show(pair[0].entry())
    model = session.served("identity")

    def ask() -> list[weakref.ref[Any]]:
        calls = [session.submit(model, {"INPUT0": rows_of(count)}, rows=count) for count in (10, 5000, 5000)]
        calls[2].cancel()
        return [*map(weakref.ref, calls), *(weakref.ref(call.result()["OUTPUT0"]) for call in calls[:2])]

    gc.disable()  # not only by a collection: of a chunk's outputs there may be much
    try:
        alive = ask()
        wait_for(lambda: not any(ref() is not None for ref in alive))
    finally:
        gc.enable()


def test_nothing_is_kept_of_calls_that_end_while_there_is_no_server(
    registry: Registry, session: Session, pair: list[Server], wait_for: Callable[..., None]
) -> None:
    registry.show(pair[0].entry())
    model = session.served("identity")
    registry.show(pair[0].entry("draining"))
    wait_for(lambda: session.table and not session.table.ready)

    def ask(deadline_s: float) -> weakref.ref[Any]:
        call = session.submit(model, {"INPUT0": rows_of(5000)}, rows=5000, deadline_s=deadline_s)
        if deadline_s > 1:
            call.cancel()
        return weakref.ref(call)

    gc.disable()
    try:
        alive = [ask(deadline_s) for deadline_s in [0.2] * 5 + [60.0] * 5]
        wait_for(lambda: not any(ref() is not None for ref in alive))
    finally:
        gc.enable()


def test_a_call_that_comes_while_the_session_closes_fails_as_one_that_comes_after(
    registry: Registry, session: Session, pair: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.show(pair[0].entry())
    model, stop, calls = session.served("identity"), session._stop_thread, []

    def ask_and_stop() -> None:
        calls.append(session.submit(model, {"INPUT0": rows_of(3)}, rows=3))
        stop()

    monkeypatch.setattr(session, "_stop_thread", ask_and_stop)
    session.close()
    with pytest.raises(PoolError, match="session with the pool was closed"):
        calls[0].result(10)


def test_no_rows_make_no_request_and_have_the_right_type(
    registry: Registry, session: Session, pair: list[Server]
) -> None:
    registry.show(pair[0].entry())
    call = session.submit(session.served("identity"), {"INPUT0": rows_of(0)}, rows=0)
    output = call.result()["OUTPUT0"]
    assert (output.shape, output.dtype.name, call.ledger.record().requests) == ((0, 32), "float32", 0)


def test_a_bound_on_bytes_slows_but_loses_nothing(
    registry: Registry, session: Session, pair: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "MAX_BYTES_IN_FLIGHT", 300_000)
    registry.show(*(server.entry() for server in pair))
    model, x = session.served("identity"), rows_of(10_000)
    calls = [session.submit(model, {"INPUT0": x[i::4]}, rows=2500) for i in range(4)]
    for i, call in enumerate(calls):
        np.testing.assert_array_equal(call.result()["OUTPUT0"], x[i::4])


def test_calls_from_many_threads_share_the_session(registry: Registry, session: Session, pair: list[Server]) -> None:
    registry.show(*(server.entry() for server in pair))
    x, right = rows_of(3000), []

    def ask(start: int) -> None:
        part = x[start::10]
        call = session.submit(session.served("identity"), {"INPUT0": part}, rows=len(part))
        right.append(np.array_equal(call.result()["OUTPUT0"], part))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 10


def test_a_wrong_request_is_rejected_and_not_tried_again(
    registry: Registry, session: Session, pair: list[Server]
) -> None:
    registry.show(*(server.entry() for server in pair))
    with chunk_scope(None, Chunk("file-1", 0, 7)) as scope:
        call = session.submit(session.served("identity"), {"INPUT0": rows_of(7, 3)}, rows=7)
    with pytest.raises(RejectedError, match=r"Expected \[-1,32\].*version 1.*file-1:0-7.*server cpu-.*request 1/1"):
        call.result()
    (record,) = scope.records()
    assert record.retries == 0
    assert "RejectedError" not in str(record.error)
    assert "Expected [-1,32]" in str(record.error)


def test_a_model_that_breaks_is_asked_on_one_other_server(
    registry: Registry, session: Session, pair: list[Server]
) -> None:
    registry.show(*(server.entry() for server in pair))
    call = session.submit(session.served("broken"), {"INPUT0": rows_of(5, 4)}, rows=5)
    with pytest.raises(InferenceError, match="this model breaks on every input"):
        call.result()
    record = call.ledger.record()
    assert (record.retries, record.failovers, record.rows_retried) == (1, 1, 5)


def test_each_reading_raises_a_fresh_error_that_can_be_pickled(
    registry: Registry, session: Session, pair: list[Server]
) -> None:
    registry.show(pair[0].entry())
    call = session.submit(session.served("identity"), {"INPUT0": rows_of(7, 3)}, rows=7)
    with pytest.raises(RejectedError) as first:
        call.result()
    with pytest.raises(RejectedError) as second:
        call.result()
    assert first.value is not second.value
    assert str(pickle.loads(pickle.dumps(second.value))) == str(first.value)
    chain: BaseException | None = first.value
    while chain is not None:
        assert not isinstance(chain, OSError)
        chain = chain.__cause__ or chain.__context__


def test_tensors_that_are_not_the_models_are_refused_before_sending(
    registry: Registry, session: Session, pair: list[Server]
) -> None:
    registry.show(pair[0].entry())
    model = session.served("identity")
    with pytest.raises(InputError, match=r"inputs are \['INPUT0'\], given were \['x'\]"):
        session.submit(model, {"x": rows_of(3)}, rows=3)
    with pytest.raises(InputError, match="expected were 4 rows"):
        session.submit(model, {"INPUT0": rows_of(3)}, rows=4)


def test_an_unknown_model_is_told_at_once_with_those_there_are(
    registry: Registry, session: Session, pair: list[Server]
) -> None:
    registry.show(pair[0].entry())
    with pytest.raises(ModelNotFoundError, match=r"'nope' version 3.*broken version 1, identity version 1"):
        session.served("nope", version="3")


def test_calls_wait_for_the_first_server(
    registry: Registry, session: Session, pair: list[Server], wait_for: Callable[..., None]
) -> None:
    registry.show(pair[0].entry())
    model = session.served("identity")
    registry.show(pair[0].entry("starting"))
    wait_for(lambda: session.table and not session.table.ready)
    call = session.submit(model, {"INPUT0": rows_of(9)}, rows=9)
    assert not call.wait(0.1)
    registry.show(pair[1].entry())
    np.testing.assert_array_equal(call.result(10.0)["OUTPUT0"], rows_of(9))


def test_a_call_does_not_mix_numeric_kinds(registry: Registry, session: Session, pair: list[Server]) -> None:
    registry.show(pair[0].entry(numeric_kind="fp32"), pair[1].entry(numeric_kind="fp16"))
    model, x = session.served("identity"), rows_of(5000)
    calls = [session.submit(model, {"INPUT0": x}, rows=5000) for _ in range(20)]
    for call in calls:
        np.testing.assert_array_equal(call.result()["OUTPUT0"], x)
    used = {(call.ledger.record().numeric_kind, *call.ledger.record().servers) for call in calls}
    assert used == {("fp32", pair[0].id), ("fp16", pair[1].id)}


def test_the_deadline_ends_a_call_that_no_server_takes(
    registry: Registry, session: Session, pair: list[Server], wait_for: Callable[..., None]
) -> None:
    registry.show(pair[0].entry())
    model = session.served("identity")
    registry.show(pair[0].entry("draining"))
    wait_for(lambda: session.table and not session.table.ready)
    start = time.monotonic()
    call = session.submit(model, {"INPUT0": rows_of(3)}, rows=3, deadline_s=0.3)
    with pytest.raises(DeadlineError, match=r"0 attempts at 1 requests; servers: 0 ready, 0 starting, 1 draining"):
        call.result()
    assert 0.3 <= time.monotonic() - start < 20.0
    assert call.ledger.record().waiting_s > 0.2


def test_the_deadline_ends_a_call_that_a_server_works_on(
    registry: Registry, session: Session, pair: list[Server]
) -> None:
    registry.show(pair[0].entry())
    rows = 64 * 3000  # half a minute of work
    call = session.submit(session.served("timed"), {"INPUT0": rows_of(rows, 4)}, rows=rows, deadline_s=0.3)
    start = time.monotonic()
    with pytest.raises(DeadlineError, match="attempts at 3000 requests"):
        call.result()
    assert time.monotonic() - start < 20.0


def test_a_cancelled_call_sends_nothing_more(
    registry: Registry, session: Session, pair: list[Server], wait_for: Callable[..., None]
) -> None:
    registry.show(pair[0].entry())
    model, rows = session.served("timed"), 64 * 1000
    with chunk_scope(None, Chunk("file", 0, 1)) as scope:
        call = session.submit(model, {"INPUT0": rows_of(rows, 4)}, rows=rows)
        wait_for(lambda: call.ledger.record().servers)
        scope.cancel()
    with pytest.raises(InferenceError, match="cancelled"):
        call.result()
    # Ten seconds of work would stand in the way of this one.
    assert session.submit(model, {"INPUT0": rows_of(1, 4)}, rows=1).wait(3.0)
    assert scope.records()[0].error == "cancelled"
    assert scope.pending == ()


def test_a_lost_pool_fails_waiting_calls_at_once(
    registry: Registry, session: Session, pair: list[Server], wait_for: Callable[..., None]
) -> None:
    registry.show(pair[0].entry())
    model = session.served("identity")
    registry.show()
    wait_for(lambda: session.table and not session.table.servers)
    call = session.submit(model, {"INPUT0": rows_of(3)}, rows=3)
    registry.show(lost="all blocks failed")
    with pytest.raises(PoolLostError, match="all blocks failed"):
        call.result(5.0)
    with pytest.raises(PoolLostError, match="all blocks failed"):
        session.submit(model, {"INPUT0": rows_of(3)}, rows=3).result(5.0)
    with pytest.raises(PoolLostError, match="all blocks failed"):
        session.served("identity")


def test_a_registry_out_of_reach_counts_as_lost_after_a_while_only(
    registry: Registry, pair: list[Server], wait_for: Callable[..., None]
) -> None:
    registry.show(pair[0].entry())
    session = Session(registry.ref, grace_s=1.0)
    try:
        model = session.served("identity")
        registry.stop()
        assert session.submit(model, {"INPUT0": rows_of(3)}, rows=3).result(5.0)  # the last table is good
        wait_for(lambda: session.submit(model, {"INPUT0": rows_of(3)}, rows=3).exception(5.0))
        with pytest.raises(PoolLostError, match="registry"):
            session.served("identity")
    finally:
        session.close()


def test_a_process_with_the_certificate_of_another_run_is_told_so(tmp_path: Path) -> None:
    with ServerPool(run_dir=tmp_path / "run") as pool:
        forged = CertificateAuthority(pool.run_id).issue(client_name(pool.run_id))
        session = Session(replace(pool.ref, credentials=forged), grace_s=0.5)
        try:
            with pytest.raises(PoolLostError, match="shows no certificate of this run"):
                session.served("identity")
        finally:
            session.close()


def test_closing_fails_what_is_pending_and_leaves_no_thread(registry: Registry, pair: list[Server]) -> None:
    registry.show(pair[0].entry())
    session = Session(registry.ref)
    model, rows = session.served("timed"), 64 * 1000
    call = session.submit(model, {"INPUT0": rows_of(rows, 4)}, rows=rows)
    session.close()
    with pytest.raises(PoolError, match="session with the pool was closed"):
        call.result(5.0)
    with pytest.raises(PoolError, match="session with the pool was closed"):
        session.submit(model, {"INPUT0": rows_of(1, 4)}, rows=1)
    assert not [thread for thread in threading.enumerate() if thread.name == "sonic-parsl-session"]
