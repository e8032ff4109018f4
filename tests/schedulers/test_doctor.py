"""What the doctor finds on real schedulers: jobs that they would refuse, and what a probe's jobs show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sonic_parsl.doctor import examine
from tests.leaks import our_processes, wait_until
from tests.schedulers.daemons import command
from tests.schedulers.gridengine import GridEngine
from tests.schedulers.runs import GONE_S, GRIDENGINE_SERVERS, GRIDENGINE_WORKERS, write_site
from tests.schedulers.slurm import Slurm

WORKERS = {"provider": "slurm", "partition": "cpu", "request": ["--cpus-per-task=2"]}


def group(**changes: Any) -> dict[str, Any]:
    return {"provider": "slurm", "partition": "ipu", "request": "--gres=ipu:1", "device": "mk2", **changes}


def problems(path: Path, *, with_probe: bool = False) -> list[str]:
    """Return what is wrong but for the driver's address, which on one machine is the loopback one."""
    found = examine(str(path), with_probe=with_probe)
    return [one.text for one in found if not one.ok and not one.text.startswith("driver: nodes of")]


@pytest.fixture
def short(slurm: Slurm) -> Iterator[None]:
    """The `ipu` partition takes jobs of ten minutes at most."""
    command("scontrol", "update", "PartitionName=ipu", "MaxTime=10")
    yield
    command("scontrol", "update", "PartitionName=ipu", "MaxTime=INFINITE")


def test_jobs_that_slurm_would_take_are_well(slurm: Slurm, tmp_path: Path) -> None:
    path = write_site(tmp_path, WORKERS, {"ipu": group()})
    assert problems(path) == []
    texts = [one.text for one in examine(str(path))]
    assert {"workers: slurm would take its job", "servers ipu: slurm would take its job"} <= set(texts)
    assert slurm.jobs() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"partition": "nosuch"}, "invalid partition specified: nosuch"),
        ({"request": "--gres=ipu:99"}, "Requested node configuration is not available"),
        ({"request": "--gres=nosuch:1"}, "Invalid generic resource (gres) specification"),
        ({"request": "--nosuch"}, "unrecognized option"),
        ({"nodes": 9}, "Requested node configuration is not available"),
    ],
)
def test_a_job_that_slurm_would_refuse_is_a_sentence(
    changes: dict[str, Any], said: str, slurm: Slurm, tmp_path: Path
) -> None:
    (problem,) = problems(write_site(tmp_path, WORKERS, {"ipu": group(**changes)}))
    assert problem.startswith("servers ipu: slurm would refuse its job: ")
    assert said in problem
    assert problem.endswith("Mend partition or queue, nodes, walltime, account or request in the site file.")
    assert slurm.jobs() == []


def test_a_walltime_that_the_partition_does_not_allow_is_a_sentence(short: None, slurm: Slurm, tmp_path: Path) -> None:
    found = problems(write_site(tmp_path, WORKERS, {"ipu": group(walltime="00:20:00")}))
    assert any("walltime 00:20:00 is longer than partition ipu allows, 10:00. Shorten it." in text for text in found)


def test_a_controller_that_does_not_answer_is_a_sentence(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "none.conf"))
    (problem,) = problems(write_site(tmp_path, WORKERS, {"ipu": group()}))
    assert problem.startswith("provider slurm: `sinfo --noheader` fails: ")


def test_a_probe_shows_that_slurms_nodes_have_and_reach_what_a_run_needs(slurm: Slurm, tmp_path: Path) -> None:
    gpus = group(partition="gpu", request="--gres=gpu:1", nodes=2)
    path = write_site(tmp_path, WORKERS, {"ipu": group(), "gpu": gpus})
    texts = [one.text for one in examine(str(path), with_probe=True)]
    assert [text for text in texts if "cannot" in text and not text.startswith("driver: ")] == []
    for label, nodes in (("gpu", 2), ("ipu", 1)):
        reached = [text for text in texts if text.startswith(f"servers {label}: ") and "is reached from the" in text]
        assert len({text.split()[2] for text in reached}) == nodes, texts  # addresses: here all nodes have one name
    wait_until(lambda: not slurm.jobs(), GONE_S, what=slurm.jobs)
    wait_until(lambda: not our_processes("probe_job"), 20.0)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_probe_names_a_node_without_the_environment(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a Python started in a checkout finds it there
    bare = {**WORKERS, "worker-init": "export PATH=/usr/bin:/bin"}
    (problem,) = problems(write_site(tmp_path, bare, {"ipu": group()}), with_probe=True)
    assert problem.startswith("workers: its job ended and has not called: ")
    assert "python3" in problem
    assert problem.endswith("Let worker-init prepare an environment with sonic-parsl on the node.")
    wait_until(lambda: not slurm.jobs(), GONE_S, what=slurm.jobs)


@pytest.mark.parametrize("name", ["slurm", "gridengine"])
def test_the_packaged_site_is_one_that_a_scheduler_with_its_names_takes(
    name: str, slurm: Slurm, cell: GridEngine
) -> None:
    found = examine(name)
    texts = {one.text for one in found}
    assert {f"workers: {name} would take its job", f"servers gpu: {name} would take its job"} <= texts
    assert [one.text for one in found if not one.ok and not one.text.startswith("driver: nodes of")] == []


def test_grid_engine_is_asked_and_probed_too(cell: GridEngine, tmp_path: Path) -> None:
    good = write_site(tmp_path, GRIDENGINE_WORKERS, {"fpga": GRIDENGINE_SERVERS})
    assert problems(good, with_probe=True) == []
    bad = write_site(tmp_path, GRIDENGINE_WORKERS, {"fpga": {**GRIDENGINE_SERVERS, "request": ["-V", "-l fpga=99"]}})
    (problem,) = problems(bad)
    assert problem.startswith("servers fpga: gridengine would refuse its job: ")
    wait_until(lambda: not cell.jobs(), GONE_S, what=cell.jobs)
