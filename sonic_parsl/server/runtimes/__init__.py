"""Ways to run a real Triton: out of the wheel, the machine's own, or in an apptainer image.

A runtime says what it lacks and which backends it has, and turns
:class:`TritonOptions` into a :class:`Command`. It starts nothing itself.
"""

from __future__ import annotations

from sonic_parsl.errors import ConfigError
from sonic_parsl.server.guard import SHARED_MEMORY
from sonic_parsl.server.runtimes.apptainer import ApptainerRuntime
from sonic_parsl.server.runtimes.command import Command, Runtime, TritonOptions
from sonic_parsl.server.runtimes.host import HostRuntime
from sonic_parsl.server.runtimes.shared_memory import (
    close_shared_memory,
    new_shm_prefix,
    remove_shared_memory,
)
from sonic_parsl.server.runtimes.wheel import WheelRuntime

__all__ = [
    "RUNTIMES",
    "SHARED_MEMORY",
    "ApptainerRuntime",
    "Command",
    "HostRuntime",
    "Runtime",
    "TritonOptions",
    "WheelRuntime",
    "close_shared_memory",
    "new_shm_prefix",
    "remove_shared_memory",
    "runtime",
]

RUNTIMES = ("wheel", "host", "apptainer")


def runtime(name: str, *, image: str | None = None, binary: str | None = None, gpu: bool = False) -> Runtime:
    """Return a runtime by its name in a site file.

    Parameters
    ----------
    name
        ``wheel``, ``host`` or ``apptainer``.
    image
        For ``apptainer``: the image.
    binary
        For ``host``: name or path of the server.
    gpu
        Whether the server may see GPUs.

    Raises
    ------
    ConfigError
        No runtime has this name, it has no GPUs, or the image is missing.
    """
    if name == "wheel":
        if gpu:
            raise ConfigError(
                "The wheel runtime computes on the CPU only.", hint="Use the host or the apptainer runtime for GPUs."
            )
        return WheelRuntime()
    if name == "host":
        return HostRuntime(binary=binary or "tritonserver", gpu=gpu)
    if name != "apptainer":
        raise ConfigError(f"There is no runtime named {name!r}.", hint=f"Choose one of {', '.join(RUNTIMES)}.")
    if not image:
        raise ConfigError(
            "The apptainer runtime needs an image.",
            hint="Name a SIF file or an address such as docker://nvcr.io/nvidia/tritonserver:24.10-py3.",
        )
    return ApptainerRuntime(image=image, gpu=gpu)
