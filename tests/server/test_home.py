"""A server's own folder on its node: its owner's only, and gone with the server."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path
from uuid import uuid4

import pytest

from sonic_parsl.errors import ServerStartError
from sonic_parsl.server.home import Home
from sonic_parsl.server.runtimes import SHARED_MEMORY
from tests.leaks import our_processes


def test_it_is_its_owners_only_and_goes_with_all_that_is_in_it() -> None:
    with Home() as home:
        assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700
        (home.folder / "models").mkdir()
        (home.folder / "models" / "model.onnx").write_text("weights")
        region = SHARED_MEMORY / f"{home.shm_prefix}{uuid4()}"
        region.touch()
    assert not home.folder.exists()
    assert not region.exists()
    assert not our_processes(home.shm_prefix)


def test_a_node_without_a_place_for_it_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    home = Home()
    with pytest.raises(ServerStartError, match=r"own folder cannot be written to .*: No such file.*TMPDIR") as caught:
        home.__enter__()
    assert caught.value.__suppress_context__
    assert not our_processes(home.shm_prefix)
