"""Installs a real Triton from PyPI: NVIDIA's own binary, and a Python of its own for Triton's python backend.

The folder ``<cache>/server/<version>-py<minor>/`` holds::

    triton/           the nvidia-pytriton wheel, for the binary in it (nothing of it is imported)
    python/           a virtual environment: numpy < 2, onnxruntime
    backends/         what Triton is pointed at: python/ and onnxruntime/
    installed.json    written last; without it the folder is made again

Triton has an environment of its own because its python backend needs numpy < 2:
with numpy 2 it starts, answers, and all outputs are empty.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sonic_parsl.cache import cache_dir
from sonic_parsl.errors import RuntimeMissingError
from sonic_parsl.server.damage import damage

log = logging.getLogger(__name__)

PYTRITON = "0.7.0"
PYTRITON_SHA256 = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"
ENVIRONMENT = ("numpy<2", "onnxruntime")
OLDEST_GLIBC = (2, 35)
PYTHON_MINORS = (12, 11, 10)
"""Python 3 versions the server can have: numpy 1.26, the last below 2, has wheels up to 3.12."""

OLDEST_PIP = (22, 3)
"""The first with ``pip --python``."""

COMMAND = "sonic-parsl server install"
ELSEWHERE = "Use the apptainer runtime here, with an image of Triton: it brings its own system."
OUR_BACKEND = Path(__file__).parent / "backends" / "onnxruntime" / "model.py"

PROBE = (
    "import json, pathlib, sys, sysconfig\n"
    "lib = sysconfig.get_config_var('LIBDIR') or ''\n"
    "so = 'libpython%d.%d.so.1.0' % sys.version_info[:2]\n"
    "shared = [d for d in (lib, sys.base_prefix + '/lib') if pathlib.Path(d, so).exists()]\n"
    "print(json.dumps({'minor': sys.version_info[1] if sys.version_info[0] == 3 else -1,"
    " 'library_dir': (shared or [''])[0]}))\n"
)
VERIFY = "import json, numpy, onnxruntime as o; print(json.dumps({'numpy': numpy.__version__, 'onnxruntime': o.__version__}))"


@dataclass(frozen=True)
class WheelInstallation:
    """An installed Triton.

    Attributes
    ----------
    folder
        Where it is.
    pytriton, python, numpy, onnxruntime
        Versions: of the wheel, of the server's Python (``3.11``) and of what is in it.
    library_dir
        Folder of the shared library of that Python.
    """

    folder: Path
    pytriton: str
    python: str
    numpy: str
    onnxruntime: str
    library_dir: str

    @property
    def tritonserver(self) -> Path:
        """The server's binary."""
        return self.folder / "triton/pytriton/tritonserver/bin/tritonserver"

    @property
    def backends(self) -> Path:
        """Triton's backend directory."""
        return self.folder / "backends"

    @property
    def python_bin(self) -> Path:
        """Folder of the interpreter that the python backend runs models with."""
        return self.folder / "python/bin"

    @property
    def libraries(self) -> tuple[str, ...]:
        """Folders the dynamic loader needs."""
        return (str(self.folder / "triton/nvidia_pytriton.libs"), self.library_dir)


@dataclass(frozen=True)
class Interpreter:
    """A Python the server's environment can be made from."""

    path: str
    minor: int
    library_dir: str


# What this machine must have -------------------------------------------------


def glibc_problem(version: str) -> str | None:
    """Return what is wrong with this version of glibc (``2.28``, empty for another libc), or None."""
    try:
        parts = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        parts = ()
    if parts >= OLDEST_GLIBC:
        return None
    return f"Triton's wheel needs glibc 2.35 or newer; this machine has {version or 'another C library'}. {ELSEWHERE}"


def platform_problem(system: str, machine: str) -> str | None:
    """Return what is wrong with this kind of machine, or None."""
    if (system, machine) == ("Linux", "x86_64"):
        return None
    return f"Triton's wheel runs on x86-64 Linux; this is {system} on {machine}. Run servers on another machine."


