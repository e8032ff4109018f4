"""How a process finds the pool: a file for its owner only, whose secrets are in no text."""

from __future__ import annotations

import pickle
import stat
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from sonic_parsl.credentials import Credentials, Peer
from sonic_parsl.errors import PoolError, PoolNotFoundError
from sonic_parsl.pool.spec import RegistrySpec
from sonic_parsl.poolref import POOL_ENV, PoolRef, StaticServer
from sonic_parsl.protocol import ServerInfo

SECRETS = Credentials(authority="hunter-authority", certificate="hunter-certificate", key="hunter-key")
GATEWAY = StaticServer(
    "gate-static-0", "gate", "gpu", "gate.example:443", ("m",), authority="hunter-ca", token="hunter-token"
)


@pytest.fixture
def ref() -> PoolRef:
    return PoolRef(run_id="run1", registries=("127.0.0.1:1234",), credentials=SECRETS, static=(GATEWAY,))


def test_no_text_of_a_pool_ref_holds_a_secret(ref: PoolRef) -> None:
    spec = RegistrySpec("run1", "127.0.0.1", credentials=SECRETS, static=(GATEWAY,))
    peers = [ref.registry, ref.server(info("cpu-0-1")), ref.server(info(GATEWAY.id))]
    for thing in (ref, SECRETS, GATEWAY, spec, [ref], {"ref": spec}, peers):
        assert "hunter" not in f"{thing} {thing!r}"


def info(server_id: str) -> ServerInfo:
    return ServerInfo(server_id, "cpu", "cpu", "hardware", "n", "127.0.0.1:9", "3", "", ())


def test_registry_and_servers_of_the_run_are_known_by_name_and_shown_the_certificate(ref: PoolRef) -> None:
    ours = {"authority": SECRETS.authority, "certificate": SECRETS.certificate, "key": SECRETS.key}
    assert ref.registry == Peer("127.0.0.1:1234", secure=True, name="registry.run1.sonic", **ours)
    assert ref.server(info("cpu-3-abc")) == Peer("127.0.0.1:9", secure=True, name="block-cpu-3.run1.sonic", **ours)


def test_several_registries_are_one_address() -> None:
    assert PoolRef("r", ("10.0.0.1:1", "10.0.0.2:2")).registry.address == "ipv4:10.0.0.1:1,10.0.0.2:2"


def test_a_server_of_others_gets_its_own_token_and_authority_and_nothing_of_the_run(ref: PoolRef) -> None:
    expected = Peer("gate.example:443", secure=True, authority="hunter-ca", token="hunter-token")
    assert ref.server(info(GATEWAY.id)) == expected
    assert expected.certificate is expected.key is expected.name is None


def test_a_server_of_the_run_never_gets_the_token_whatever_address_it_says(ref: PoolRef) -> None:
    claims = ServerInfo("cpu-3-abc", "gate", "gpu", "hardware", "n", GATEWAY.address, "3", "", ())
    assert ref.server(claims).token is None
    assert ref.server(claims).authority == SECRETS.authority


def test_an_agent_that_takes_the_name_of_a_static_server_does_not_get_its_calls(ref: PoolRef) -> None:
    assert ref.server(info(GATEWAY.id)).address == GATEWAY.address


def test_a_run_without_security_is_reached_as_it_is() -> None:
    ref = PoolRef("r", ("127.0.0.1:1",))
    assert ref.registry == Peer("127.0.0.1:1")
    assert ref.server(info("cpu-3-abc")) == Peer("127.0.0.1:9")


def test_a_file_that_cannot_be_written_leaves_nothing_behind(ref: PoolRef, tmp_path: Path) -> None:
    (tmp_path / "pool.json").mkdir()
    with pytest.raises(PoolError, match=r"pool\.json cannot be written: Is a directory\..*run-dir") as caught:
        ref.write(tmp_path / "pool.json")
    assert caught.value.__suppress_context__
    assert [path.name for path in tmp_path.iterdir()] == ["pool.json"]


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
