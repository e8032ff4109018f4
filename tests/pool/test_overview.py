"""What `sonic-parsl status` finds, told by real registries."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import TypeAdapter
from rich.console import Console

from sonic_parsl.errors import ConfigError
from sonic_parsl.pool import overview
from sonic_parsl.pool.overview import ServerStatus, Status, clean, look
from sonic_parsl.pool.overview_table import NOTHING_RUNS, render
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.poolref import PoolRef
from sonic_parsl.protocol import BlockEntry, Drain, Join, Renew, ServerLoad
from sonic_parsl.rpc import AgentMessage
from tests.pool.conftest import BLOCK, GROUP, agents_of, joining, registry_of, talking_to

DOCS = Path(__file__).parents[2] / "docs"
AT_ONCE_S = 4.0


@pytest.fixture(autouse=True)
def nobody_else_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ServerPool]:
    """A pool of this test only, where a user's runs are."""
    with ServerPool(run_dir=tmp_path / "state" / "sonic-parsl" / "runs" / "abc") as opened:
        yield opened


def say(pool: ServerPool, *messages: AgentMessage) -> None:
    async def scenario() -> None:
        async with talking_to(agents_of(pool)) as registry:
            for message in messages:
                await registry.call(message)

    asyncio.run(scenario())


def lasting(server_id: str, ends_at: float, **more: str) -> Join:
    join = joining(server_id)
    return replace(join, info=replace(join.info, ends_at=ends_at, **more))  # type: ignore[arg-type]


def tell(pool: ServerPool, *entries: BlockEntry) -> None:
    pool.tell_blocks(GROUP, entries)
    assert pool.wait_for(lambda table: table.blocks == entries, AT_ONCE_S)


def servers(status: Status) -> list[ServerStatus]:
    (pool,) = status.pools
    assert pool.problem is None
    return [server for group in pool.groups for server in group.servers]


def text(status: Status) -> str:
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(render(status), highlight=False)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


# What is there --------------------------------------------------------------------


def test_where_nothing_runs_a_sentence_says_so() -> None:
    assert look().pools == ()
    assert text(look()).strip() == NOTHING_RUNS


def test_servers_have_state_node_job_models_load_and_walltime_left(own: ServerPool) -> None:
    load = ServerLoad(rows=640, requests=4, failures=1, queue_ms=10.0)
    say(own, lasting("a", time.time() + 100, job_id="4711", node="n7"), Renew("a", load), joining("b"), Drain("b", "x"))
    first, second = servers(look())
    assert (first.state, first.id, first.block, first.job, first.node) == ("ready", "a", BLOCK, "4711", "n7")
    assert (first.models, first.device) == (("identity:1",), "cpu")
    assert (first.requests, first.rows, first.failures, first.queue_ms) == (4, 640, 1, 2.5)
    assert first.walltime_left_s is not None
    assert 90 < first.walltime_left_s <= 100
    assert (second.state, second.queue_ms, second.walltime_left_s) == ("draining", None, None)


def test_what_only_the_owner_knows_is_there_too_and_its_newest_word_counts(own: ServerPool) -> None:
    tell(own, BlockEntry(GROUP, "8", "12", "queued"))
    tell(own, BlockEntry(GROUP, "8", "12", "starting"), BlockEntry(GROUP, "7", "11", "lost", "its node is gone"))
    lost, starting = servers(look())
    assert (lost.state, lost.job, lost.reason) == ("lost", "11", "its node is gone")
    assert (starting.state, starting.block, starting.node) == ("starting", "8", None)
    tell(own)
    assert servers(look()) == []


def test_each_groups_blocks_are_told_apart(own: ServerPool) -> None:
    own.tell_blocks("cpu", (BlockEntry("cpu", "0", "1", "queued"),))
    own.tell_blocks("gpu", (BlockEntry("gpu", "0", "2", "queued"),))
    assert own.wait_for(lambda table: len(table.blocks) == 2, AT_ONCE_S)
    assert [group.name for group in look().pools[0].groups] == ["cpu", "gpu"]


def test_a_registry_that_was_started_again_still_knows_the_blocks(own: ServerPool) -> None:
    tell(own, BlockEntry(GROUP, "8", "12", "queued"))
    old = registry_of(own.ref)
    old.kill()
    old.wait()
    tell(own, BlockEntry(GROUP, "8", "12", "starting"))
    assert own.wait_for(lambda table: [one.state for one in table.blocks] == ["starting"], 20.0)
    assert [server.state for server in servers(look())] == ["starting"]


def test_a_pool_that_was_lost_says_why(own: ServerPool) -> None:
    own.lose("no server ever came")
    assert own.wait_for(lambda table: table.generation > 0, AT_ONCE_S)
    assert "It is lost: no server ever came" in text(look())


# Which runs -----------------------------------------------------------------------


def test_runs_elsewhere_are_named_by_their_folder_or_the_one_above(tmp_path: Path) -> None:
    with ServerPool(run_dir=tmp_path / "there" / "run") as pool:
        assert look().pools == ()
        for folder in (pool.run_dir, pool.run_dir.parent):
            assert [one.run_id for one in look(run_dir=folder).pools] == [pool.run_id]
    with pytest.raises(ConfigError, match=r"There is no run in .*/there\."):
        look(run_dir=tmp_path / "there")


