"""A real Slurm of six emulated nodes on the loopback address, without systemd and beside no other one."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.leaks import wait_until
from tests.schedulers.apt import provide
from tests.schedulers.daemons import booted, command, end, free_ports, freeze, kill, listens, lost_with, process_of

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "munged")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
BOOT_S = 30


@dataclass(frozen=True)
class Node:
    """An emulated node; its devices are names only."""

    name: str
    gres: str = ""
    devices: int = 0

    @property
    def family(self) -> str:
        """``gpu`` of ``gpu:a100``."""
        return self.gres.partition(":")[0]


NODES = (
    Node("cpu1"),
    Node("cpu2"),
    Node("gpu1", "gpu:a100", 2),
    Node("gpu2", "gpu:a100", 2),
    Node("fpga1", "fpga:u250", 2),
    Node("ipu1", "ipu:mk2", 4),
)
CPUS = 8
PARTITIONS = {
    "cpu": "Nodes=cpu[1-2] Default=YES PriorityTier=10",
    "gpu": "Nodes=gpu[1-2] PriorityTier=10",
    "fpga": "Nodes=fpga1 PriorityTier=10",
    "ipu": "Nodes=ipu1 PriorityTier=10",
    "low": "Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=0",
    "scavenge": "Nodes=ALL PriorityTier=1 PreemptMode=CANCEL GraceTime=0",
}
# Short times: a node that is gone is noticed after SlurmdTimeout. NoInAddrAny binds daemons to their own addresses.
CONF = """
ClusterName=sonic
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog={folder}/task-prolog
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
PlugStackConfig=/dev/null
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_min_interval=0,sched_interval=5,batch_sched_delay=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=3
MinJobAge=600
CompleteWait=0
InactiveLimit=0
WaitTime=0
SlurmdTimeout=8
MessageTimeout=5
TCPTimeout=2
BatchStartTimeout=5
UnkillableStepTimeout=10
ReturnToService=2
GresTypes=gpu,fpga,ipu
"""
# Slurm sets CUDA_VISIBLE_DEVICES for `gpu` only; sites do the like for other devices, for the tasks of srun.
TASK_PROLOG = """#!/bin/bash
expand() {{ for part in ${{1//,/ }}; do seq -s, "${{part%-*}}" "${{part#*-}}"; done | paste -sd,; }}
line=$({scontrol} -o show job -d "$SLURM_JOB_ID" | grep -oE "Nodes=$SLURMD_NODENAME [^=]*=[^=]*=[^=]*GRES=[^ ]*")
for family in fpga ipu; do
  given=$(grep -oP "$family(:\\w+)?:\\d+\\(IDX:\\K[-0-9,]+" <<< "$line")
  [ -n "$given" ] && echo "export ${{family^^}}_VISIBLE_DEVICES=$(expand "$given")"
done
exit 0
"""


class Slurm:
    """A cluster that is up.

    Parameters
    ----------
    folder
        Where everything is that it writes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._dark: dict[str, list[psutil.Process]] = {}
        self.environ = {"SLURM_CONF": str(folder / "slurm.conf")}

    def boot(self) -> None:
        """Start the daemons, and wait until every node is idle."""
        port, *node_ports = free_ports(1 + len(NODES))
        self._configure(port, node_ports)
        self._start_munge()
        command("slurmctld")
        wait_until(lambda: listens(port), BOOT_S, what=self._logs)
        for node in NODES:
            command("slurmd", "-N", node.name)
        wait_until(self.all_idle, BOOT_S, what=self._logs)

    def stop(self) -> None:
        """End all jobs and all daemons."""
        for name in tuple(self._dark):
            self._lose(name)
        with suppress(AssertionError):
            command("scancel", "--user", "root", check=False)
            wait_until(lambda: not self.jobs(), BOOT_S)
        pid_files = (self._folder / "slurmctld.pid", *(self._pid_file(node.name) for node in NODES))
        end(*map(process_of, pid_files))
        kill([process for node in NODES for process in self._processes_on(node.name)])
        end(process_of(self._folder / "munge" / "pid"))

    # What a test does with it ---------------------------------------------------

    def jobs(self) -> list[str]:
        """Return a line for each job in the queue: id, partition, state, reason."""
        return command("squeue", "--noheader", "--format=%i %P %T %r").splitlines()

    def all_idle(self) -> bool:
        """Return whether every node is there, without a job."""
        states = command("sinfo", "--noheader", "--Node", "--format=%T").split()
        return bool(states) and set(states) == {"idle"}

    def node_of(self, job: str) -> str:
        """Return the node of a job that runs."""
        return command("squeue", "--noheader", "--format=%N", "--jobs", job).strip()

    def cut_power(self, name: str) -> None:
        """Cut a node's power: nothing is heard of it any more, and nobody is told.

        Its processes are frozen; they end when power is back. Were they killed, the kernel would close their connections.
        """
        daemon = process_of(self._pid_file(name))
        assert daemon is not None, f"node {name} does not run"
        dark = self._dark[name] = [daemon]
        freeze(dark)
        while more := [process for process in self._processes_on(name) if process not in dark]:
            freeze(more)
            dark += more

    def restore_power(self) -> None:
        """Switch nodes on again whose power was cut; nothing of what they had in memory is there.

        Slurm is told that they were down, which it would notice itself by and by: jobs that were to end there may take a
        minute to do so otherwise.
        """
        for name in tuple(self._dark):
            command("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=power")
            self._lose(name)
            command("slurmd", "-N", name)

    # ----------------------------------------------------------------------------

    def _lose(self, name: str) -> None:
        """Let what a dark node had in memory be gone."""
        processes = self._dark.pop(name)
        lost = lost_with(processes)
        kill(processes)
        for path in lost:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        self._pid_file(name).unlink()

    def _pid_file(self, node: str) -> Path:
        return self._folder / f"slurmd-{node}.pid"

    def _processes_on(self, node: str) -> list[psutil.Process]:
        """Return the step daemons of a node, which hold its log open, and what jobs run there."""
        log, found = str(self._folder / f"slurmd-{node}.log"), []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.name() in {"slurmstepd", "slurmd"}:
                    if any(file.path == log for file in process.open_files()):
                        found.append(process)
                elif self._is_of(process.environ(), node):
                    found.append(process)
        return found

    def _is_of(self, environ: dict[str, str], node: str) -> bool:
        return environ.get("SLURM_CONF") == self.environ["SLURM_CONF"] and environ.get("SLURMD_NODENAME") == node

    def _configure(self, port: int, node_ports: list[int]) -> None:
        folder = self._folder
        for name in ("state", "munge", *(f"spool-{node.name}" for node in NODES)):
            (folder / name).mkdir()
        lines = [CONF.format(host=os.uname().nodename.partition(".")[0], port=port, folder=folder)]
        devices = []
        for node, node_port in zip(NODES, node_ports, strict=True):
            # A NodeHostname of its own for each, or slurmctld calls it duplicated; only NodeAddr is connected to.
            gres = f" Gres={node.gres}:{node.devices}" if node.gres else ""
            lines.append(
                f"NodeName={node.name} NodeHostname={node.name} NodeAddr=127.0.0.1 Port={node_port} "
                f"CPUs={CPUS} RealMemory=64000 State=UNKNOWN{gres}"
            )
            if node.gres:
                files = folder / f"{node.name}-{node.family}"
                for number in range(node.devices):
                    _make_device(Path(f"{files}{number}"))
                name, _, kind = node.gres.partition(":")
                devices.append(f"NodeName={node.name} Name={name} Type={kind} File={files}[0-{node.devices - 1}]")
        lines += [
            f"PartitionName={name} {words} MaxTime=INFINITE DefaultTime=10 State=UP"
            for name, words in PARTITIONS.items()
        ]
        (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        (folder / "gres.conf").write_text("\n".join(devices) + "\n")
        prolog = folder / "task-prolog"
        prolog.write_text(TASK_PROLOG.format(scontrol="/usr/bin/scontrol"))
        prolog.chmod(0o755)

    def _start_munge(self) -> None:
        folder = self._folder / "munge"
        folder.chmod(0o700)
        key = folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        places = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        command("munged", "--force", *(f"--{option}={folder / name}" for option, name in places.items()))
        wait_until((folder / "socket").exists, BOOT_S)

    def _logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in self._folder.glob("*.log"))


def _make_device(path: Path) -> None:
    """Make what looks like a device: another name of /dev/null, or a file where that is not allowed."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        path.touch()


@contextmanager
def slurm_cluster() -> Iterator[Slurm]:
    """Boot one; install what it needs."""
    provide("Slurm", PROGRAMS, PACKAGES)
    with booted(Slurm) as scheduler:
        yield scheduler
