"""The agent: runs in a block, owns one Triton, and speaks for it to the registry.

starting ── models answer ──▶ ready ── SIGTERM, walltime, pool's wish ──▶ draining ──▶ gone
└─ Triton ends or hangs, a model stops answering, registry unreachable for one lease ─▶ gone
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from sonic_parsl.credentials import block_name
from sonic_parsl.errors import InferenceError, PoolError, PoolLostError, ServerStartError, SonicError
from sonic_parsl.poolref import PoolRef
from sonic_parsl.ports import address_towards, ipv4_of
from sonic_parsl.protocol import (
    MAX_LINES,
    MAX_REASON,
    VERSION,
    Drain,
    Join,
    Leave,
    Renew,
    ServedModel,
    ServerInfo,
    ServerLoad,
    ServerState,
)
from sonic_parsl.repository import copy, read, served
from sonic_parsl.rpc import RegistryStub
from sonic_parsl.server import job
from sonic_parsl.server.home import Home, no_room
from sonic_parsl.server.identity import Identity
from sonic_parsl.server.probe import Watch, probe
from sonic_parsl.server.runtimes import TritonOptions, close_shared_memory, runtime
from sonic_parsl.server.spec import Luggage, ServerSpec
from sonic_parsl.server.triton import Triton, last_lines, start

logger = logging.getLogger("sonic_parsl.agent")

DRAIN_NOTICE_S = 0.5
"""Clients follow the table; this is how long the news that a server drains is given to reach them."""


@dataclass(frozen=True)
class End:
    """Why an agent ends.

    Attributes
    ----------
    failed
        True where nobody wanted it to; then there is nothing to wait for.
    stderr
        The last lines Triton wrote, where it failed.
    """

    reason: str
    failed: bool = False
    stderr: str = ""


@dataclass
class Agent:
    """One server's spokesman.

    Attributes
    ----------
    identity
        What Triton shows its clients.
    home
        Where it has its models and keys.
    address
        Where Triton listens.
    log
        Where Triton's output goes: a file without a name, of which nothing can be left.
    """

    spec: ServerSpec
    info: ServerInfo
    registry: RegistryStub
    identity: Identity
    home: Home
    address: str
    log: io.FileIO
    state: ServerState = "starting"
    load: ServerLoad = field(default_factory=ServerLoad)
    triton: Triton | None = None
    watch: Watch = field(default_factory=Watch)
    ended: asyncio.Future[End] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def drain(self, reason: str) -> None:
        """End after what is in flight."""
        self._end(End(reason=reason))

    def fail(self, reason: str) -> None:
        """End now."""
        self._end(End(reason=reason[:MAX_REASON], failed=True, stderr=last_lines(self.log)[-MAX_LINES:]))

    async def run(self) -> End:
        """Serve until there is a reason to end; return it. Triton is gone then, and the registry knows."""
        async with (
            self._task(self._keep_lease()),
            self._task(self._live()),
            self._task(self._watch_models()),
            self._task(self._limit_start()),
            self._task(self._watch_walltime()),
        ):
            end = await asyncio.shield(self.ended)
        if self.triton is not None:
            await self._stop(self.triton, end)
        await self._tell(
            Leave(
                server_id=self.info.id,
                block_id=self.info.block_id,
                group=self.info.group,
                failed=end.failed,
                reason=end.reason,
                stderr=end.stderr,
                load=self.load,
            )
        )
        return end

    def _end(self, end: End) -> None:
        """Say why it is to end; the first reason stays."""
        if not self.ended.done():
            logger.info("Server %s ends: %s", self.info.id, end.reason)
            self.ended.set_result(end)

    # Triton's life ------------------------------------------------------------

    async def _live(self) -> None:
        """Start Triton, say that it is ready, and wait until it ends by itself."""
        await self._join()
        options = TritonOptions(
            repository=self.home.folder / "models",
            models=self.spec.models,
            address=self.address,
            port=0,
            exit_timeout_s=max(1, round(self.spec.drain_s)),
            shm_prefix=self.home.shm_prefix,
        )
        engine = runtime(self.spec.runtime, image=self.spec.image, binary=self.spec.binary, gpu=self.spec.gpu)
        known = await asyncio.to_thread(self._copy_models, options.repository)
        triton = self.triton = await start(
            engine,
            options,
            identity=self.identity,
            home=self.home,
            port_range=self.spec.port_range,
            log=self.log,
        )
        models = await self._models(triton, known)
        for model in models:
            if await probe(triton.stub, model, timeout_s=self.spec.start_timeout_s):
                self.watch.models.append(model)
        self.info = replace(self.info, address=triton.address, models=models)
        close_shared_memory(self.home.shm_prefix)  # only zeros have been there yet
        self.state = "ready"
        await self._join()
        logger.info("Server %s is ready at %s", self.info.id, self.info.address)
        self.fail(f"Triton ended by itself with exit code {await triton.wait_exit()}")

    def _copy_models(self, to: Path) -> dict[tuple[str, str], ServedModel]:
        """Copy the models for Triton alone; return them with their digests and tags.

        Triton reads a model's files again when it restarts a process of the model: what became of the
        repository by then must not come in.

        Raises
        ------
        ServerStartError
            One is not what it was when the pool's owner looked, or there is no room for them.
        """
        try:
            copy(self.spec.repository, self.spec.models, to)
        except OSError as error:
            raise no_room(f"A copy of the models in {self.spec.repository}", error) from None
        folders = read(to, self.spec.models)
        for folder in folders:
            expected = self.spec.digests.get(folder.name, folder.artifact_digest)
            if folder.artifact_digest != expected:
                raise ServerStartError(
                    f"Model {folder.name} in {self.spec.repository} was changed after the pool was started: its "
                    f"artifact digest was {expected[:12]} and is {folder.artifact_digest[:12]}.",
                    hint="Scores of both would mix: put the old one back, or start the run again.",
                )
        return {(model.name, model.version): model for folder in folders for model in served(folder)}

    async def _models(self, triton: Triton, known: Mapping[tuple[str, str], ServedModel]) -> tuple[ServedModel, ...]:
        """Return what Triton says it serves, with what is `known` of it from the repository."""
        models = []
        for name in self.spec.models:
            for model in await triton.stub.served(name, timeout_s=self.spec.start_timeout_s):
                ours = known.get((name, model.version), model)
                models.append(
                    replace(ours, max_batch_size=model.max_batch_size, inputs=model.inputs, outputs=model.outputs)
                )
        return tuple(models)

    async def _stop(self, triton: Triton, end: End) -> None:
        """End Triton: when nothing is wrong after what is in flight, which clients are told first."""
        if end.failed:
            await triton.stop(0.0)
            return
        self.state = "draining"
        await self._tell(Drain(server_id=self.info.id, reason=end.reason))
        async with self._task(self._keep_lease()):
            await asyncio.sleep(DRAIN_NOTICE_S)
            await self._hear(triton)
            await triton.stop(self.spec.drain_s)

    # Why it ends --------------------------------------------------------------

    async def _keep_lease(self) -> None:
        """Renew the lease, once ready only while Triton answers; end when either side is silent for a lease."""
        lease_s = self.spec.lease_s
        heard_triton = heard_registry = time.monotonic()
        while True:
            await asyncio.sleep(lease_s / 3)
            close_shared_memory(self.home.shm_prefix)  # a model that was loaded again has new regions
            if self.state != "ready" or self.triton is None or await self._hear(self.triton):
                heard_triton = time.monotonic()
                if await self._renew():
                    heard_registry = time.monotonic()
            now = time.monotonic()
            if now - heard_triton > lease_s:
                self.fail(f"Triton did not answer for {lease_s:g} s")
            elif now - heard_registry > lease_s:
                self.fail(f"the registry could not be reached for {lease_s:g} s")

    async def _watch_models(self) -> None:
        while True:
            await asyncio.sleep(self.spec.lease_s / 3)
            if self.state != "ready" or self.triton is None:
                continue
            if wrong := await self.watch.verdict(self.triton, self.load):
                self.fail(wrong)

    async def _limit_start(self) -> None:
        await asyncio.sleep(self.spec.start_timeout_s)
        if self.state == "starting":
            self.fail(f"Triton was not ready after {self.spec.start_timeout_s:g} s")

    async def _watch_walltime(self) -> None:
        if self.info.ends_at is not None:
            await asyncio.sleep(max(0.0, self.info.ends_at - self.spec.drain_before_s - time.time()))
            self.drain("its walltime ends soon")

    async def _hear(self, triton: Triton) -> bool:
        """Ask Triton for its statistics; return whether it answered."""
        try:
            self.load = await triton.stub.load(timeout_s=self.spec.lease_s / 3)
        except InferenceError:
            return False
        return True

    # What it says -------------------------------------------------------------

    async def _join(self) -> None:
        async with self.turn:  # a "starting" sent before must not come after "ready"
            await self.registry.call(Join(version=VERSION, info=self.info, state=self.state))

    async def _renew(self) -> bool:
        """Renew the lease; return whether the registry answered."""
        try:
            ack = await self.registry.call(Renew(server_id=self.info.id, load=self.load))
            if ack.drain:
                self.drain("the pool asked it to")
            elif not ack.known:
                await self._join()
        except PoolLostError:
            return False
        return True

    async def _tell(self, message: Drain | Leave) -> None:
        """Say something last: where nobody hears it, the end of the lease will do."""
        try:
            await self.registry.call(message)
        except PoolError as error:
            logger.warning("The registry was not told that server %s ends: %s", self.info.id, error)

    @contextlib.asynccontextmanager
    async def _task(self, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """Run `work` beside the block, and end the agent if it fails."""
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._note_crash)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    def _note_crash(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(str(error) if isinstance(error, SonicError) else f"{type(error).__name__}: {error}")


def _describe_self(spec: ServerSpec, block_id: str) -> ServerInfo:
    return ServerInfo(
        id=f"{spec.group}-{block_id}-{uuid.uuid4().hex[:6]}",
        group=spec.group,
        kind=spec.kind,
        fidelity=spec.fidelity,
        node=socket.gethostname(),
        address="",
        block_id=block_id,
        job_id=job.job_id(os.environ),
        models=(),
        ends_at=job.ends_at(os.environ, started_at=time.time(), walltime_s=spec.walltime_s),
        lease_s=spec.lease_s,
        devices=os.environ.get(spec.numbered_by, "") if spec.numbered_by else "",
    )


async def serve(spec: ServerSpec, ref: PoolRef, block_id: str, home: Home) -> End:
    """Run one server from start to end."""
    with tempfile.TemporaryFile(buffering=0) as log:
        address = ipv4_of(spec.address) if spec.address else address_towards(ref.registries[0])
        identity = Identity(block_name(ref.run_id, spec.group, block_id), ref.credentials)
        agent = Agent(spec, _describe_self(spec, block_id), RegistryStub(ref), identity, home, address, log)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.drain, f"it was sent {number.name}")
        try:
            return await agent.run()
        finally:
            await agent.registry.close()


@click.command()
@click.option(
    "--spec", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="What to serve; from stdin by default."
)
@click.option("--block", required=True)
def main(spec: Path | None, block: str) -> None:
    """Run one inference server of a pool; the pool's owner starts it on the server's node."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        if spec is not None:
            what, ref = ServerSpec.read(spec), PoolRef.from_environment()
        else:
            luggage = Luggage.unpack(sys.stdin.read())
            what, ref = luggage.spec, luggage.ref
        with Home() as home:
            end = asyncio.run(serve(what, ref, block, home))
    except SonicError as error:
        end = End(reason=str(error), failed=True)
    if end.failed:
        raise SystemExit(f"{end.reason}\n{end.stderr}".strip())


if __name__ == "__main__":
    main()
