"""A site file's words become Parsl's providers."""

from __future__ import annotations

import math
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from parsl.launchers import SingleNodeLauncher, SrunLauncher
from parsl.providers import CondorProvider, SlurmProvider

from sonic_parsl.errors import ConfigError
from sonic_parsl.executors.batch.dialects import DIALECTS
from sonic_parsl.executors.batch.htcondor import HTCondorProvider
from sonic_parsl.executors.batch.providers import make_provider, note_beginning
from sonic_parsl.server.job import BEGAN_ENV
from sonic_parsl.site import Count, Job, Provider, ServerGroup


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_every_provider_of_a_site_file_is_made_with_its_blocks(name: Provider) -> None:
    provider = make_provider(Job(provider=name), count=Count(min=1, max=3))
    assert type(provider) is DIALECTS[name].provider
    assert (provider.init_blocks, provider.min_blocks, provider.max_blocks) == (1, 1, 3)


def test_every_word_for_a_provider_is_known() -> None:
    for name in DIALECTS:
        assert ServerGroup(provider=name).provider == name  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Input should be 'local', 'slurm'"):
        ServerGroup(provider="kubernetes")  # type: ignore[arg-type]


def test_options_go_to_parsl_under_kebab_case_or_its_own_names() -> None:
    job = Job(provider="slurm", options={"mem-per-node": 16, "cmd_timeout": 20, "qos": "short"})
    provider = make_provider(job, count=Count())
    assert isinstance(provider, SlurmProvider)
    assert (provider.mem_per_node, provider.cmd_timeout, provider.qos) == (16, 20, "short")


WORDS: dict[str, Any] = {
    "partition": "p",
    "queue": "q",
    "nodes": 2,
    "walltime": "01:02:03",
    "account": "me",
    "request": ["a", "b"],
}
SAID: dict[str, tuple[str, str, dict[str, Any]]] = {
    "slurm": ("partition", "#SBATCH a\n#SBATCH b\n", {"partition": "p", "nodes_per_block": 2, "account": "me"}),
    "gridengine": ("queue", "#$ -A me\n#$ a\n#$ b", {"queue": "q"}),
    "htcondor": ("", "allowed_job_duration = 3723\naccounting_group = me\na\nb\n", {}),
    "pbspro": ("queue", "#PBS a\n#PBS b", {"queue": "q", "account": "me"}),
    "lsf": ("queue", "#BSUB a\n#BSUB b\n", {"queue": "q", "project": "me"}),
}


@pytest.mark.parametrize("name", SAID)
def test_each_batch_system_is_told_in_its_own_words(name: str) -> None:
    place, lines, attributes = SAID[name]
    words = {word: WORDS[word] for word in (place, "walltime", "account", "request") if word}
    if "nodes" in DIALECTS[name].words:
        words["nodes"] = 2
    provider = make_provider(Job.model_validate({"provider": name, **words}), count=Count())
    assert provider.walltime == "01:02:03"
    assert lines in provider.scheduler_options
    assert {attribute: getattr(provider, attribute) for attribute in attributes} == attributes


@pytest.mark.parametrize("name", sorted(DIALECTS))
@pytest.mark.parametrize("word", WORDS)
def test_a_word_that_a_batch_system_does_not_have_is_refused(name: str, word: str) -> None:
    job = Job.model_validate({"provider": name, word: WORDS[word]})
    if word in DIALECTS[name].words:
        make_provider(job, count=Count())
        return
    with pytest.raises(ConfigError, match=f"Provider {name} has no '{word}'"):
        make_provider(job, count=Count())


def test_lines_under_options_stand_beside_a_request() -> None:
    options = {"scheduler-options": "#SBATCH --hint=nomultithread"}
    job = Job.model_validate({"provider": "slurm", "request": "--gres=fpga:1", "options": options})
    lines = make_provider(job, count=Count()).scheduler_options.splitlines()
    assert lines == ["#SBATCH --gres=fpga:1", "#SBATCH --hint=nomultithread"]


@pytest.mark.parametrize(
    ("words", "launcher"),
    [
        ({}, SingleNodeLauncher),
        ({"nodes": 1}, SingleNodeLauncher),
        ({"nodes": 2}, SrunLauncher),
        ({"launcher": "srun"}, SrunLauncher),
        ({"nodes": 2, "launcher": "single-node"}, SingleNodeLauncher),
    ],
)
def test_several_nodes_are_started_on_by_srun(words: dict[str, Any], launcher: type) -> None:
    provider = make_provider(Job.model_validate({"provider": "slurm", **words}), count=Count())
    assert type(provider.launcher) is launcher


@pytest.mark.parametrize(("environ", "heard"), [({"SLURM_CPUS_PER_TASK": "8"}, "8"), ({}, "none")])
def test_srun_gives_a_process_the_cores_that_its_job_asked_for(environ: dict[str, str], heard: str) -> None:
    provider = make_provider(Job(provider="slurm", nodes=2), count=Count())
    script = f"set -eu\n{provider.worker_init}\nsh -c 'echo ${{SRUN_CPUS_PER_TASK:-none}}'"
    said = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert said.stdout.split() == [heard]


