"""A server that answers wrongly, twice, late or not at all: its rows are asked elsewhere, or the call fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc.aio
import numpy as np
import pytest

from sonic_parsl.client.call import Call
from sonic_parsl.client.session import Session
from sonic_parsl.errors import DeadlineError, InferenceError, ModelMismatchError, ModelNotFoundError, ResponseError
from sonic_parsl.kserve import Array
from sonic_parsl.protocol import ServerEntry
from tests.client.conftest import Registry, Server, pair, registry, repository, servers, session
from tests.faults.tamper import Change, Response, TamperingServer, as_it_is

__all__ = ["pair", "registry", "repository", "servers", "session"]  # fixtures

ROWS = 4_000
"""Four requests of identity's 1024 rows."""


@pytest.fixture
def tampering(pair: list[Server]) -> Iterator[TamperingServer]:
    """A server that changes the first one's answers."""
    server = TamperingServer(pair[0].address)
    yield server
    server.stop()


def entry_of(tampering: TamperingServer, server: Server, **digests: str) -> ServerEntry:
    entry = server.entry(**digests)  # type: ignore[arg-type]
    return replace(entry, info=replace(entry.info, id="bad", address=tampering.address))


def ask(session: Session, x: Array, *, deadline_s: float = 60.0) -> Call:
    model = session.served("identity")
    return session.submit(model, {"INPUT0": x}, rows=len(x), deadline_s=deadline_s)


def rows(count: int = ROWS) -> Array:
    return np.random.default_rng(1).normal(size=(count, 32)).astype("float32")


async def with_another_shape(response: Response) -> list[Response]:
    response.outputs[0].shape[:] = [response.outputs[0].shape[0], 16, 2]
    return [response]


async def with_another_type(response: Response) -> list[Response]:
    response.outputs[0].datatype = "INT32"
    return [response]


async def with_a_row_less(response: Response) -> list[Response]:
    response.outputs[0].shape[0] -= 1
    response.raw_output_contents[0] = response.raw_output_contents[0][: -32 * 4]
    return [response]


async def with_bytes_missing(response: Response) -> list[Response]:
    response.raw_output_contents[0] = response.raw_output_contents[0][:-4]
    return [response]


async def of_another_name(response: Response) -> list[Response]:
    response.outputs[0].name = "OTHER"
    return [response]


async def of_another_model(response: Response) -> list[Response]:
    response.model_name = "timed"
    return [response]


async def to_another_request(response: Response) -> list[Response]:
    response.id = "999:1/1"
    return [response]


async def with_an_output_twice(response: Response) -> list[Response]:
    response.outputs.append(response.outputs[0])
    response.raw_output_contents.append(response.raw_output_contents[0])
    return [response]


async def without_outputs(response: Response) -> list[Response]:
    del response.outputs[:], response.raw_output_contents[:]
    return [response]


async def twice(response: Response) -> list[Response]:
    return [response, response]


