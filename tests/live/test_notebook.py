"""A site in a notebook: across its cells, and again after its kernel was restarted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nbformat
import psutil
import pytest
import zmq
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.leaks import POOL_WORDS, assert_nothing_is_left, our_processes, wait_until
from tests.live.conftest import LEASE_S, write_site

CELL_S = 120
LEASE_SLACK_S = 30.0
"""For an agent to notice, and for Triton to stop on a busy machine."""
WORKERS_GONE_S = 60.0
"""Parsl's workers give up a driver after the 30 s that the site sets."""

LOAD = """
import asyncio
import awkward as ak
import numpy as np
import sonic_parsl as sonic
from coffea import processor
from coffea.nanoevents import NanoAODSchema
from sonic_parsl.workflows import btag_inputs, samples

assert asyncio.get_running_loop().is_running()
NanoAODSchema.warn_missing_crossrefs = False
site = sonic.load_site({site!r})
"""

RUN = """
class Tagging(processor.ProcessorABC):
    tagger = sonic.Model("btag", inputs=btag_inputs.FEATURES, outputs=btag_inputs.CLASSES)

    def process(self, events):
        jets = events.Jet[events.Jet.pt > 30]
        jets["btag"] = self.tagger(jets)
        return {"events": len(events), "b": int(ak.sum(jets.btag.b > 0.5))}

    def postprocess(self, accumulator):
        return accumulator

runner = processor.Runner(executor=site.coffea_executor(status=False), schema=NanoAODSchema, chunksize=100)
out = runner(samples.fileset(), Tagging())
assert out["events"] == 400 and out["b"] > 0, out
"""

USE = """
rows = ak.Array([[{{name: 1.0 for name in btag_inputs.FEATURES}}] * n for n in (2, 0, 3)])
scores = Tagging.tagger(rows)
assert ak.num(scores).to_list() == [2, 0, 3]
np.testing.assert_allclose(ak.flatten(scores.b + scores.c + scores.light), 1, rtol=1e-5)
assert site.report().events_out == {runs} * 400
"""

WAIT = """
import pathlib, time
pathlib.Path("waiting").touch()
time.sleep(600)
"""

CLOSE = "site.close()"


class Notebook:
    """A notebook with a kernel that runs one cell after the other."""

    def __init__(self, client: NotebookClient) -> None:
        self._client = client

    async def run(self, *sources: str) -> None:
        """Run cells; an error in one of them is raised here."""
        for source in sources:
            cells = self._client.nb.cells
            cells.append(nbformat.v4.new_code_cell(source))
            listening = asyncio.ensure_future(self._listen())
            try:
                await self._client.async_execute_cell(cells[-1], len(cells) - 1)
            finally:
                listening.cancel()

    async def _listen(self) -> None:
        """Look at the sockets now and then: a reply is sometimes not noticed before the cell's time-out."""
        while True:
            await asyncio.sleep(0.5)
            for channel in (self._client.kc.shell_channel, self._client.kc.iopub_channel):
                channel.socket.get(zmq.EVENTS)

    async def interrupt(self, source: str, *, once: Path) -> None:
        """Interrupt a cell that is running `once` a file is there, as the stop button does."""
        cell = asyncio.ensure_future(self.run(source))
        while not once.exists():
            await asyncio.sleep(0.05)
        await self._client.km.interrupt_kernel()
        with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
            await cell

    async def restart(self) -> None:
        """Kill the kernel and start another, as Jupyter does where a kernel does not end by itself in time."""
        await self._client.km.restart_kernel(now=True)
        await self._client.kc.wait_for_ready(timeout=CELL_S)


@asynccontextmanager
async def notebook(folder: Path) -> AsyncIterator[Notebook]:
    """A new notebook in `folder`."""
    client = NotebookClient(
        nbformat.v4.new_notebook(),
        timeout=CELL_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    async with client.async_setup_kernel():
        yield Notebook(client)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def test_a_site_is_used_from_one_cell_to_the_next_and_after_an_interrupt(tmp_path: Path) -> None:
    load = LOAD.format(site=str(write_site(tmp_path)))

    async def use() -> None:
        async with notebook(tmp_path) as opened:
            await opened.run(load, RUN)
            await opened.interrupt(WAIT, once=tmp_path / "waiting")
            await opened.run(RUN, USE.format(runs=2), CLOSE)
            assert_nothing_is_left()

    asyncio.run(use())
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_site_is_loaded_again_after_the_kernel_was_killed(tmp_path: Path) -> None:
    load = LOAD.format(site=str(write_site(tmp_path)))

    async def use() -> None:
        async with notebook(tmp_path) as opened:
            await opened.run(load, "site.wait_ready()")
            first = our_processes(*POOL_WORDS)
            assert first
            await opened.restart()
            await opened.run(load, RUN)
            wait_until(lambda: gone(first), LEASE_S + LEASE_SLACK_S, what=lambda: first)
            await opened.run(USE.format(runs=1), CLOSE)

    asyncio.run(use())
    assert_nothing_is_left(WORKERS_GONE_S)
