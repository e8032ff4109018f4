"""Another user on the same machine gets at nothing of a run: no call, no file, no key."""

from __future__ import annotations

import asyncio
import re
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from parsl.providers import LocalProvider

import sonic_parsl as sonic
from sonic_parsl.credentials import block_name, client_name
from sonic_parsl.errors import PoolError
from sonic_parsl.executors.servers.server_executor import ServerExecutor
from sonic_parsl.executors.site import Site
from sonic_parsl.pool.authority import CertificateAuthority
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.rpc import RegistryStub
from tests.executors.scores import Scores, run
from tests.leaks import all_said, our_processes, told, wait_until
from tests.pool.conftest import joining
from tests.security.conftest import holds_key, lines_of
from tests.server.agents import MODELS, shared_memory_of

SITE = """
workers: {provider: local, workers-per-node: 1}
servers:
  cpu: {device: cpu, lease: 10, start-timeout: 120, serve: [btag]}
shared-filesystem: %s
driver: {run-dir: %s}
"""
REFUSED = "UNAVAILABLE"
"""TLS does not let them in: no call is made at all."""
SECRET_FILES = re.compile(r"/pool\.json$|/cpu-block-\d+\.json$|/submit_scripts/|/certificates/")
"""Where keys may be, for their owner only."""


@dataclass(frozen=True)
class Up:
    """A run that is up, and what another user could see and do while it came up.

    Attributes
    ----------
    seen
        Arguments and environments of processes.
    homes
        Folders of servers.
    opened
        What could be read or changed in them.
    """

    site: Site
    pool: ServerPool
    seen: list[str]
    homes: list[str]
    opened: list[str]

    def files(self) -> list[Path]:
        """Return the run's folders and files."""
        return [self.site.run_dir, *self.site.run_dir.rglob("*")]

    def with_keys(self) -> list[Path]:
        """Return the files that hold a key."""
        return [path for path in self.files() if path.is_file() and holds_key(path.read_text(errors="replace"))]


@pytest.fixture(scope="module", params=["true", "false"], ids=["keys in files", "keys in jobs"])
def up(request: pytest.FixtureRequest, other_user: Callable[..., Any], open_folder: Path) -> Iterator[Up]:
    """A worker, and a server that finds what it needs in the run's folder, or whose job carries it."""
    path = open_folder / "site.yaml"
    path.write_text(SITE % (request.param, open_folder / "runs"))
    with other_user(watch=tempfile.gettempdir()) as watcher, sonic.load_site(path) as site:
        site.wait_ready(120)
        run(site.coffea_executor(status=False), Scores(), chunksize=200)
        assert isinstance(site.pool, ServerPool)
        outcome = watcher()
        yield Up(site, site.pool, outcome["seen"], outcome["homes"], outcome["opened"])


def credentials(pool: ServerPool) -> dict[str, dict[str, str]]:
    """Return what an intruder could show; the stolen one shows that its calls would else be answered."""
    ours, authority = pool.ref.credentials, pool._authority
    assert ours is not None
    assert authority is not None
    name = client_name(pool.run_id)
    expired = authority.issue(name, valid=-timedelta(hours=1))
    other = replace(CertificateAuthority(pool.run_id).issue(name), authority=ours.authority)
    shown = {
        "with a stolen certificate": ours,
        "with an expired certificate": expired,
        "with one of another run": other,
    }
    return {how: asdict(one) for how, one in shown.items()}


def test_who_has_no_certificate_of_the_run_makes_no_call_to_registry_or_server(
    up: Up, other_user: Callable[..., Any]
) -> None:
    (entry,) = up.pool.table.ready
    server = {
        "id": entry.info.id,
        "group": entry.info.group,
        "block": entry.info.block_id,
        "address": entry.info.address,
        "name": block_name(up.pool.run_id, entry.info.group, entry.info.block_id),
    }
    plan = {"registry": up.pool.ref.registries[0], "run_id": up.pool.run_id, "server": server}
    with other_user(**plan, credentials=credentials(up.pool)) as intruder:
        outcome = intruder()
    assert outcome["uid"] != 0
    stolen = {who: outcome[who].pop("with a stolen certificate") for who in ("registry", "triton")}
    assert len(outcome["registry"]) == len(outcome["triton"]) == 4
    for who in ("registry", "triton"):
        for how, statuses in outcome[who].items():
            assert set(statuses.values()) == {REFUSED}, f"{who}, {how}: {statuses}"
    assert set(stolen["triton"].values()) == {"OK"}
    denied = dict.fromkeys(("Join", "Renew", "Drain", "Leave"), "PERMISSION_DENIED")
    assert stolen["registry"] == denied | {"Follow": "OK"}
    assert [one.info for one in up.pool.table.servers] == [entry.info]
    assert up.pool.table.ready


