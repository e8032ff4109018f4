"""Where the cache is."""

from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from sonic_parsl.cache import cache_dir


def test_the_environment_names_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SONIC_PARSL_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    assert not cache_dir().exists()


def test_without_it_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SONIC_PARSL_CACHE", raising=False)
    assert cache_dir() == platformdirs.user_cache_path("sonic-parsl")
