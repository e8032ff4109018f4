"""Are the servers that somebody else runs ready, and do they have their models? Asked by ``sonic-parsl doctor``."""

from __future__ import annotations

import asyncio
import re

from sonic_parsl.errors import ConfigError, InferenceError, ModelNotFoundError
from sonic_parsl.kserve import KServe
from sonic_parsl.pool.static import NO_AUTHORITY, WRONG_AUTHORITY
from sonic_parsl.poolref import StaticServer
from sonic_parsl.rpc import is_distrust
from sonic_parsl.site import ServerGroup

ANSWER_S = 10.0
PATIENCE = "Try later, or ask who runs it."
UNRESOLVED = re.compile(r"resol(ving|ution)|lookup", re.IGNORECASE)
"""How gRPC's releases say that a name has no address."""

Answer = tuple[bool, str]
"""Whether it is well, and a sentence."""


def ask_static(label: str, group: ServerGroup) -> list[Answer]:
    """Ask a group's servers of others, from this machine, for what the site file wants of them."""
    return [answer for number in range(len(group.static)) for answer in _about(label, group, number)]


def _about(label: str, group: ServerGroup, number: int) -> list[Answer]:
    endpoint = group.static[number]
    where = f"servers {label}: {endpoint.url}"
    try:
        problems = asyncio.run(_problems(endpoint.server(label, number, group.device)))
    except ConfigError as error:
        problems = [str(error)]
    good = f"{where} is ready and has {', '.join(endpoint.models)}"
    return [(False, f"{where}: {problem}") for problem in problems] or [(True, good)]


async def _problems(server: StaticServer) -> list[str]:
    found = []
    stub = KServe(server.peer)
    try:
        await stub.require_ready(ANSWER_S)
        if not await stub.takes_work(ANSWER_S):
            found.append(f"The server refuses its list of models, and gets no work until it tells it. {PATIENCE}")
        for name in server.models:
            try:
                await stub.served(name, timeout_s=ANSWER_S)
            except ModelNotFoundError as error:
                found.append(f"{error.message} Correct its `models` in the site file, or ask who runs it.")
    except InferenceError as error:
        found.append(f"{error.message} {_fix(server, error)}")
    finally:
        await stub.close()
    return found


def _fix(server: StaticServer, error: InferenceError) -> str:
    said = error.message
    if is_distrust(said):
        return WRONG_AUTHORITY if server.authority else f"{NO_AUTHORITY}."
    if "does not let this process in" in said:
        known = "Is the token in the variable that `token-env` names the right one, and still valid?"
        return known if server.token else "If it wants a token, name the variable that holds it: `token-env`."
    if UNRESOLVED.search(said):
        return f"Correct the host in `url`: this machine finds no address for {server.host}."
    if "cannot be reached" in said:
        return "Correct `url`, or let this machine and the workers' nodes through to it."
    return error.hint or PATIENCE
