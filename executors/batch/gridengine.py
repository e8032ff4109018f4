"""Parsl's provider for Grid Engine, which tells why a job was refused."""

from __future__ import annotations

from typing import Any

from parsl.providers import GridEngineProvider as ParslsProvider
from parsl.providers.errors import ScaleOutFailed
from typing_extensions import override


class GridEngineProvider(ParslsProvider):  # type: ignore[misc]
    """Grid Engine, as Parsl's own, with all its options; that one only logs what qsub says where it refuses a job."""

    _answer: tuple[int, str, str] = (0, "", "")

    @override
    def execute_wait(self, cmd: str, timeout: float | None = None) -> tuple[int, str, str]:
        answer: tuple[int, str, str] = super().execute_wait(cmd, timeout)
        if cmd.startswith("qsub"):
            self._answer = answer
        return answer

    @override
    def submit(self, command: str, tasks_per_node: int, job_name: str = "parsl.sge") -> Any:
        job_id = super().submit(command, tasks_per_node, job_name)
        if job_id is None:
            code, out, err = self._answer
            said = " ".join((err or out).split())
            raise ScaleOutFailed(self.label, f"qsub takes no job, exit code {code}: {said}")
        return job_id
