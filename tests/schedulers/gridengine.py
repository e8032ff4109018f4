"""A real Grid Engine cell of one host on the loopback address, in a folder of its own, without systemd."""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.leaks import wait_until
from tests.schedulers.apt import provide
from tests.schedulers.daemons import booted, command, end, free_ports, listens, process_of

PROGRAMS = ("sge_qmaster", "sge_execd", "qsub", "qstat", "qdel", "qconf")
PACKAGES = ("gridengine-master", "gridengine-exec", "gridengine-client")
INSTALLED = Path("/var/lib/gridengine")
SHARE = Path("/usr/share/gridengine")
TOOLS = Path("/usr/lib/gridengine")
BOOT_S = 30
SLOTS, DEVICES = 8, 2

BOOTSTRAP = """admin_user none
default_domain none
ignore_fqdn false
spooling_method berkeleydb
spooling_lib libspoolb
spooling_params {root}/spooldb
binary_path /usr/sbin
qmaster_spool_dir {root}/qmaster
security_mode none
listener_threads 2
worker_threads 2
scheduler_threads 1
"""
HOST = f"""hostname localhost
load_scaling NONE
complex_values fpga={DEVICES},gpu=1
user_lists NONE
xuser_lists NONE
projects NONE
xprojects NONE
usage_scaling NONE
report_variables NONE
"""
QUEUE = {
    "hostlist": "@allhosts",
    "slots": str(SLOTS),
    "pe_list": "smp",
    "shell": "/bin/bash",
    "shell_start_mode": "unix_behavior",
    "load_thresholds": "NONE",
}
PARALLEL = f"""pe_name smp
slots {SLOTS}
user_lists NONE
xuser_lists NONE
start_proc_args NONE
stop_proc_args NONE
allocation_rule $pe_slots
control_slaves FALSE
job_is_first_task TRUE
urgency_slots min
accounting_summary FALSE
qsort_args NONE
"""
COMPLEXES = ("fpga", "gpu")
# React within a second, and say why jobs wait.
SCHEDULER = {
    "schedule_interval": "0:0:1",
    "flush_submit_sec": "1",
    "flush_finish_sec": "1",
    "schedd_job_info": "true",
}


class GridEngine:
    """A cell that is up, with a consumable complex ``fpga`` that stands for a device.

    Parameters
    ----------
    root
        Where everything is that it writes.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._ports = free_ports(2)
        names = ("SGE_QMASTER_PORT", "SGE_EXECD_PORT")
        ports = {name: str(port) for name, port in zip(names, self._ports, strict=True)}
        # A socket's path is short: no folder in a folder of the tests.
        self.temporary = Path(tempfile.mkdtemp(prefix="ge-", dir="/tmp"))
        """Where each job has a folder of its own while it runs."""
        self.environ = {"SGE_ROOT": str(root), "SGE_CELL": "default", **ports}

    def boot(self) -> None:
        """Start the daemons, and wait until the queue takes jobs."""
        self._make_cell()
        command("sge_qmaster")
        wait_until(lambda: listens(self._ports[0]) and command("qconf", "-sh", check=False), BOOT_S, what=self._logs)
        self._describe_host()
        command("sge_execd")
        wait_until(lambda: "lx-" in command("qhost", "-h", "localhost"), BOOT_S, what=self._logs)

    def stop(self) -> None:
        """End all jobs and both daemons."""
        with suppress(AssertionError):
            command("qdel", "-f", "-u", "*", check=False)
            wait_until(lambda: not self.jobs(), BOOT_S)
        end(self._execd, process_of(self._root / "qmaster" / "qmaster.pid"))
        shutil.rmtree(self.temporary)

    def jobs(self) -> list[str]:
        """Return a line for each job: id, priority, name, user, state."""
        return command("qstat", "-u", "*").splitlines()[2:]

    @contextmanager
    def silent_node(self) -> Iterator[None]:
        """Freeze the daemon of the node: jobs that are sent there do not arrive."""
        execd = self._execd
        assert execd is not None
        execd.suspend()
        try:
            yield
        finally:
            execd.resume()

    # ----------------------------------------------------------------------------

    @property
    def _execd(self) -> psutil.Process | None:
        return next((process_of(path) for path in self._root.glob("execd/*/execd.pid")), None)

    def _make_cell(self) -> None:
        common = self._root / "default" / "common"
        common.mkdir(parents=True)
        for name in ("qmaster", "execd", "spooldb"):
            (self._root / name).mkdir()
        for name in ("bin", "lib", "util", "utilbin"):
            (self._root / name).symlink_to(INSTALLED / name)
        (common / "bootstrap").write_text(BOOTSTRAP.format(root=self._root))
        (common / "act_qmaster").write_text("localhost\n")
        # 127.0.0.1 resolves to either name: make both one, else access is denied.
        (common / "host_aliases").write_text(f"localhost {socket.gethostname()}\n")
        configuration = _changed(
            (SHARE / "default-configuration").read_text(),
            {"execd_spool_dir": f"{self._root}/execd", "min_uid": "0", "min_gid": "0"},
        )
        (self._root / "global").write_text(configuration)
        for tool, *arguments in (
            ("spoolinit", "berkeleydb", "libspoolb", f"{self._root}/spooldb", "init"),
            ("spooldefaults", "configuration", f"{self._root}/global"),
            ("spooldefaults", "complexes", f"{SHARE}/util/resources/centry"),
            ("spooldefaults", "usersets", f"{SHARE}/util/resources/usersets"),
            ("spooldefaults", "managers", "root"),
        ):
            command(str(TOOLS / tool), *arguments)

    def _describe_host(self) -> None:
        command("qconf", "-ah", "localhost", check=False)  # it may be one already
        command("qconf", "-as", "localhost")
        self._set("-Msconf", _changed(command("qconf", "-ssconf"), SCHEDULER))
        self._set("-Mc", command("qconf", "-sc") + "".join(f"{name} {name} INT <= YES YES 0 0\n" for name in COMPLEXES))
        self._set("-Ae", HOST)
        self._set("-Ahgrp", "group_name @allhosts\nhostlist localhost\n")
        self._set("-Ap", PARALLEL)
        for name in ("all.q", "gpu.q"):
            self._set("-Aq", _changed(command("qconf", "-sq"), {**QUEUE, "qname": name, "tmpdir": str(self.temporary)}))

    def _set(self, option: str, text: str) -> None:
        path = self._root / "setting"
        path.write_text(text)
        command("qconf", option, str(path))

    def _logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in self._root.glob("*/**/messages"))


def _changed(settings: str, changes: dict[str, str]) -> str:
    for name, value in changes.items():
        settings = re.sub(rf"^{name}\s.*", f"{name} {value}", settings, flags=re.MULTILINE)
    return settings


@contextmanager
def gridengine_cell() -> Iterator[GridEngine]:
    """Boot one; install what it needs."""
    provide("Grid Engine", PROGRAMS, PACKAGES)
    with booted(GridEngine) as scheduler:
        yield scheduler
