"""Servers that somebody else runs: they get their own token, know nothing of the run, and are told apart."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import sonic_parsl as sonic
from sonic_parsl import kserve
from sonic_parsl.client.session import Session
from sonic_parsl.credentials import Credentials, Peer
from sonic_parsl.errors import PoolLostError
from sonic_parsl.executors.servers.server_executor import ServerExecutor
from sonic_parsl.pool.authority import CertificateAuthority
from sonic_parsl.pool.pool import ServerPool
from sonic_parsl.poolref import PoolRef, StaticServer
from sonic_parsl.protocol import VERSION, Join, ServedModel, ServerInfo
from sonic_parsl.rpc import RegistryStub
from sonic_parsl.server.install import install
from tests.executors.scores import Scores, assert_scores_are_right, run
from tests.leaks import all_said, our_processes, told, wait_until
from tests.live.conftest import PACKAGED
from tests.security.gateway import Diary, gateway
from tests.server.conftest import running_triton

TOKEN = "hunter2-of-the-gateway"
SITE = """
workers: {provider: local, workers-per-node: 1}
servers:
  gate:
    device: gpu
    static: [{url: "grpcs://%s", models: [btag], ca: ca.pem, token-env: GATE_TOKEN}]
driver: {run-dir: %s}
"""
TRITONS_OWN = {"RepositoryIndex", "ModelConfig", "ModelStatistics"}
"""Not part of KServe's protocol, version 2."""
FACILITY = CertificateAuthority("the facility")


@dataclass
class Facility:
    """A Triton of others, and gateways before it."""

    triton: str
    loop: asyncio.AbstractEventLoop
    stack: AsyncExitStack

    def gateway(self, shown: Credentials, *, token: str | None, also_trusted: str) -> tuple[str, Diary]:
        """Open a gateway; return its address and what it sees."""
        diary = Diary()
        opening = self.stack.enter_async_context(
            gateway(self.triton, shown, diary, token=token, also_trusted=also_trusted)
        )
        return asyncio.run_coroutine_threadsafe(opening, self.loop).result(), diary


