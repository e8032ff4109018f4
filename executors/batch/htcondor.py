"""Parsl's provider for HTCondor, whose jobs leave the queue when they end, and have time to end when removed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from parsl.jobs.states import JobState, JobStatus
from parsl.providers import CondorProvider
from typing_extensions import override

from sonic_parsl.errors import ConfigError

STATES = {
    "1": JobState.PENDING,
    "2": JobState.RUNNING,
    "3": JobState.CANCELLED,
    "4": JobState.COMPLETED,
    "6": JobState.RUNNING,  # sends its output
    "7": JobState.RUNNING,  # suspended
}
"""``JobStatus`` of HTCondor; 5, held, needs more than a word."""
HELD = "5"

DURATION = re.compile(
    r"^[ \t]*(?:allowed_job_duration|(?:\+|MY\.)MaxRuntime)[ \t]*=[ \t]*(.*?)[ \t]*$", re.IGNORECASE | re.MULTILINE
)
"""Lines of a submit file that end jobs: HTCondor's own, and that of sites whose policy goes by it."""

SETTINGS = """
leave_in_queue = False
transfer_output_files = ""
job_max_vacate_time = 60
encrypt_input_files = *
"""
"""No job stays in the queue after its end, as Parsl's do, for who would remove it after a driver that was killed?
No file of a job's folder, keys least of all, is brought back to the folder where the driver happens to run, and
what a job takes along is encrypted on its way."""

PASS_ON_TERM = "trap 'trap : TERM; kill 0; wait' TERM\n"
"""HTCondor sends SIGTERM to a job's first process only, and SIGKILL to the others once that has ended."""


class HTCondorProvider(CondorProvider):  # type: ignore[misc]
    """HTCondor, as Parsl's ``CondorProvider`` has it, with all its options.

    A job that is no longer in the queue has ended; a held job has failed, for HTCondor's reason, and is removed;
    a job that is cancelled gets SIGTERM, and a minute.
    """

    worker_init: str
    scheduler_options: str

    def duration_s(self) -> float | None:
        """Return after how many seconds HTCondor ends these jobs, as their submit file says; None where it does not.

        Raises
        ------
        ConfigError
            It says several numbers, or something else.
        """
        said = sorted(set(DURATION.findall(self.scheduler_options)))
        if not said:
            return None
        if len(said) > 1 or not said[0].isdigit():
            raise ConfigError(
                f"How long HTCondor's jobs are is given as {' and '.join(map(repr, said))}, which is not one number of seconds.",
                hint="Say it once: `walltime: HH:MM:SS`, or allowed_job_duration or +MaxRuntime in `request`.",
            )
        return float(said[0])

    @override
    def submit(self, command: str, tasks_per_node: int, job_name: str = "parsl.condor") -> Any:
        if not self.worker_init.startswith(PASS_ON_TERM):
            self.worker_init = PASS_ON_TERM + self.worker_init
        # The launcher's shell between script and command gets the signal too, and waits.
        return super().submit(f"trap : TERM; {command}", tasks_per_node, job_name)

    @override
    def cancel(self, job_ids: Sequence[str]) -> list[bool]:
        done = []
        for ids in self._in_pieces(job_ids):
            code, _, _ = self.execute_wait(f"condor_rm {' '.join(ids)}")
            if code == 0:
                self._set(ids, JobState.CANCELLED)
            else:
                self._status()  # one of them may have left the queue already
            done += [self.resources[job_id]["status"].terminal for job_id in ids]
        return done

    @override
    def _status(self) -> None:
        living = [job_id for job_id, job in self.resources.items() if not job["status"].terminal]
        for ids in self._in_pieces(living):
            code, listed, _ = self.execute_wait(f"condor_q {' '.join(ids)} -af:jr JobStatus HoldReason")
            if code == 0:  # else the queue did not answer, and nothing is known
                self._hear(ids, listed)

    def _hear(self, ids: Sequence[str], listed: str) -> None:
        lines = {line.split(maxsplit=1)[0]: line.split(maxsplit=2)[1:] for line in listed.splitlines() if line.strip()}
        self._set([job_id for job_id in ids if job_id not in lines], JobState.COMPLETED)
        for job_id in set(ids) & set(lines):
            state, *reason = lines[job_id]
            if state == HELD:
                self.execute_wait(f"condor_rm {job_id}")
                self._set([job_id], JobState.FAILED, f"HTCondor holds the job: {''.join(reason)}")
            else:
                self._set([job_id], STATES.get(state, JobState.UNKNOWN))

    def _set(self, ids: Sequence[str], state: JobState, message: str | None = None) -> None:
        for job_id in ids:
            self.resources[job_id]["status"] = JobStatus(state, message)

    def _in_pieces(self, ids: Sequence[str]) -> Iterator[Sequence[str]]:
        for start in range(0, len(ids), self.cmd_chunk_size):
            yield ids[start : start + self.cmd_chunk_size]

    @override
    def _write_submit_script(self, template: str, script_filename: str, job_name: str, configs: Any) -> None:
        options = f"{SETTINGS}{configs['scheduler_options']}"  # the site file's come last, and win
        super()._write_submit_script(template, script_filename, job_name, {**configs, "scheduler_options": options})
