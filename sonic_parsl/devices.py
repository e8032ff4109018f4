"""What a kind of device promises.

A device is a record, not a branch: nothing outside this table asks for a
kind's name. Site files add kinds under ``devices:``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["cpu", "gpu", "fpga", "ipu"]
Fidelity = Literal["hardware", "emulated"]


NUMBERED_BY: dict[Family, str] = {
    "cpu": "",
    "gpu": "CUDA_VISIBLE_DEVICES",
    "fpga": "FPGA_VISIBLE_DEVICES",
    "ipu": "IPU_VISIBLE_DEVICES",
}
"""Environment variables in which batch systems say which of a node's devices a job was given."""


@dataclass(frozen=True)
class Device:
    """One kind of device a server can stand on.

    Attributes
    ----------
    kind
        Name in site files and reports.
    family
        What sort of processor it is.
    fidelity
        ``hardware``, or ``emulated`` where a CPU computes what the device would.
    """

    kind: str
    family: Family
    fidelity: Fidelity = "hardware"

    @property
    def is_gpu(self) -> bool:
        """Whether its servers use a real GPU."""
        return self.family == "gpu" and self.fidelity == "hardware"


BUILT_IN: dict[str, Device] = {
    device.kind: device
    for device in (
        Device(kind="cpu", family="cpu"),
        Device(kind="gpu", family="gpu"),
        Device(kind="fpga", family="fpga"),
        Device(kind="ipu", family="ipu"),
    )
}