async def not_at_all(_: Response) -> list[Response]:
    return []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt may take a second."""
    monkeypatch.setattr("sonic_parsl.client.retry.UNKNOWN_TIMEOUT_S", 1.0)
    monkeypatch.setattr("sonic_parsl.client.retry.FLOOR_S", 1.0)


WRONG: dict[Any, str] = {
    with_another_shape: r"has shape \(16, 2\) in each row, the model promises \(32,\)",
    with_another_type: "came as int32, the model promises float32",
    with_a_row_less: r"has shape \(999, 32\), expected were 1000 rows",
    with_bytes_missing: "has 127996 bytes, its shape",
    of_another_name: r"has outputs \['OTHER'\]",
    of_another_model: "is that to model 'timed', asked was model 'identity'",
    to_another_request: "is that to request '999:1/1'",
    with_an_output_twice: "with 2 buffers, asked for were",
    without_outputs: r"has outputs \[\] with 0 buffers",
    not_at_all: "ended the request well, and without an answer",
}


@pytest.mark.parametrize("change", [*WRONG, twice], ids=lambda change: change.__name__)
def test_rows_of_a_server_that_answers_wrongly_are_asked_elsewhere(
    change: Any, session: Session, registry: Registry, pair: list[Server], tampering: TamperingServer, impatient: None
) -> None:
    tampering.change = change
    registry.show(entry_of(tampering, pair[0]), pair[1].entry())
    x = rows()
    while not tampering.tampered:
        np.testing.assert_array_equal(ask(session, x).result()["OUTPUT0"], x)
    first = tampering.tampered
    for _ in range(3):
        np.testing.assert_array_equal(ask(session, x).result()["OUTPUT0"], x)
    # Put aside: it gets one request at a time, now and then, to show that it has mended its ways, or none.
    assert tampering.tampered - first <= 3


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_without_another_server_the_call_fails_and_says_what_was_wrong(
    change: Any, session: Session, registry: Registry, pair: list[Server], tampering: TamperingServer
) -> None:
    tampering.change = change
    registry.show(entry_of(tampering, pair[0]))
    call = ask(session, rows())
    with pytest.raises(ResponseError, match=WRONG[change]) as caught:
        call.result()
    assert "server bad" in str(caught.value)
    assert "model identity version 1" in str(caught.value)


def test_without_another_server_a_second_answer_fails_the_call(
    session: Session, registry: Registry, pair: list[Server], tampering: TamperingServer, impatient: None
) -> None:
    tampering.change = twice
    registry.show(entry_of(tampering, pair[0]))
    with pytest.raises(InferenceError, match="server bad"):
        ask(session, rows(), deadline_s=5.0).result()


def test_a_server_that_answered_wrongly_is_put_aside_and_named_in_the_record(
    session: Session, registry: Registry, pair: list[Server], tampering: TamperingServer
) -> None:
    tampering.change = with_another_type
    registry.show(entry_of(tampering, pair[0]), pair[1].entry())
    notes: list[str] = []
    for _ in range(20):
        call = ask(session, rows())
        call.result()
        notes += call.ledger.record().notes
    assert notes[0].startswith("Server bad was put aside: Output 'OUTPUT0' came as int32")
    asked = tampering.tampered
    assert asked <= 16  # what was in flight when the first came back; never again
    ask(session, rows()).result()
    assert tampering.tampered == asked


def test_a_server_that_answers_late_is_not_waited_for(
    session: Session,
    registry: Registry,
    pair: list[Server],
    tampering: TamperingServer,
    impatient: None,
) -> None:
    async def late(response: Response) -> list[Response]:
        await asyncio.sleep(20)
        return [response]

    tampering.change = late
    registry.show(entry_of(tampering, pair[0]), pair[1].entry())
    x = rows()
    while not tampering.tampered:
        np.testing.assert_array_equal(ask(session, x, deadline_s=15).result()["OUTPUT0"], x)
    first = tampering.tampered
    for _ in range(3):
        np.testing.assert_array_equal(ask(session, x, deadline_s=15).result()["OUTPUT0"], x)
    assert tampering.tampered - first <= 3
    registry.show(entry_of(tampering, pair[0]))
    with pytest.raises(DeadlineError, match=r"time is over after \d+ attempts"):
        ask(session, x, deadline_s=3).result()


def test_a_late_server_is_asked_while_the_only_other_one_is_put_aside(
    session: Session, registry: Registry, pair: list[Server], tampering: TamperingServer, impatient: None
) -> None:
    other = TamperingServer(pair[1].address)
    try:
        late = replace(entry_of(other, pair[1]).info, id="late")
        registry.show(entry_of(tampering, pair[0]), replace(pair[1].entry(), info=late))

        async def late_once(response: Response) -> list[Response]:
            other.change = as_it_is
            await asyncio.sleep(20)
            return [response]

        other.change = late_once
        x = rows(10)
        while not other.tampered:
            np.testing.assert_array_equal(ask(session, x).result()["OUTPUT0"], x)
        tampering.change = with_another_type
        while not tampering.tampered:
            np.testing.assert_array_equal(ask(session, x).result()["OUTPUT0"], x)
        call = ask(session, x, deadline_s=10)
        np.testing.assert_array_equal(call.result()["OUTPUT0"], x)
        assert set(call.ledger.record().servers) == {"late"}
    finally:
        other.stop()


@pytest.fixture
def of_another_kind(
    session: Session, registry: Registry, pair: list[Server], tampering: TamperingServer
) -> Callable[[Change], Call]:
    """Return what sends a call whose first answer is changed, and that only another server of another kind could have."""

    def send(change: Change) -> Call:
        there = threading.Event()

        async def first(response: Response) -> list[Response]:
            tampering.change = as_it_is
            while not there.is_set():
                await asyncio.sleep(0.01)
            return await change(response)

        tampering.change = first
        registry.show(entry_of(tampering, pair[0], artifact_digest="aa" * 32))
        call = ask(session, rows(10), deadline_s=20)
        registry.show(entry_of(tampering, pair[0], artifact_digest="aa" * 32), pair[1].entry(artifact_digest="bb" * 32))
        assert session.wait_for(lambda table: len(table.ready) == 2, 10)
        there.set()
        return call

    return send


def test_a_server_that_fails_once_is_asked_again_where_all_others_are_of_another_kind(
    of_another_kind: Callable[[Change], Call],
) -> None:
    async def fail(response: Response) -> list[Response]:
        raise grpc.aio.AbortError("it failed once")

    call = of_another_kind(fail)
    np.testing.assert_array_equal(call.result()["OUTPUT0"], rows(10))
    assert set(call.ledger.record().servers) == {"bad"}


def test_a_wrong_answer_fails_a_call_at_once_where_all_others_are_of_another_kind(
    of_another_kind: Callable[[Change], Call],
) -> None:
    with pytest.raises(ResponseError, match="came as int32"):
        of_another_kind(with_another_type).result()


def test_nan_passes_and_is_counted(session: Session, registry: Registry, pair: list[Server]) -> None:
    registry.show(pair[0].entry())
    x = rows()
    x[::7, 3] = np.nan
    x[5] = np.inf
    call = ask(session, x)
    np.testing.assert_array_equal(call.result()["OUTPUT0"], x)
    assert call.ledger.record().nans == np.isnan(x).sum()


# Digests -----------------------------------------------------------------------


def test_servers_with_different_models_of_one_name_are_an_error_that_names_both(
    session: Session, registry: Registry, pair: list[Server]
) -> None:
    registry.show(pair[0].entry(source_digest="aa" * 32), pair[1].entry(source_digest="bb" * 32))
    with pytest.raises(ModelMismatchError, match="source digests aaaaaaaaaaaa and bbbbbbbbbbbb") as caught:
        session.served("identity")
    assert all(server.id in str(caught.value) for server in pair)


def test_a_model_that_changes_between_two_calls_is_an_error(
    session: Session, registry: Registry, pair: list[Server]
) -> None:
    registry.show(pair[0].entry(source_digest="aa" * 32))
    ask(session, rows()).result()
    registry.show(pair[1].entry(source_digest="bb" * 32))
    tables: Callable[[], Any] = lambda: session.table
    while tables().ready[0].info.id != pair[1].id:
        session.wait_for(lambda table: table.ready[0].info.id == pair[1].id, 30)
    with pytest.raises(ModelMismatchError, match="source digests aaaaaaaaaaaa and bbbbbbbbbbbb"):
        ask(session, rows())


def test_the_newest_version_of_a_model_stays_the_same_when_a_newer_one_comes(
    session: Session, registry: Registry, pair: list[Server]
) -> None:
    def newer(entry: ServerEntry) -> ServerEntry:
        models = tuple(replace(model, version="2") for model in entry.info.models)
        return replace(entry, info=replace(entry.info, models=models))

    registry.show(pair[0].entry())
    assert session.served("identity").version == "1"
    registry.show(pair[0].entry(), newer(pair[1].entry()))
    session.wait_for(lambda table: len(table.ready) == 2, 30)
    assert session.served("identity").version == "1"
    assert session.served("identity", version="2").version == "2"
    registry.show(newer(pair[1].entry()))
    session.wait_for(lambda table: len(table.ready) == 1, 30)
    with pytest.raises(ModelNotFoundError, match="identity' version 1"):
        session.served("identity")


def test_servers_that_tell_no_digest_are_held_against_the_others_by_their_tensors(
    session: Session, registry: Registry, pair: list[Server]
) -> None:
    with_digest, without = pair[0].entry(source_digest="aa" * 32), pair[1].entry()
    registry.show(with_digest, without)
    assert session.served("identity").source_digest == "aa" * 32
    wider = tuple(
        replace(model, inputs=tuple(replace(tensor, shape=(64,)) for tensor in model.inputs))
        for model in without.info.models
    )
    registry.show(with_digest, replace(without, info=replace(without.info, models=wider)))
    session.wait_for(lambda table: wider in {entry.info.models for entry in table.servers}, 30)
    with pytest.raises(ModelMismatchError, match="aaaaaaaaaaaa and unknown, with other tensors") as caught:
        session.served("identity")
    assert all(server.id in str(caught.value) for server in pair)


STRANGERS = {
    "that counts in another way": ({"numeric_kind": "int8"}, r"\(fp32, .*\), which is gone; server .* has int8"),
    "that serves another artifact": (
        {"artifact_digest": "cc" * 32},
        r"artifact digest bbbbbbbbbbbb\), which is gone; server .* artifact digest cccccccccccc",
    ),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_call_does_not_fail_over_to_a_server(
    stranger: str,
    session: Session,
    registry: Registry,
    pair: list[Server],
    tampering: TamperingServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sonic_parsl.client.dispatch.STRANDED_S", 0.5)
    answered = asyncio.Event()

    async def never(response: Response) -> list[Response]:
        answered.set()
        await asyncio.sleep(60)
        return [response]

    tampering.change = never
    same = {"source_digest": "aa" * 32, "artifact_digest": "bb" * 32}
    other, said = STRANGERS[stranger]
    registry.show(entry_of(tampering, pair[0], **same))
    call = ask(session, rows())
    assert call.ledger.requests == 4
    session.wait_for(lambda _: call.ledger.numeric_kind == "fp32", 30)
    registry.show(pair[1].entry(**{**same, **other}))  # type: ignore[arg-type]
    with pytest.raises(ModelMismatchError, match=rf"began on server bad .*{said}"):
        call.result()
    tampering.change = as_it_is
