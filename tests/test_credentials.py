"""Names in certificates, and how the other side of a connection is reached."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic_parsl.credentials import Credentials, Peer, block_name, client_name, registry_name

blocks = st.tuples(st.from_regex("[a1_-]{1,4}", fullmatch=True), st.from_regex("[01]{1,2}", fullmatch=True))
SECRETS = Credentials(authority="hunter-authority", certificate="hunter-certificate", key="hunter-key")


def test_every_name_says_what_its_owner_is_and_of_which_run() -> None:
    names = [registry_name("r1"), client_name("r1"), block_name("r1", "gpu", "0"), block_name("r1", "gpu", "1")]
    assert names == ["registry.r1.sonic", "client.r1.sonic", "block-gpu-0.r1.sonic", "block-gpu-1.r1.sonic"]
    assert block_name("r2", "gpu", "0") not in names


@pytest.mark.parametrize("group", ["registry", "client", "block"])
def test_no_group_can_be_named_so_that_its_blocks_pass_for_something_else(group: str) -> None:
    assert block_name("r1", group, "0") not in {registry_name("r1"), client_name("r1")}


@given(one=blocks, other=blocks)
def test_no_two_blocks_have_one_name(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (block_name("r1", *one) == block_name("r1", *other)) == (one == other)


def test_a_process_of_the_run_is_reached_with_the_runs_credentials() -> None:
    peer = Peer.of_run("127.0.0.1:1", "registry.r1.sonic", SECRETS)
    assert (peer.secure, peer.name, peer.token) == (True, "registry.r1.sonic", None)
    assert (peer.authority, peer.certificate, peer.key) == ("hunter-authority", "hunter-certificate", "hunter-key")


def test_without_credentials_it_is_reached_in_the_clear() -> None:
    assert Peer.of_run("127.0.0.1:1", "registry.r1.sonic", None) == Peer("127.0.0.1:1")


def test_no_secret_is_in_a_text_and_all_travel_with_a_chunk() -> None:
    for thing in (SECRETS, Peer.of_run("127.0.0.1:1", "n", SECRETS), Peer("h:1", token="hunter-token")):
        assert "hunter" not in f"{thing} {thing!r}"
        assert pickle.loads(pickle.dumps(thing)) == thing
