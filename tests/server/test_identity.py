"""A server's certificate is on disk while Triton starts, for its owner only."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from sonic_parsl.credentials import Credentials, Peer
from sonic_parsl.errors import ServerStartError
from sonic_parsl.server.identity import Identity
from sonic_parsl.server.runtimes.command import KEY_FILES

SECRETS = Credentials(authority="hunter-authority", certificate="hunter-certificate", key="hunter-key")
ME = Identity("block-cpu-0.run.sonic", SECRETS)


def test_its_files_are_for_its_owner_only_and_gone_afterwards(tmp_path: Path) -> None:
    with ME.key_files(tmp_path) as folder:
        assert folder is not None
        assert folder.parent == tmp_path
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            KEY_FILES["server-cert"]: "hunter-certificate",
            KEY_FILES["server-key"]: "hunter-key",
            KEY_FILES["root-cert"]: "hunter-authority",
        }
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert not folder.exists()


def test_they_go_too_where_starting_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ME.key_files(tmp_path):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_guard_may_have_removed_them_before(tmp_path: Path) -> None:
    with ME.key_files(tmp_path) as folder:
        assert folder is not None
        shutil.rmtree(folder)


def test_without_security_there_are_none(tmp_path: Path) -> None:
    with Identity("block-cpu-0.run.sonic", None).key_files(tmp_path) as folder:
        assert folder is None
    assert not list(tmp_path.iterdir())


def test_a_node_without_a_place_for_them_is_told_in_a_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerStartError, match=r"certificate cannot be written to .*: No such file.*TMPDIR") as caught,
        ME.key_files(tmp_path / "gone"),
    ):
        pass
    assert caught.value.__suppress_context__


def test_its_own_agent_reaches_it_by_its_name() -> None:
    assert ME.peer("127.0.0.1:1") == Peer.of_run("127.0.0.1:1", "block-cpu-0.run.sonic", SECRETS)
    assert "hunter" not in repr(ME)
