"""What a job carries where its node does not see the run directory."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sonic_parsl.credentials import Credentials
from sonic_parsl.errors import PoolError
from sonic_parsl.poolref import PoolRef
from sonic_parsl.server.spec import Luggage, ServerSpec

SECRETS = Credentials(authority="hunter-authority", certificate="hunter-certificate", key="hunter-key")
LUGGAGE = Luggage(
    ServerSpec(group="cpu", repository=Path("/models"), models=("a b", "ü$`'"), digests={"a b": "aa"}),
    PoolRef("run", ("10.0.0.1:5",), SECRETS),
)


def test_it_comes_back_as_it_was_packed() -> None:
    assert Luggage.unpack(LUGGAGE.pack()) == LUGGAGE


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_it_is_one_word_that_a_shell_leaves_as_it_is(shell: str) -> None:
    done = subprocess.run([shell, "-c", f"echo {LUGGAGE.pack()}"], capture_output=True, text=True, check=True)
    assert Luggage.unpack(done.stdout) == LUGGAGE


def test_no_text_of_it_holds_a_secret() -> None:
    assert "hunter" not in f"{LUGGAGE} {LUGGAGE!r}"


@pytest.mark.parametrize("text", ["", "AAAA", "no base64!", "AAA", LUGGAGE.pack()[:-40], LUGGAGE.pack()[:-1], "e30="])
def test_what_is_damaged_is_an_error_that_does_not_quote_it(text: str) -> None:
    with pytest.raises(PoolError, match=r"A Luggage message could not be read|should carry is damaged") as caught:
        Luggage.unpack(text)
    assert "hunter" not in str(caught.value)
