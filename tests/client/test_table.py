from __future__ import annotations

import pytest

from sonic_parsl.client.table import find_model, states
from sonic_parsl.errors import ModelNotFoundError
from sonic_parsl.protocol import ServedModel, ServerEntry, ServerInfo, ServerState, ServerTable


def model(name: str, version: str, *tags: str) -> ServedModel:
    return ServedModel(name, version, 8, (), (), tags=tags)


def server(state: ServerState, *models: ServedModel) -> ServerEntry:
    return ServerEntry(ServerInfo("s", "cpu", "cpu", "hardware", "n", "h:1", "0", "1", models), state)


def table(*servers: ServerEntry) -> ServerTable:
    return ServerTable("run", 1, servers)


BTAGS = table(server("ready", model("btag", "9", "stable"), model("btag", "10", "test")), server("ready"))


def test_the_newest_version_is_the_one_with_the_largest_number() -> None:
    assert find_model(BTAGS, "btag") == model("btag", "10", "test")


def test_version_and_tags_choose() -> None:
    assert find_model(BTAGS, "btag", version="9") == model("btag", "9", "stable")
    assert find_model(BTAGS, "btag", tags=["stable"]) == model("btag", "9", "stable")


def test_what_no_server_has_is_an_error_that_lists_what_they_have() -> None:
    expected = r"'btag' version 9 tag test\. They have: btag version 9 \[stable\], btag version 10 \[test\]\."
    with pytest.raises(ModelNotFoundError, match=expected):
        find_model(BTAGS, "btag", version="9", tags=["test"])


def test_nothing_can_be_said_while_servers_start_or_none_is_there() -> None:
    assert find_model(table(), "btag") is None
    assert find_model(table(server("ready", model("other", "1")), server("starting")), "btag") is None


def test_a_draining_server_still_tells_of_its_models() -> None:
    draining = server("draining", model("btag", "3"))
    assert find_model(table(draining), "btag") == model("btag", "3")
    assert find_model(table(draining, server("ready", model("btag", "2"))), "btag") == model("btag", "2")


def test_states_are_counted() -> None:
    assert states(table(server("ready"), server("ready"), server("draining"))) == "2 ready, 0 starting, 1 draining"
    assert states(None) == "0 ready, 0 starting, 0 draining"