def pip_problem(version: str | None) -> str | None:
    """Return what is wrong with this version of pip (None where there is no pip), or None."""
    upgrade = f"Run `{sys.executable} -m ensurepip --upgrade` or `{sys.executable} -m pip install --upgrade pip`."
    if version is None:
        return f"The server is installed with pip, which this Python does not have. {upgrade}"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_PIP:
        return f"The server is installed with pip 22.3 or newer; this is pip {version}. {upgrade}"
    return None


def machine_problems() -> list[str]:
    """Return why the wheel cannot run on this machine; nothing where it can."""
    libc, version = platform.libc_ver()
    found = platform_problem(platform.system(), platform.machine())
    found = found or glibc_problem(version if libc == "glibc" else "")
    return [found] if found else []


def _pip_version() -> str | None:
    if importlib.util.find_spec("pip") is None:
        return None
    from importlib.metadata import version

    return version("pip")


def _has_uv() -> bool:
    return importlib.util.find_spec("uv") is not None


def _probe(path: str) -> Interpreter | None:
    """Return what an interpreter is; None where it does not run or does not suit."""
    try:
        done = subprocess.run([path, "-I", "-c", PROBE], capture_output=True, text=True, check=False)
    except OSError:
        return None
    if done.returncode != 0:
        return None
    found = Interpreter(path=path, **json.loads(done.stdout))
    return found if found.minor in PYTHON_MINORS and found.library_dir else None


def _interpreter() -> Interpreter:
    """Return this interpreter where it suits, else the newest on PATH that does."""
    names = [sys.executable, *(f"python3.{minor}" for minor in PYTHON_MINORS)]
    for path in filter(None, map(shutil.which, names)):
        if found := _probe(path):
            return found
    raise RuntimeMissingError(
        f"Triton's wheel needs a Python 3.10, 3.11 or 3.12 with its shared library; {sys.executable} "
        f"(Python {platform.python_version()}) is none, and there is no other on PATH.",
        hint="Install one (uv, conda-forge, or the system's package with libpython3.x), or use the apptainer runtime.",
    )


# Finding and installing ------------------------------------------------------


def find() -> WheelInstallation:
    """Return the Triton that is installed for this user.

    Raises
    ------
    RuntimeMissingError
        There is none, or it is damaged or out of date.
    """
    for folder in _folders():
        if found := _read(folder):
            return found
    raise RuntimeMissingError("Triton is not installed here, or not completely.", hint=f"Run `{COMMAND}`.")


def install() -> WheelInstallation:
    """Install Triton unless it is there, and whole: some 55 MB to fetch, 290 MB on disk, 10 s.

    Raises
    ------
    RuntimeMissingError
        This machine lacks something, or the installation failed; the message says what.
    """
    for problem in machine_problems():
        raise RuntimeMissingError(problem)
    try:
        with _lock(_root() / "lock"):
            whole = (folder for folder in _folders() if _is_complete(folder) and damage(folder) is None)
            folder = next(whole, None) or _build()
            _write_our_backend(folder)
    except OSError as error:
        raise RuntimeMissingError(
            f"Triton could not be installed: {error}.", hint="Set SONIC_PARSL_CACHE to a folder that can be written."
        ) from None
    return find()


def _root() -> Path:
    return cache_dir() / "server"


def _folders() -> list[Path]:
    return [_root() / f"{PYTRITON}-py3.{minor}" for minor in _preferred_minors()]


def _preferred_minors() -> list[int]:
    own = sys.version_info.minor
    return sorted(PYTHON_MINORS, key=lambda minor: (minor != own, -minor))


def _is_complete(folder: Path) -> bool:
    """Return whether all of an installation is there; an interpreter that was removed breaks it."""
    parts = (folder / "installed.json", folder / "python/bin/python")
    return all(part.exists() for part in parts)