@pytest.fixture(scope="module")
def facility(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    """A Triton with the packaged models, and a thread for the gateways."""
    install()
    log = tmp_path_factory.mktemp("facility") / "triton.log"
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with running_triton(PACKAGED, ("btag", "shape_demo"), log) as triton:
        made = Facility(f"127.0.0.1:{triton.options.port}", loop, AsyncExitStack())
        yield made
        asyncio.run_coroutine_threadsafe(made.stack.aclose(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def static(address: str, group: str = "gate", **changes: object) -> StaticServer:
    made = StaticServer(
        f"{group}-static-0", group, "gpu", address, ("btag",), authority=FACILITY.certificate, token=TOKEN
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_run_with_nothing_but_a_gateway_scores_right_and_its_model_is_unverified(
    facility: Facility, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, diary = facility.gateway(FACILITY.issue("localhost"), token=TOKEN, also_trusted=FACILITY.certificate)
    (tmp_path / "ca.pem").write_text(FACILITY.certificate)
    (tmp_path / "site.yaml").write_text(SITE % (address, tmp_path / "runs"))
    monkeypatch.setenv("GATE_TOKEN", TOKEN)
    with sonic.load_site(tmp_path / "site.yaml") as site:
        site.wait_ready(60)
        assert_scores_are_right(run(site.coffea_executor(status=False), Scores(), chunksize=200))
        assert not [one for one in site.dfk.executors.values() if isinstance(one, ServerExecutor)]  # nothing to scale
        report = site.report()
        report.write(site.run_dir / "report.json")
        shown = [*told(our_processes(), all_said), repr(site.pool.ref)]
        texts = [path.read_text(errors="replace") for path in site.run_dir.rglob("*") if path.suffix in {".log", ".sh"}]
        data = json.loads((site.run_dir / "report.json").read_text())
    assert not [text for text in (*shown, *texts, json.dumps(data)) if TOKEN in text]
    assert [(line["name"], line["verified"], line["source_digest"]) for line in data["models"]] == [("btag", False, "")]
    assert [(line["id"], line["verified"]) for line in data["servers"]] == [("gate-static-0", False)]
    assert set(diary.tokens) == {f"Bearer {TOKEN}"}
    assert "ModelInfer" in diary.methods


def test_it_never_sees_the_runs_certificate_and_the_runs_servers_never_see_its_token(
    facility: Facility, tmp_path: Path
) -> None:
    # A certificate that it does not know it would not only note: it would end the connection.
    address, outside = facility.gateway(FACILITY.issue("localhost"), token=TOKEN, also_trusted=FACILITY.certificate)
    with ServerPool(run_dir=tmp_path / "run", static=[static(address)]) as pool:
        block = pool.admit("own", "0")
        assert block.credentials is not None
        spied, own = facility.gateway(block.credentials, token=None, also_trusted=block.credentials.authority)
        (model,) = asyncio.run(joined(facility, block, spied, "shape_demo"))
        session = Session(pool.ref)
        try:
            assert ask(session, session.served("btag", deadline_s=30.0)) == 1
            assert ask(session, session.served(model.name, deadline_s=30.0)) == 1
        finally:
            session.close()
    assert "ModelInfer" in outside.methods
    assert set(outside.tokens) == {f"Bearer {TOKEN}"}
    assert set(outside.certificates) == {()}
    assert own.methods == ["ModelInfer"]
    assert own.tokens == [None]
    assert own.certificates == [(f"client.{pool.run_id}.sonic",)]


async def joined(facility: Facility, block: PoolRef, address: str, model: str) -> tuple[ServedModel, ...]:
    """Let a server of the run at `address` join with one of the models of the facility's Triton."""
    triton, registry = kserve.KServe(Peer(facility.triton)), RegistryStub(block)
    models = await triton.served(model, timeout_s=5.0)
    await registry.call(
        Join(VERSION, ServerInfo("spy", "own", "cpu", "hardware", "n", address, "0", "", models), "ready")
    )
    await triton.close()
    await registry.close()
    return models


def ask(session: Session, model: ServedModel) -> int:
    """Send a row of zeros; return how many rows came back."""
    rows = {spec.name: np.zeros((1, *spec.shape), kserve.DTYPES[spec.datatype]) for spec in model.inputs}
    (answer,) = session.submit(model, rows, rows=1, deadline_s=30.0).result().values()
    return len(answer)


def test_one_that_refuses_its_list_of_models_gets_no_new_work_until_it_answers_again(
    facility: Facility, tmp_path: Path
) -> None:
    address, diary = facility.gateway(FACILITY.issue("localhost"), token=TOKEN, also_trusted=FACILITY.certificate)
    with ServerPool(run_dir=tmp_path / "run", static=[static(address)]) as pool:
        pool.wait_ready(1, timeout_s=30.0)
        session = Session(pool.ref)
        try:
            model = session.served("btag", deadline_s=30.0)
            diary.refused.add("RepositoryIndex")
            assert session.wait_for(lambda table: [one.state for one in table.servers] == ["draining"], 30.0)
            asked = diary.methods.count("ModelInfer")
            zeros = {spec.name: np.zeros((1, *spec.shape), kserve.DTYPES[spec.datatype]) for spec in model.inputs}
            call = session.submit(model, zeros, rows=1, deadline_s=60.0)
            assert not call.wait(1.0)
            assert diary.methods.count("ModelInfer") == asked
            diary.refused.clear()
            assert len(call.result()) == 1
        finally:
            session.close()


def test_one_that_is_no_triton_is_asked_by_what_every_kserve_server_has(facility: Facility, tmp_path: Path) -> None:
    address, diary = facility.gateway(FACILITY.issue("localhost"), token=TOKEN, also_trusted=FACILITY.certificate)
    diary.unknown |= TRITONS_OWN
    with ServerPool(run_dir=tmp_path / "run", static=[static(address)]) as pool:
        pool.wait_ready(1, timeout_s=30.0)
        session = Session(pool.ref)
        try:
            model = session.served("btag", deadline_s=30.0)
            triton = asyncio.run(described(facility.triton, "btag"))
            assert (model.inputs, model.outputs) == (triton.inputs, triton.outputs)
            assert ask(session, model) == 1
            asked = diary.methods.count("RepositoryIndex")
            wait_until(lambda: diary.methods.count("RepositoryIndex") > asked + 1, 30.0)  # and still takes work
            assert ask(session, model) == 1
        finally:
            session.close()
    assert set(diary.methods) >= {"ServerReady", "ModelMetadata", "ModelInfer", *(TRITONS_OWN - {"ModelStatistics"})}


async def described(address: str, model: str) -> ServedModel:
    """Return what a Triton says of a model."""
    triton = kserve.KServe(Peer(address))
    try:
        (found,) = await triton.served(model, timeout_s=5.0)
    finally:
        await triton.close()
    return found


FAULTS: dict[str, tuple[dict[str, object], str]] = {
    "wrong authority": ({"authority": CertificateAuthority("another").certificate}, "handshake failed.* whom `ca` in"),
    "no authority": ({"authority": None}, "CERTIFICATE_VERIFY_FAILED.* name one: `ca` in the site file"),
    "no token": ({"token": None}, "does not let this process in: this gateway wants its token.*Check the credentials"),
    "wrong token": ({"token": "hunter3"}, "does not let this process in: this gateway wants its token"),
    "no TLS": ({"secure": False}, "cannot be reached"),
    "no such model": ({"models": ("btag", "nope")}, "does not have the model: .*nope"),
}


def test_what_keeps_it_out_is_said_and_holds_no_token(facility: Facility, tmp_path: Path) -> None:
    address, _ = facility.gateway(FACILITY.issue("localhost"), token=TOKEN, also_trusted=FACILITY.certificate)
    other, _ = facility.gateway(FACILITY.issue("somebody.else"), token=TOKEN, also_trusted=FACILITY.certificate)
    faulty = [static(address, how.replace(" ", "-"), **changes) for how, (changes, _) in FAULTS.items()]
    with ServerPool(run_dir=tmp_path / "run", static=[*faulty, static(other, "wrong-name")]) as pool:
        wait_until(lambda: len(pool.departures) == len(FAULTS) + 1, 20.0, lambda: pool.departures)
        said = {one.group.replace("-", " "): one.reason for one in pool.departures}
        for how, (_, pattern) in FAULTS.items():
            assert re.search(pattern, said[how]), said[how]
        assert re.search("does it say the host in `url`", said["wrong name"]), said["wrong name"]
        assert not re.search("hunter|BEGIN", repr(pool.departures))
        assert pool.wait_for(lambda table: not table.servers, 30.0)
        with pytest.raises(
            PoolLostError, match=r"0 of 1 servers are ready after 0\.1 s: none joined\. .*-static-0 failed: "
        ):
            pool.wait_ready(timeout_s=0.1)
