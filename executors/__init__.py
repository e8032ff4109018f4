"""Parsl and coffea executors: blocks that are servers, chunks that know their pool, and sites that hold both."""

from __future__ import annotations

from sonic_parsl.executors.chunks.checkpointer import Checkpointer
from sonic_parsl.executors.chunks.coffea_executor import CoffeaExecutor
from sonic_parsl.executors.servers.server_executor import ServerExecutor
from sonic_parsl.executors.site import Site, load_site
from sonic_parsl.executors.workers.worker_executor import WorkerExecutor

__all__ = ["Checkpointer", "CoffeaExecutor", "ServerExecutor", "Site", "WorkerExecutor", "load_site"]
