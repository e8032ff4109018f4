"""Parsl and coffea executors: blocks that are servers, chunks that know their pool, and sites that hold both."""

from __future__ import annotations

from sonic_parsl.executors.checkpointer import Checkpointer
from sonic_parsl.executors.coffea_executor import CoffeaExecutor
from sonic_parsl.executors.server_executor import ServerExecutor
from sonic_parsl.executors.site import Site, load_site
from sonic_parsl.executors.worker_executor import WorkerExecutor

__all__ = ["Checkpointer", "CoffeaExecutor", "ServerExecutor", "Site", "WorkerExecutor", "load_site"]
