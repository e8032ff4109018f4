"""Another user on this machine, who attacks a run; started as root, it gives up all rights before it does anything.

It imports all it needs first: where the interpreter lies in a folder of root's, nobody else can read it.
Reads a plan as JSON from standard input and writes what came of it to standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from sonic_parsl import kserve, rpc
from sonic_parsl.credentials import Credentials, Peer, registry_name
from sonic_parsl.protocol import VERSION, Drain, Follow, Join, Leave, Renew, ServerInfo, ServerLoad, encode
from sonic_parsl.server.runtimes.command import KEY_FILES

UID = 54321
"""A user without a name, a home and a group."""
TIMEOUT_S = 5.0


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(UID)
    os.setuid(UID)


# Over the network -----------------------------------------------------------


def peers(plan: dict[str, Any], address: str, name: str) -> dict[str, Peer]:
    """Return each way in; the intruder even knows the authority of the run, to have no trouble of its own."""
    known = {how: Peer.of_run(address, name, Credentials(**one)) for how, one in plan["credentials"].items()}
    nameless = replace(known["with a stolen certificate"], certificate=None, key=None)
    return {"plain": Peer(address), "without a certificate": nameless, **known}


def registry_calls(server: dict[str, str]) -> dict[str, bytes]:
    info = ServerInfo("intruder", server["group"], "cpu", "hardware", "here", "127.0.0.1:1", server["block"], "", ())
    messages = {
        "Join": Join(VERSION, info, "ready"),
        "Renew": Renew(server["id"], ServerLoad()),
        "Drain": Drain(server["id"], "an intruder says so"),
        "Leave": Leave(server["id"], server["block"], server["group"], failed=True, reason="an intruder says so"),
        "Follow": Follow(VERSION),
    }
    return {name: encode(message) for name, message in messages.items()}


def triton_calls() -> dict[str, bytes]:
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 12]}
    infer = service_pb2.ModelInferRequest(model_name="btag", inputs=[tensor], raw_input_contents=[bytes(48)])
    messages = {
        "ServerLive": service_pb2.ServerLiveRequest(),
        "RepositoryIndex": service_pb2.RepositoryIndexRequest(),
        "RepositoryModelLoad": service_pb2.RepositoryModelLoadRequest(model_name="btag"),
        "ModelInfer": infer,
    }
    return {name: message.SerializeToString() for name, message in messages.items()}


async def attack(peer: Peer, service: str, calls: dict[str, bytes]) -> dict[str, str]:
    """Make each call; return the name of each status."""
    outcome = {}
    async with rpc.open_channel(peer) as channel:
        for method, data in calls.items():
            path = f"/{service}/{method}"
            try:
                if method == "Follow":
                    stream = channel.unary_stream(path)(data, timeout=TIMEOUT_S)
                    await stream.read()
                    stream.cancel()
                else:
                    await channel.unary_unary(path)(data, timeout=TIMEOUT_S)
                outcome[method] = "OK"
            except grpc.aio.AioRpcError as error:
                outcome[method] = error.code().name
    return outcome


async def over_the_network(plan: dict[str, Any]) -> dict[str, Any]:
    server = plan["server"]
    to_registry = peers(plan, plan["registry"], registry_name(plan["run_id"]))
    to_triton = peers(plan, server["address"], server["name"])
    return {
        "registry": {how: await attack(peer, rpc.SERVICE, registry_calls(server)) for how, peer in to_registry.items()},
        "triton": {how: await attack(peer, kserve.SERVICE, triton_calls()) for how, peer in to_triton.items()},
    }


# On this machine ------------------------------------------------------------


def opened(paths: list[str]) -> list[str]:
    """Return which of these files and folders can be read, listed or changed."""
    ways: dict[str, Callable[[str], object]] = {
        "read": lambda path: Path(path).read_bytes(),
        "write": lambda path: os.close(os.open(path, os.O_WRONLY)),
        "list": os.listdir,
        "make": lambda path: (Path(path) / "made").touch(),
    }
    found = []
    for path in paths:
        for how, way in ways.items():
            try:
                way(path)
            except (PermissionError, NotADirectoryError, IsADirectoryError):
                continue
            except FileNotFoundError:
                break  # it has just gone
            found.append(f"{how} {path}")
    return found


def seen_until_told(temporary: Path) -> dict[str, list[str]]:
    """Return what can be seen until standard input ends.

    That is every command line and environment, the servers' folders in `temporary`, and what can be done in them.
    """
    os.set_blocking(sys.stdin.fileno(), False)
    seen: set[bytes] = set()
    homes: set[str] = set()
    done: set[str] = set()
    while not has_ended(sys.stdin.fileno()):
        for home in temporary.glob("sonic-parsl-server-*"):
            homes.add(str(home))
            inside = [home, home / "models", home / "keys", *(home / "keys" / name for name in KEY_FILES.values())]
            done.update(opened([*map(str, inside)]))
        for process in Path("/proc").glob("[0-9]*"):
            for name in ("cmdline", "environ"):
                try:
                    seen.add((process / name).read_bytes())
                except OSError:
                    continue
    return {"seen": [text.decode(errors="replace") for text in seen], "homes": [*homes], "opened": [*done]}


def regions_until_told(prefix: str) -> dict[str, list[str]]:
    """Return which shared memory of this name is there until standard input ends, and what can be done with it."""
    os.set_blocking(sys.stdin.fileno(), False)
    regions: set[str] = set()
    done: set[str] = set()
    while not has_ended(sys.stdin.fileno()):
        found = [*map(str, Path("/dev/shm").glob(f"{prefix}*"))]
        regions.update(found)
        done.update(opened(found))
    return {"regions": [*regions], "opened": [*done]}


def has_ended(pipe: int) -> bool:
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


def read_plan(pipe: int) -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(pipe, 2**16)
    return dict(json.loads(line))


def main() -> None:
    """Do what the plan, the first line of standard input, says."""
    plan = read_plan(sys.stdin.fileno())
    become_nobody()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    outcome: dict[str, Any] = {"uid": os.getuid()}
    if "watch" in plan:
        outcome |= seen_until_told(Path(plan["watch"]))
    if "regions" in plan:
        outcome |= regions_until_told(plan["regions"])
    if "paths" in plan:
        outcome["opened"] = opened(plan["paths"])
    if "registry" in plan:
        outcome |= asyncio.run(over_the_network(plan))
    sys.stdout.write(json.dumps(outcome))


if __name__ == "__main__":
    main()
