"""Messages come back as they went, and what is out of bounds does not come in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic_parsl import protocol
from sonic_parsl.errors import PoolError
from sonic_parsl.pool.pipe import from_line, to_line
from sonic_parsl.pool.spec import RegistrySpec
from sonic_parsl.poolref import PoolRef
from sonic_parsl.protocol import (
    MAX_LINES,
    MAX_MODELS,
    MAX_REASON,
    VERSION,
    Ack,
    Departure,
    Drain,
    Follow,
    Join,
    Leave,
    Listening,
    Lose,
    Renew,
    ServedModel,
    ServerEntry,
    ServerInfo,
    ServerLoad,
    ServerTable,
    decode,
    encode,
)

MESSAGES = (Join, Renew, Leave, Drain, Follow, Ack, ServerTable, Listening, Departure, Lose, PoolRef, RegistrySpec)

st.register_type_strategy(Path, st.text().map(Path))


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Return what may stand in a field of this type; JSON has no infinity."""
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint, include_extras=True)
        return st.builds(hint, **{name: values(of_field) for name, of_field in hints.items()})  # type: ignore[arg-type]
    if hint is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    arguments = get_args(hint)
    if get_origin(hint) is Annotated:
        return bounded(arguments[0], arguments[1].metadata)
    if get_origin(hint) is tuple:
        repeated = arguments[-1] is Ellipsis
        return st.lists(values(arguments[0]), max_size=3).map(tuple) if repeated else st.tuples(*map(values, arguments))
    if get_origin(hint) in {Union, UnionType}:
        return st.one_of(*map(values, arguments))
    return st.from_type(hint)


def bounded(hint: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    """Return what may stand in a field of this type with pydantic's bounds."""
    names = ("ge", "gt", "le", "max_length", "pattern")
    bounds = {name: getattr(one, name) for one in metadata for name in names if hasattr(one, name)}
    if hint is int:
        return st.integers(bounds.get("ge"), bounds.get("le"))
    if hint is float:
        low = bounds.get("ge", bounds.get("gt"))
        exclude = "gt" in bounds
        return st.floats(low, bounds.get("le"), exclude_min=exclude, allow_nan=False, allow_infinity=False)
    if hint is str and "pattern" in bounds:
        return st.from_regex(bounds["pattern"], fullmatch=True).filter(lambda text: len(text) <= bounds["max_length"])
    return st.text(max_size=min(300, bounds["max_length"])) if hint is str else values(hint)


messages = st.one_of(*map(values, MESSAGES))


@settings(max_examples=60, deadline=None)
@given(message=messages)
def test_a_message_comes_back_as_it_went(message: Any) -> None:
    assert decode(type(message), encode(message)) == message


@settings(max_examples=60, deadline=None)
@given(message=messages)
def test_a_message_on_the_pipe_is_one_line_and_comes_back(message: Any) -> None:
    line = to_line(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert from_line(line, *MESSAGES) == message


def test_an_unexpected_message_on_the_pipe_is_an_error() -> None:
    with pytest.raises(PoolError, match="Unexpected message on the registry's pipe: b'Lose'"):
        from_line(to_line(Lose(reason="x")), ServerTable, Departure)


def test_every_message_is_frozen() -> None:
    classes = {cls for cls in vars(protocol).values() if dataclasses.is_dataclass(cls) and isinstance(cls, type)}
    assert set(MESSAGES) - classes == {PoolRef, RegistrySpec}
    classes.update(MESSAGES)
    for cls in classes:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(object.__new__(cls), dataclasses.fields(cls)[0].name, None)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"not json", "message: json_invalid"),
        (b'{"run_id": "r", "registries": "hunter2", "credentials": {"key": "hunter2"}}', "registries: tuple_type"),
        (b'{"run_id": "r", "registries": [], "credentials": {"key": ["hunter2"]}}', "credentials.authority: missing"),
        (b'{"run_id": "r", "registries": [], "static": [], "schema": 2}', "schema: literal_err"),
    ],
)
def test_what_cannot_be_read_is_named_and_not_quoted(data: bytes, problem: str) -> None:
    with pytest.raises(PoolError, match=f"A PoolRef message could not be read: {problem}") as caught:
        decode(PoolRef, data)
    assert "hunter2" not in str(caught.value) + repr(caught.value.__cause__) + repr(caught.value.context)
    assert caught.value.__suppress_context__


def info(name: str) -> ServerInfo:
    return ServerInfo(
        id=name,
        group="g",
        kind="cpu",
        fidelity="hardware",
        node="n",
        address="a:1",
        block_id="0",
        job_id="1",
        models=(),
    )


def test_only_ready_servers_take_requests() -> None:
    servers = (ServerEntry(info("a"), "starting"), ServerEntry(info("b"), "ready"), ServerEntry(info("c"), "draining"))
    table = ServerTable(run_id="r", generation=1, servers=servers)
    assert [entry.info.id for entry in table.ready] == ["b"]


# What is out of bounds ------------------------------------------------------


def tampered(message: Any, **changes: Any) -> bytes:
    """Return a message whose fields were changed on the way; ``info__id`` is a field of its info."""
    data = json.loads(encode(message))
    for path, value in changes.items():
        *outer, last = path.split("__")
        place = data
        for part in outer:
            place = place[part]
        place[last] = value
    return json.dumps(data).encode()


JOIN = Join(VERSION, info("a"), "ready")
LEAVE = Leave("a", "0", "g", failed=True, reason="told to")


@pytest.mark.parametrize(
    ("message", "changes", "problem"),
    [
        (JOIN, {"info__id": "x" * 257}, "info.id: string_too_long"),
        (JOIN, {"info__lease_s": float("nan")}, "info.lease_s: "),
        (JOIN, {"info__lease_s": 1e9}, "info.lease_s: less_than_equal"),
        (JOIN, {"info__lease_s": 0}, "info.lease_s: greater_than"),
        (JOIN, {"info__ends_at": float("inf")}, "info.ends_at: finite_number"),
        (JOIN, {"info__address": "unix:/tmp/x"}, "info.address: string_pattern_mismatch"),
        (JOIN, {"info__address": "host:\u0661"}, "info.address: string_pattern_mismatch"),
        (JOIN, {"info__address": "host:1\n"}, "info.address: string_pattern_mismatch"),
        (JOIN, {"info__models": [json.loads(encode(ServedModel("m", "1", 0, (), ())))] * (MAX_MODELS + 1)}, "too_long"),
        (JOIN, {"info__block_id": "1-2"}, "info.block_id: string_pattern_mismatch"),
        (JOIN, {"state": "gone"}, "state: literal_error"),
        (LEAVE, {"reason": "x" * (MAX_REASON + 1)}, "reason: string_too_long"),
        (LEAVE, {"stderr": "x" * (MAX_LINES + 1)}, "stderr: string_too_long"),
        (Renew("a", ServerLoad()), {"load__rows": -1}, "load.rows: greater_than_equal"),
        (Renew("a", ServerLoad()), {"load__rows": 10**30}, "load.rows: less_than_equal"),
        (Renew("a", ServerLoad()), {"load__queue_ms": float("nan")}, "load.queue_ms: "),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_the_name_of_its_field(message: Any, changes: Any, problem: str) -> None:
    with pytest.raises(PoolError, match=f"could not be read: .*{problem}"):
        decode(type(message), tampered(message, **changes))


def test_of_a_message_with_many_faults_a_few_are_told() -> None:
    data = tampered(JOIN, info__models=[{}] * 900)
    with pytest.raises(PoolError) as caught:
        decode(Join, data)
    assert len(str(caught.value)) < 500
