"""Messages come back as they went, and the pool's secret is in no text."""

from __future__ import annotations

import dataclasses
import pickle
import stat
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic_parsl import protocol
from sonic_parsl.errors import PoolError, PoolNotFoundError
from sonic_parsl.pool.pipe import from_line, to_line
from sonic_parsl.protocol import (
    POOL_ENV,
    Ack,
    Credentials,
    Departure,
    Drain,
    Follow,
    Join,
    Leave,
    Listening,
    Lose,
    PoolRef,
    RegistrySpec,
    Renew,
    ServerEntry,
    ServerInfo,
    ServerTable,
    decode,
    encode,
)

MESSAGES = (Join, Renew, Leave, Drain, Follow, Ack, ServerTable, Listening, Departure, Lose, PoolRef, RegistrySpec)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Return what may stand in a field of this type; JSON has no infinity."""
    if dataclasses.is_dataclass(hint):
        return st.builds(hint, **{name: values(of_field) for name, of_field in get_type_hints(hint).items()})  # type: ignore[arg-type]
    if hint is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    arguments = get_args(hint)
    if get_origin(hint) is tuple:
        repeated = arguments[-1] is Ellipsis
        return st.lists(values(arguments[0]), max_size=3).map(tuple) if repeated else st.tuples(*map(values, arguments))
    if get_origin(hint) in {Union, UnionType}:
        return st.one_of(*map(values, arguments))
    return st.from_type(hint)


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
    classes = [cls for cls in vars(protocol).values() if dataclasses.is_dataclass(cls) and isinstance(cls, type)]
    assert set(MESSAGES) <= set(classes)
    for cls in classes:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(object.__new__(cls), dataclasses.fields(cls)[0].name, None)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"not json", "message: json_invalid"),
        (b'{"run_id": "r", "registries": "hunter2", "credentials": {"token": "hunter2"}}', "registries: tuple_type"),
        (b'{"run_id": "r", "registries": [], "credentials": {"token": ["hunter2"]}}', "credentials.token: string_type"),
        (b'{"run_id": "r", "registries": [], "credentials": {"token": "hunter2"}, "schema": 2}', "schema: literal_err"),
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


# How a process finds the pool ----------------------------------------------


@pytest.fixture
def ref() -> PoolRef:
    return PoolRef(run_id="run1", registries=("127.0.0.1:1234",), credentials=Credentials.new())


def test_no_text_of_a_pool_ref_holds_its_secret(ref: PoolRef) -> None:
    spec = RegistrySpec(run_id="run1", address="127.0.0.1", credentials=ref.credentials)
    for thing in (ref, ref.credentials, spec, [ref], {"ref": spec}):
        assert ref.credentials.token not in f"{thing} {thing!r}"


def test_each_run_has_credentials_of_its_own() -> None:
    tokens = {Credentials.new().token for _ in range(100)}
    assert len(tokens) == 100
    assert min(map(len, tokens)) >= 40


def test_the_file_of_a_pool_is_its_owners_only_and_comes_back(ref: PoolRef, tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    ref.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert PoolRef.read(path) == ref
    assert list(tmp_path.iterdir()) == [path]


def test_writing_replaces_a_file_that_others_could_read(ref: PoolRef, tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    path.write_text("old")
    path.chmod(0o644)
    ref.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert PoolRef.read(path) == ref


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_a_pool_ref_travels_with_a_chunk(ref: PoolRef, pickler: Any) -> None:
    assert pickle.loads(pickler.dumps(ref)) == ref


def test_the_environment_names_the_file(ref: PoolRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref.write(tmp_path / "pool.json")
    monkeypatch.setenv(POOL_ENV, str(tmp_path / "pool.json"))
    assert PoolRef.from_environment() == ref


def test_a_process_that_was_not_told_of_a_pool_says_how_to_tell_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(POOL_ENV, raising=False)
    with pytest.raises(PoolNotFoundError, match=r"was not told of a pool\. .*load_site.*SONIC_PARSL_POOL"):
        PoolRef.from_environment()


def test_a_pools_file_that_is_gone_says_that_the_pool_ended(tmp_path: Path) -> None:
    with pytest.raises(
        PoolNotFoundError, match=r"gone\.json cannot be read: No such file.* The pool has ended"
    ) as caught:
        PoolRef.read(tmp_path / "gone.json")
    assert caught.value.__suppress_context__
