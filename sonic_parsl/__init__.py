"""Inference as a service for Parsl and coffea: a managed pool of Triton servers beside the worker nodes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sonic_parsl.columns.specs import Mask, Output, Padded
    from sonic_parsl.errors import SonicError
    from sonic_parsl.executors.servers.server_executor import ServerExecutor
    from sonic_parsl.executors.site import load_site
    from sonic_parsl.executors.workers.worker_executor import WorkerExecutor
    from sonic_parsl.model import Model
    from sonic_parsl.pool.pool import ServerPool
    from sonic_parsl.protocol import VERSION as __version__  # noqa: N811 - the name Python knows

__all__ = [
    "Mask",
    "Model",
    "Output",
    "Padded",
    "ServerExecutor",
    "ServerPool",
    "SonicError",
    "WorkerExecutor",
    "__version__",
    "load_site",
]

# Loaded when first used: a worker that only unpickles a Model should not import Parsl.
_HOMES = {
    "Mask": "columns.specs:Mask",
    "Model": "model:Model",
    "Output": "columns.specs:Output",
    "Padded": "columns.specs:Padded",
    "ServerExecutor": "executors.servers.server_executor:ServerExecutor",
    "ServerPool": "pool.pool:ServerPool",
    "SonicError": "errors:SonicError",
    "WorkerExecutor": "executors.workers.worker_executor:WorkerExecutor",
    "__version__": "protocol:VERSION",
    "load_site": "executors.site:load_site",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sonic_parsl' has no attribute '{name}'")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(f"sonic_parsl.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
