"""A real HTCondor of two machines that share no files: each has a Debian 13 of its own, without the host's folders.

Its machines are mount and process namespaces over one root, in which nothing is ever written: all that a machine
writes is in memory, and ends with its first process.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from sonic_parsl.cache import cache_dir
from sonic_parsl.ports import free_port
from sonic_parsl.server import install
from tests.installation import copied
from tests.leaks import wait_until
from tests.schedulers.apt import cannot, provide

USER, UID = "physicist", 4242
PYTHON = Path("/opt/sonic")
CACHE = Path("/opt/cache")
"""Where a machine has the project, and the Triton wheel."""
PROJECT = Path(__file__).parents[2]
BUILD_VERSION = 1
START_S = 60.0

COMMON = """
CONDOR_HOST = 127.0.0.1
NETWORK_INTERFACE = 127.0.0.1
ENABLE_IPV6 = False
COLLECTOR_PORT = {port}
UID_DOMAIN = localdomain
FILESYSTEM_DOMAIN = {name}
TRUST_UID_DOMAIN = True
use security:host_based
SEC_DEFAULT_AUTHENTICATION_METHODS = FS, PASSWORD
SEC_PASSWORD_FILE = /mnt/pool-password
ALLOW_WRITE = *
ALLOW_READ = *
ALLOW_DAEMON = *
ALLOW_NEGOTIATOR = *
USE_SHARED_PORT = False
SEC_USE_FAMILY_SESSION = False
BASE_CGROUP =
DISCARD_SESSION_KEYRING_ON_STARTUP = False
DAEMON_LIST = {daemons}
"""
SUBMIT = """
SCHEDD_INTERVAL = 2
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
"""
EXECUTE = """
NUM_CPUS = 4
NUM_SLOTS = 1
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = cpus=4, mem=4000, fpgas=2
SLOT_TYPE_1_PARTITIONABLE = True
MACHINE_RESOURCE_Fpgas = fpga0, fpga1
RUNBENCHMARKS = 0
"""
DAEMONS = {"submit": "MASTER COLLECTOR NEGOTIATOR SCHEDD", "execute": "MASTER STARTD"}
SETTINGS = {"submit": SUBMIT, "execute": EXECUTE}

BOOT = """
root=$1 config=$2 home=$3
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
for folder in dev/shm run tmp home var/lib/condor var/log/condor; do
    mount -t tmpfs -o mode=1777 tmpfs "$root/$folder"
done
mount --bind "$config" "$root/mnt"
mount --bind "$config/config.d" "$root/etc/condor/config.d"
if [ -n "$home" ]; then mkdir "$root/home/physicist"; mount --bind "$home" "$root/home/physicist"; fi
exec chroot "$root" sh -c '
    install -d -o condor -g condor /run/condor /run/lock/condor /var/lib/condor/spool
    install -d -m 755 -o condor -g condor /var/lib/condor/execute
    condor_master -f
    exit'
"""
"""The shell stays the first process: HTCondor changes its user, and would slip the leash of `unshare`."""


# The root -----------------------------------------------------------------------


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(*argv: str | Path) -> str:
    """Run a command; its output is part of the error where it fails."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "TMPDIR": "/tmp"}  # the root has no other
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=env)
    assert done.returncode == 0, f"{' '.join(map(str, argv))} failed:\n{done.stdout[-3000:]}"
    return done.stdout


def machine_root() -> Path:
    """Return the machines' root with HTCondor, this Python and the project; make what is missing of it."""
    folder = cache_dir() / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(f"{BUILD_VERSION} {[str(one) for one in _interpreters()]}".encode()).hexdigest()[:8]
    root = folder / f"htcondor-{key}"
    with _locked(folder / "htcondor.lock"):
        if not root.exists():
            scratch = folder / "htcondor.scratch"
            shutil.rmtree(scratch, ignore_errors=True)
            try:
                _build(scratch)
            except AssertionError as error:
                cannot(f"HTCondor: no machine can be made: {str(error).splitlines()[-1]}")
            scratch.rename(root)
        _install_project(root)
    return root


def _build(root: Path) -> None:
    # An older release's keys and scripts do not know Debian 13 yet.
    script = "/usr/share/debootstrap/scripts/sid"
    _run("debootstrap", "--variant=minbase", "--no-check-gpg", "trixie", root, _mirror(), script)
    for name in ("resolv.conf", "hosts"):
        shutil.copy(f"/etc/{name}", root / "etc" / name)
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")  # packages start no daemons
    policy.chmod(0o755)
    with_proc = ["unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={root}/proc"]
    _run(*with_proc, "chroot", root, "apt-get", "install", "-y", "-q", "--no-install-recommends", "minicondor")
    _run("chroot", root, "useradd", "--no-create-home", "--uid", str(UID), USER)
    for prefix in _interpreters():
        _copy_interpreter(prefix, root)
    _run(_uv(), "venv", "--quiet", "--relocatable", "--python", sys.executable, root / PYTHON.relative_to("/"))


def _install_project(root: Path) -> None:
    """Install the project as it is now, and Triton."""
    python = root / PYTHON.relative_to("/") / "bin/python"
    _run(_uv(), "pip", "install", "--quiet", "--python", python, "--reinstall-package", "sonic-parsl", PROJECT)
    shutil.rmtree(root / CACHE.relative_to("/"), ignore_errors=True)
    copied(install.find(), root / CACHE.relative_to("/"))


