"""Servers that somebody else runs have no agent: the registry looks after them itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sonic_parsl.errors import InferenceError, SonicError
from sonic_parsl.kserve import KServe
from sonic_parsl.poolref import StaticServer
from sonic_parsl.protocol import (
    VERSION,
    Ack,
    Join,
    Leave,
    Renew,
    ServedModel,
    ServerInfo,
    ServerLoad,
    ServerState,
    decode,
    encode,
)
from sonic_parsl.rpc import AgentMessage, RefusalError, is_distrust

PERIOD_S = 5.0
"""How often it is asked whether it is ready: a third of its lease."""
ANSWER_S = 4.0
NO_AUTHORITY = "If its certificate is not signed by an authority the system trusts, name one: `ca` in the site file"
WRONG_AUTHORITY = "Is its certificate signed by whom `ca` in the site file names, and does it say the host in `url`?"


async def keep(server: StaticServer, answer: Callable[[AgentMessage, str | None], Ack]) -> None:
    """Hold a lease for a server while it says that it is ready; never ends.

    Parameters
    ----------
    answer
        Takes what its agent would say: also once, at the beginning, why it cannot be used.
    """
    stub = KServe(server.peer)
    known: ServerState | None = None
    told = False
    answer(Join(version=VERSION, info=_info(server, ()), state="starting"), None)  # who wants its models waits
    try:
        while True:
            try:
                known = await _renew(stub, server, answer, known)
                told = False
            except (SonicError, RefusalError) as error:
                if not (known or told):
                    answer(_absent(server, error), None)
                told = True
            await asyncio.sleep(PERIOD_S)
    finally:
        await stub.close()


async def _renew(
    stub: KServe,
    server: StaticServer,
    answer: Callable[[AgentMessage, str | None], Ack],
    known: ServerState | None,
) -> ServerState:
    """Say for the server what its agent would; return as what it is in the table, where it was as `known`."""
    await stub.require_ready(ANSWER_S)
    # It answers what it has; until it takes work again, nothing new goes there.
    state: ServerState = "ready" if await stub.takes_work(ANSWER_S) else "draining"
    if state == known and answer(Renew(server_id=server.id, load=await _load(stub)), None).known:
        return state
    models = [model for name in server.models for model in await stub.served(name, timeout_s=ANSWER_S)]
    join = Join(version=VERSION, info=_info(server, tuple(models)), state=state)
    answer(decode(Join, encode(join)), None)  # what it says of itself is held to the same bounds as an agent's word
    return state


async def _load(stub: KServe) -> ServerLoad:
    try:
        return await stub.load(ANSWER_S)
    except InferenceError:
        return ServerLoad()  # servers other than Triton have no statistics


def _info(server: StaticServer, models: tuple[ServedModel, ...]) -> ServerInfo:
    return ServerInfo(
        id=server.id,
        group=server.group,
        kind=server.kind,
        fidelity="hardware",
        node=server.host,
        address=server.address,
        block_id="",
        job_id="",
        models=models,
    )


def _absent(server: StaticServer, error: Exception) -> Leave:
    reason = str(error).rstrip(".")
    if is_distrust(reason):
        reason += f". {WRONG_AUTHORITY}" if server.authority else f". {NO_AUTHORITY}"
    return Leave(server_id=server.id, block_id="", group=server.group, failed=True, reason=reason)