@pytest.mark.parametrize("name", ["local", "gridengine", "htcondor"])
def test_a_job_notes_when_it_began_before_anything_else(name: str) -> None:
    provider: Any = make_provider(Job.model_validate({"provider": name, "worker-init": "sleep 2"}), count=Count())
    note_beginning(provider)
    note_beginning(provider)
    script = f"set -eu\nexport _CONDOR_JOB_AD=/nowhere\n{provider.worker_init}\necho ${BEGAN_ENV}"
    before = time.time()
    said = subprocess.run(["bash", "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    assert math.floor(before) <= int(said.stdout) < time.time() - 1
    assert provider.worker_init.count(BEGAN_ENV) == 1


@pytest.mark.parametrize("cls", [HTCondorProvider, CondorProvider])
def test_htcondor_says_when_the_job_began_also_where_its_files_came_long_before(cls: type, tmp_path: Path) -> None:
    provider = cls(worker_init="cd")
    note_beginning(provider)
    ad = tmp_path / ".job.ad"
    ad.write_text("JobCurrentStartExecutingDate = 1700000060\nJobCurrentStartDate = 1700000000\n")
    script = f"{provider.worker_init}\necho ${BEGAN_ENV}"
    env = {"_CONDOR_JOB_AD": str(ad), "HOME": "/", "PATH": os.defpath}
    said = subprocess.run(["bash", "-c", script], env=env, stdout=subprocess.PIPE, text=True, check=True)
    assert said.stdout == "1700000000\n"


def test_a_server_of_one_device_does_not_take_the_node_unless_it_should() -> None:
    assert not make_provider(Job(provider="slurm"), count=Count()).exclusive
    assert make_provider(Job(provider="slurm", options={"exclusive": True}), count=Count()).exclusive


@pytest.mark.parametrize(
    ("name", "option", "value", "word"),
    [
        ("slurm", "walltime", "02:00:00", "walltime"),
        ("slurm", "nodes-per-block", 2, "nodes"),
        ("slurm", "worker-init", "module load b", "worker-init"),
        ("local", "max-blocks", 7, "count"),
        ("gridengine", "queue", "long.q", "queue"),
        ("htcondor", "walltime", "02:00:00", "walltime"),
    ],
)
def test_what_a_site_file_has_a_word_for_is_no_option(name: Provider, option: str, value: object, word: str) -> None:
    said = f"The option '{option.replace('-', '_')}' of provider {name} is the site file's own word '{word}'. Say "
    with pytest.raises(ConfigError, match=re.escape(f"{said}`{word}: ...` beside `options`, and not in it.")):
        make_provider(Job(provider=name, options={option: value}), count=Count())


def test_what_a_word_has_said_is_not_said_again_by_an_option() -> None:
    job = Job(provider="lsf", account="mine", options={"project": "yours"})
    with pytest.raises(ConfigError, match="'project' of provider lsf is said twice, by a word and under options"):
        make_provider(job, count=Count())


def test_nodes_of_a_batch_system_that_has_no_word_for_them_are_an_option() -> None:
    assert make_provider(Job(provider="pbspro", options={"nodes-per-block": 2}), count=Count()).nodes_per_block == 2


@pytest.mark.parametrize(
    ("name", "option", "value", "wanted"),
    [
        ("slurm", "clusters", ["a"], "string"),
        ("slurm", "qos", 43200, "string"),
        ("slurm", "exclusive", "yes", "boolean"),
        ("local", "cmd-timeout", "soon", "number"),
        ("gridengine", "scheduler-options", 12, "string"),
        ("htcondor", "transfer-input-files", "a.root", "list"),
    ],
)
def test_an_option_of_another_type_than_parsls_is_a_sentence(
    name: Provider, option: str, value: object, wanted: str
) -> None:
    said = rf"The option '{option.replace('-', '_')}' of provider {name} cannot be .*: input should be a valid {wanted}"
    with pytest.raises(ConfigError, match=said):
        make_provider(Job(provider=name, options={option: value}), count=Count())


def test_a_fraction_may_stand_where_parsl_has_a_one() -> None:
    assert make_provider(Job(options={"parallelism": 0.5}), count=Count()).parallelism == 0.5


def test_an_unknown_option_is_refused_with_the_nearest_right_one() -> None:
    with pytest.raises(ConfigError, match=r"Provider slurm has no option 'q_os'\. Did you mean 'qos'\?"):
        make_provider(Job(provider="slurm", options={"q-os": "1"}), count=Count())


def test_an_option_like_no_other_is_answered_with_all_there_are() -> None:
    with pytest.raises(ConfigError, match=r"Provider local has no option 'zzz'\. It has nodes_per_block, launcher, "):
        make_provider(Job(options={"zzz": "1"}), count=Count())


@pytest.mark.parametrize("name", ["slurm", "gridengine"])
def test_a_launcher_under_options_is_refused_with_the_words_for_it(name: Provider) -> None:
    hint = r"On Slurm say `launcher: single-node` or `launcher: srun` outside of options; elsewhere leave it out\."
    with pytest.raises(ConfigError, match=rf"provider {name} cannot name the launcher 'SrunLauncher\(\)'\. {hint}"):
        make_provider(Job(provider=name, options={"launcher": "SrunLauncher()"}), count=Count())


def test_code_may_give_parsls_own_launcher() -> None:
    launcher = SrunLauncher(overrides="--mpi=none")
    assert make_provider(Job(provider="slurm", options={"launcher": launcher}), count=Count()).launcher is launcher