def test_no_file_of_the_run_can_be_read_or_changed(up: Up, other_user: Callable[..., Any]) -> None:
    kinds = {path.name if path.suffix == ".json" else path.suffix for path in up.with_keys()}
    assert kinds == {"pool.json", "cpu-block-0.json" if up.site.settings.shared_filesystem else ".sh"}
    # Parsl writes scripts: their own folder is closed.
    closed = [path.parent if path.suffix == ".sh" else path for path in up.with_keys()]
    assert not [path for path in closed if path.stat().st_mode & 0o077]
    with other_user(paths=[*map(str, up.files())]) as intruder:
        assert intruder()["opened"] == []
    assert up.site.run_dir.stat().st_mode & 0o777 == 0o700
    assert up.pool.ref_path.stat().st_mode & 0o777 == 0o600


def test_nothing_in_a_servers_own_folder_can_be_read_or_changed_while_it_starts(up: Up) -> None:
    assert len(up.homes) == 1
    assert up.opened == []


def test_rows_cannot_be_read_from_a_servers_shared_memory(up: Up, other_user: Callable[..., Any]) -> None:
    (triton,) = our_processes("bin/tritonserver --model")
    with other_user(regions=shared_memory_of(triton)) as intruder:
        run(up.site.coffea_executor(status=False), Scores(), chunksize=20)
        outcome = intruder()
    assert len(outcome["regions"]) > 1
    assert outcome["opened"] == []


def test_a_server_listens_on_one_port(up: Up) -> None:
    (entry,) = up.pool.table.ready
    (triton,) = our_processes("bin/tritonserver --model")
    connections = [one for process in (triton, *triton.children(recursive=True)) for one in process.net_connections()]
    listening = {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}
    assert listening == {int(entry.info.address.rpartition(":")[2])}


def test_what_others_see_of_the_processes_holds_no_key_while_a_run_comes_up(up: Up) -> None:
    assert [text for text in up.seen if "sonic_parsl.server.agent" in text], "nothing was seen"
    assert [text for text in up.seen if "tritonserver" in text]
    assert not [text for text in up.seen if holds_key(text)]


def test_arguments_and_environment_of_its_processes_hold_no_key(up: Up) -> None:
    found = set(told(our_processes(), all_said))
    for word in ("sonic_parsl.pool.registry", "sonic_parsl.server.agent", "tritonserver", "worker_pool"):
        assert [text for text in found if word in text], f"{word} does not run"
    assert up.pool.ref.credentials is not None
    for secret in lines_of(up.pool.ref.credentials.key):
        assert not [text for text in found if secret in text]
    assert not [text for text in found if holds_key(text)]


def test_logs_and_report_hold_no_key(up: Up) -> None:
    up.site.report().write(up.site.run_dir / "report.json")
    kept = {path.name for path in up.files() if path.is_file() and not SECRET_FILES.search(str(path))}
    assert {"parsl.log", "sonic-parsl.log", "report.json"} <= kept
    assert not [path for path in up.with_keys() if not SECRET_FILES.search(str(path))]


def test_no_text_of_an_object_or_a_traceback_holds_a_key(up: Up) -> None:
    block = up.pool.admit("cpu", "0")
    forged = replace(block, credentials=CertificateAuthority(up.pool.run_id).issue("client"))

    async def refused() -> str:
        stub = RegistryStub(forged)
        try:
            await stub.call(joining("intruder"))
        except PoolError as error:
            return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
        finally:
            await stub.close()
        raise AssertionError("it was let in")

    said = asyncio.run(refused())
    assert "shows no certificate of this run" in said
    executor = up.site.coffea_executor()
    for thing in (up.site, up.pool, up.pool.ref, up.pool.ref.server(up.pool.table.ready[0].info), block, executor):
        said += f"{thing!r} {thing}"
    assert not holds_key(said)


def test_a_job_that_carries_a_key_is_written_where_others_cannot_read_it(
    other_user: Callable[..., Any], open_folder: Path
) -> None:
    """Also where Parsl was set up by hand, with scripts in a folder for everybody."""
    scripts = open_folder / "runinfo" / "submit_scripts"
    scripts.mkdir(parents=True)
    provider = LocalProvider()
    provider.script_dir = str(scripts)
    pool = ServerPool(run_dir=open_folder / "pool")
    executor = ServerExecutor(
        "cpu", pool=pool, provider=provider, models=MODELS, serve=["identity"], shared_filesystem=False
    )
    executor.run_dir = str(open_folder)
    executor.start()
    try:
        (script,) = scripts.glob("*.sh")
        assert holds_key(script.read_text())
        assert "umask 077" in script.read_text().splitlines()
        wait_until(lambda: len(list(scripts.iterdir())) > 1, 10.0)
        with other_user(paths=[*map(str, (scripts, *scripts.iterdir(), pool.run_dir, *pool.run_dir.iterdir()))]) as one:
            assert one()["opened"] == []
    finally:
        executor.shutdown()
