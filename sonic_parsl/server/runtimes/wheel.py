"""Triton out of the nvidia-pytriton wheel."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from sonic_parsl.errors import ConfigError, RuntimeMissingError
from sonic_parsl.server import install
from sonic_parsl.server.damage import damage
from sonic_parsl.server.runtimes.command import Command, TritonOptions, folders_in, triton_flags, without_foreign

SHELL_SAFE = re.compile(r"[\w./+@%=:,~-]+")


@dataclass(frozen=True)
class WheelRuntime:
    """NVIDIA's own binary out of the nvidia-pytriton wheel, on the CPU."""

    @property
    def name(self) -> str:
        """The name a site file has for it."""
        return "wheel"

    def problems(self) -> list[str]:
        """Return what is missing and how to get it."""
        found = install.machine_problems()
        try:
            folder = install.find().folder
        except RuntimeMissingError as error:
            return [*found, str(error)]
        if damaged := damage(folder):
            found.append(f"Triton in {folder} is damaged: {damaged}. Run `{install.COMMAND}`, which makes it anew.")
        if not SHELL_SAFE.fullmatch(str(folder)):
            found.append(f"Triton's python backend hangs where its path {folder} needs quoting. Set SONIC_PARSL_CACHE.")
        return found

    def backends(self) -> frozenset[str] | None:
        """Return the names of the backends it has."""
        return folders_in(install.find().backends)

    def command(self, options: TritonOptions) -> Command:
        """Return the command that starts Triton."""
        for problem in self.problems():
            raise RuntimeMissingError(problem)
        refuse_what_a_shell_reads(options)
        installed = install.find()
        env = without_foreign(os.environ)
        env["LD_LIBRARY_PATH"] = ":".join(installed.libraries)
        env["PATH"] = f"{installed.python_bin}{os.pathsep}{env.get('PATH', os.defpath)}"
        env["PYTHONNOUSERSITE"] = "1"
        env["CUDA_VISIBLE_DEVICES"] = ""
        flags = triton_flags(options)
        return Command((str(installed.tritonserver), *flags, f"--backend-directory={installed.backends}"), env)


def refuse_what_a_shell_reads(options: TritonOptions) -> None:
    """Raise where Triton's python backend, which starts its stubs by an unquoted shell command, would hang."""
    for value in (str(options.repository.absolute()), *options.models, options.shm_prefix):
        if not SHELL_SAFE.fullmatch(value):
            raise ConfigError(
                f"Triton's python backend hangs on the name {value!r}: it has a character that a shell reads.",
                hint="Name models and folders with letters, digits and ./_+@%=:,~- only; a link to a folder will do.",
            )
