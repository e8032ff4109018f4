from __future__ import annotations

from dataclasses import replace

from sonic_parsl.pool.prospects import Prospects
from sonic_parsl.protocol import ServedModel, ServerEntry, ServerInfo, ServerTable

NOBODY = ServerTable(run_id="run", generation=0)
MODEL = ServedModel("btag", "1", 64, (), ())
GATE = ServerInfo("gate-static-0", "gate", "gpu", "hardware", "far", "far:1", "", "", (MODEL,))
BTAG = frozenset({"btag"})


def test_a_group_that_may_still_come_serves_for_another() -> None:
    prospects = Prospects()
    prospects.tell("one", BTAG)
    assert not prospects.others_serve("one", BTAG, NOBODY)
    prospects.tell("two", BTAG | {"other"})
    assert prospects.others_serve("one", BTAG, NOBODY)
    assert not prospects.others_serve("two", BTAG | {"other"}, NOBODY)


def test_one_that_has_failed_too_often_does_not() -> None:
    prospects = Prospects()
    prospects.tell("two", BTAG)
    prospects.tell("two", frozenset())
    assert not prospects.others_serve("one", BTAG, NOBODY)


def test_a_server_without_a_job_serves_while_it_is_ready() -> None:
    ready = replace(NOBODY, servers=(ServerEntry(GATE, "ready"),))
    draining = replace(NOBODY, servers=(ServerEntry(GATE, "draining"),))
    assert Prospects().others_serve("one", BTAG, ready)
    assert not Prospects().others_serve("one", BTAG, draining)