def test_the_pool_of_a_parsl_configuration_of_ones_own_is_found() -> None:
    with ServerPool() as pool:
        assert [one.run_id for one in look().pools] == [pool.run_id]


def test_a_pool_that_nobody_started_is_an_error() -> None:
    with pytest.raises(ConfigError, match="There is no pool named mine"):
        look(pool="mine")


# A run that does not answer ---------------------------------------------------------


def test_a_run_whose_driver_is_dead_is_a_sentence_beside_those_that_live(own: ServerPool) -> None:
    dead = own.run_dir.parent / "dead"
    with ServerPool(run_dir=dead) as pool:
        kept, address = own.run_dir.parent / "kept.json", pool.ref.registries[0]
        shutil.copy2(pool.ref_path, kept)
    dead.mkdir()
    kept.rename(dead / "pool.json")
    start = time.monotonic()
    alive, silent = look().pools
    assert time.monotonic() - start < AT_ONCE_S
    assert (alive.run_id, alive.problem) == (own.run_id, None)
    assert silent.problem == f"Nobody answers at {address}: the driver has ended, or this machine cannot reach it."


def test_whoever_took_the_dead_drivers_port_and_says_nothing_holds_nobody_up(
    own: ServerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "ASK_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ref = PoolRef("other", (f"127.0.0.1:{silent.getsockname()[1]}",))
        folder = own.run_dir.parent / "other"
        folder.mkdir()
        ref.write(folder / "pool.json")
        start = time.monotonic()
        problems = {one.run_id: one.problem for one in look().pools}
    assert time.monotonic() - start < 1.0 + AT_ONCE_S
    assert problems[own.run_id] is None
    assert str(problems["other"]).startswith("Nobody answers at 127.0.0.1:")


def test_a_file_that_others_can_read_or_that_is_damaged_is_a_sentence(own: ServerPool) -> None:
    for name, mode, content in (("open", 0o644, "{}"), ("torn", 0o600, "{")):
        (own.run_dir.parent / name).mkdir()
        path = own.run_dir.parent / name / "pool.json"
        path.write_text(content)
        path.chmod(mode)
    problems = {Path(one.folder).name: one.problem for one in look().pools}
    assert "can be read by others" in str(problems["open"])
    assert "could not be read" in str(problems["torn"])
    assert problems["abc"] is None


# How it is shown ------------------------------------------------------------------


def test_a_line_of_the_table_fits_into_80_columns_and_shows_everything(own: ServerPool) -> None:
    load = ServerLoad(rows=987_654_321, requests=1_234_567, queue_ms=1_234_567 * 12.34)
    join = lasting("a", time.time() + 100_000, job_id="44112233", node="gpu0123.cluster.example.org")
    say(own, replace(join, info=replace(join.info, models=join.info.models * 3)), Renew("a", load))
    tell(own, BlockEntry(GROUP, "13", "44112234", "lost", "a long reason " * 20))
    shown = text(look())
    assert max(map(len, shown.splitlines())) <= 80
    for word in (
        "ready",
        "44112233",
        "gpu0123",
        "identity:1",
        "1235k",
        "988M",
        "12.3",
        "27:46:3",
        "lost",
        "a long reason",
    ):
        assert word in shown


def test_text_of_a_server_steers_no_terminal_and_is_no_markup(own: ServerPool) -> None:
    say(own, lasting("a\x1b]0;x\x07", time.time() + 9, node="[red]\x9b2J\u202en"))
    tell(own, BlockEntry(GROUP, "8", "1", "lost", "[/] one\r\ntwo\x1b[2J"))
    status = look()
    shown = text(status)
    assert not set(shown) & set("\x1b\x07\x9b\u202e\r")
    assert "[red]2Jn" in shown
    assert "[/] one two[2J" in shown
    assert json.dumps(asdict(status)).isascii()


def test_a_line_stays_a_line() -> None:
    assert clean(" a\tb\nc\u2028d\x00\x7f ") == "a b c d"


# For programs ---------------------------------------------------------------------


def test_the_json_is_as_the_schema_in_the_docs_says(own: ServerPool) -> None:
    schema = json.loads((DOCS / "status.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    say(own, lasting("a", time.time() + 9))
    tell(own, BlockEntry(GROUP, "8", "1", "lost", "why"))
    status = json.loads(json.dumps(asdict(look())))
    assert len(status["pools"][0]["groups"][0]["servers"]) == 2
    jsonschema.validate(status, schema)
    status["pools"][0]["groups"][0]["servers"][0]["state"] = "asleep"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(status, schema)


def without_words(schema: Any) -> Any:
    """Return a schema without titles and descriptions, which differ between versions of pydantic."""
    if isinstance(schema, dict):
        return {
            key: without_words(value) for key, value in schema.items() if key not in {"$schema", "title", "description"}
        }
    return schema


def test_the_schema_in_the_docs_is_that_of_the_code() -> None:
    schema = json.loads((DOCS / "status.schema.json").read_text())
    assert without_words(schema) == without_words(TypeAdapter(Status).json_schema(mode="serialization"))


def test_each_field_is_in_the_docs() -> None:
    schema = json.loads((DOCS / "status.schema.json").read_text())
    page = (DOCS / "status.md").read_text()
    fields = {*schema["properties"], *(name for kind in schema["$defs"].values() for name in kind["properties"])}
    assert [name for name in sorted(fields) if f"`{name}`" not in page and f".{name}`" not in page] == []