def _uv() -> Path:
    return Path(sys.executable).with_name("uv")


def _mirror() -> str:
    sources = [path.read_text() for path in Path("/etc/apt").rglob("*") if path.suffix in {".list", ".sources"}]
    found = re.search(r"https?://\S+/debian(?=/?\s)", "\n".join(sources))
    return found.group() if found else "http://deb.debian.org/debian"


def _interpreters() -> list[Path]:
    """Return the prefixes of this Python and of the one that Triton's backend uses."""
    triton = (install.find().folder / "python/bin/python").resolve()
    return sorted({Path(sys.base_prefix), triton.parents[1]})


def _copy_interpreter(prefix: Path, root: Path) -> None:
    """Copy a Python to the same place, without what was installed for it."""
    target = root / prefix.relative_to("/")
    skipped = shutil.ignore_patterns("site-packages", "dist-packages", "test", "__pycache__")
    for stdlib in prefix.glob("lib/python3.*[0-9]"):
        shutil.copytree(stdlib, target / "lib" / stdlib.name, ignore=skipped, dirs_exist_ok=True)
    (target / "bin").mkdir(parents=True, exist_ok=True)
    for file in [*prefix.glob("bin/python3*"), *prefix.glob("lib/libpython3*.so*")]:
        if not (target / file.relative_to(prefix)).exists():
            shutil.copy2(file, target / file.relative_to(prefix), follow_symlinks=False)
    for folder in [target, *target.relative_to(root).parents]:
        (root / folder).chmod(0o755)


# The machines -------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """A machine that is up.

    Attributes
    ----------
    pid
        Its first process.
    folder
        Where its commands start.
    """

    pid: int
    folder: str

    def command(self, *argv: str, user: int = UID) -> list[str]:
        """Return the host's command that runs another one on this machine, as its user."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--root"]
        env = [f"PATH={PYTHON}/bin:/usr/sbin:/usr/bin:/sbin:/bin", f"HOME=/home/{USER}", "LANG=C.UTF-8"]
        return [*enter, f"--setuid={user}", f"--setgid={user}", "env", "-i", "-C", self.folder, *env, *argv]

    def run(self, *argv: str, user: int = UID) -> str:
        """Run a command on this machine; return what it printed."""
        return _run(*self.command(*argv, user=user))


@dataclass(frozen=True)
class HTCondor:
    """A pool of two machines.

    Attributes
    ----------
    submit
        Where the user's home is, and the queue.
    execute
        Where jobs run; it has neither.
    home
        The user's home, as this host sees it.
    """

    submit: Machine
    execute: Machine
    home: Path

    def queue(self) -> list[str]:
        """Return the jobs in the queue: their ids, states (2 is running) and names of their scripts."""
        return self.submit.run("condor_q", "-allusers", "-af:j", "JobStatus", "Args").splitlines()


@contextmanager
def htcondor(folder: Path) -> Iterator[HTCondor]:
    """Start a pool; nothing of it is left at the end.

    Parameters
    ----------
    folder
        For the user's home and the daemons' settings.
    """
    provide("HTCondor", ["debootstrap"], ["debootstrap"])
    root = machine_root()
    home = folder / "home"
    home.mkdir(mode=0o700)
    os.chown(home, UID, UID)
    port, password = free_port("127.0.0.1"), os.urandom(16).hex()
    with ExitStack() as stack:
        submit = stack.enter_context(_machine(root, folder, "submit", port, password, home))
        execute = stack.enter_context(_machine(root, folder, "execute", port, password, None))
        pool = HTCondor(submit, execute, home)
        wait_until(lambda: _is_up(pool), START_S, lambda: _logs(pool))
        yield pool


def _is_up(pool: HTCondor) -> bool:
    ask = pool.submit.command("condor_status", "-any", "-af", "MyType")
    types = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.split()
    return {"Machine", "Scheduler"} <= set(types)


def _logs(pool: HTCondor) -> str:
    return "".join(one.run("sh", "-c", "tail -n 20 /var/log/condor/*", user=0) for one in (pool.submit, pool.execute))


@contextmanager
def _machine(root: Path, folder: Path, name: str, port: int, password: str, home: Path | None) -> Iterator[Machine]:
    config = folder / name
    (config / "config.d").mkdir(parents=True)
    settings = COMMON.format(port=port, name=name, daemons=DAEMONS[name]) + SETTINGS[name]
    (config / "config.d/settings").write_text(settings)
    secret = config / "pool-password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    boot = ["sh", "-euc", BOOT, "boot", str(root), str(config), str(home or "")]
    namespaces = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child"]
    with subprocess.Popen([*namespaces, *boot]) as process:
        try:
            wait_until(lambda: process.poll() is not None or _first(process), START_S)
            first = _first(process)
            assert first, f"machine {name} did not start"
            yield Machine(first[0], f"/home/{USER}" if home else "/")
        finally:
            for pid in _children(process):
                os.kill(pid, signal.SIGKILL)  # the kernel ends every process of a machine with its first


def _children(process: subprocess.Popen[bytes]) -> list[int]:
    return [] if process.poll() is not None else [one.pid for one in psutil.Process(process.pid).children()]


def _first(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the first process of a machine, once it has started HTCondor."""
    if process.poll() is not None:
        return []
    children = psutil.Process(process.pid).children()
    return [one.pid for one in children if any(child.name() == "condor_master" for child in one.children())]