def _read(folder: Path) -> WheelInstallation | None:
    ours = folder / "backends/onnxruntime/model.py"
    if not _is_complete(folder) or not ours.exists() or ours.read_bytes() != OUR_BACKEND.read_bytes():
        return None
    return WheelInstallation(folder=folder, **json.loads((folder / "installed.json").read_text()))


def _build() -> Path:
    """Make an installation from nothing; what a broken attempt left goes first."""
    interpreter = _interpreter()
    if not _has_uv() and (problem := pip_problem(_pip_version())):
        raise RuntimeMissingError(problem)
    folder = _root() / f"{PYTRITON}-py3.{interpreter.minor}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log.info("Installing Triton (nvidia-pytriton %s) into %s.", PYTRITON, folder)
    _install_triton(folder)
    _copy_python_backend(folder, interpreter.minor)
    versions = _make_environment(folder, interpreter)
    record = WheelInstallation(
        folder=folder,
        pytriton=PYTRITON,
        python=f"3.{interpreter.minor}",
        library_dir=interpreter.library_dir,
        **versions,
    )
    fields = {key: value for key, value in asdict(record).items() if key != "folder"}
    _write_at_once(folder / "installed.json", json.dumps(fields, indent=2).encode())
    return folder


def _install_triton(folder: Path) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"nvidia-pytriton=={PYTRITON} --hash=sha256:{PYTRITON_SHA256}\n")
    target = str(folder / "triton")
    _install([], ["--no-deps", "--require-hashes", "--target", target, "--requirement", str(requirements)])


def _copy_python_backend(folder: Path, minor: int) -> None:
    """Copy, not link: Triton refuses a library that leads out of the backend directory."""
    server = folder / "triton/pytriton/tritonserver"
    backend = folder / "backends/python"
    backend.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy2(server / "backends/python" / name, backend)
    stub = shutil.copy2(server / f"python_backend_stubs/3.{minor}/triton_python_backend_stub", backend)
    Path(stub).chmod(0o755)


def _make_environment(folder: Path, interpreter: Interpreter) -> dict[str, str]:
    """Make the server's environment and return the versions in it."""
    python = folder / "python/bin/python"
    _run([interpreter.path, "-I", "-m", "venv", "--without-pip", str(folder / "python")])
    _install(["--python", str(python)], list(ENVIRONMENT))
    versions: dict[str, str] = json.loads(_run([str(python), "-I", "-c", VERIFY]))
    if int(versions["numpy"].split(".")[0]) >= 2:
        raise RuntimeMissingError(
            f"The server's environment got numpy {versions['numpy']}, with which Triton's outputs are empty.",
            hint=f"Look for a constraint on numpy in pip's configuration, then run `{COMMAND}`.",
        )
    return versions


def _write_our_backend(folder: Path) -> None:
    target = folder / "backends/onnxruntime/model.py"
    target.parent.mkdir(parents=True, exist_ok=True)
    _write_at_once(target, OUR_BACKEND.read_bytes())


def _install(where: Sequence[str], what: Sequence[str]) -> None:
    """Install packages with pip, which knows the user's index; with uv where there is no fit pip."""
    if pip_problem(_pip_version()) is None:
        command = ["pip", *where, "install", "--quiet", "--disable-pip-version-check", *what]
    else:
        command = ["uv", "pip", "install", "--quiet", *where, *what]
    _run([sys.executable, "-m", *command])


def _run(command: Sequence[str]) -> str:
    """Run a command and return what it printed."""
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME"}}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-10:])
        raise RuntimeMissingError(
            f"Triton could not be installed: `{' '.join(command)}` failed:\n{said}\n",
            hint=f"Mend that (is a package index within reach?) and run `{COMMAND}`.",
        )
    return done.stdout


def _write_at_once(path: Path, content: bytes) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(content)
    scratch.replace(path)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock: two installations at once wait for each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
