from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from sonic_parsl.errors import ConfigError, RuntimeMissingError
from sonic_parsl.ports import free_port
from sonic_parsl.server.guard import remove_environments
from sonic_parsl.server.install import WheelInstallation
from sonic_parsl.server.runtimes import (
    SHARED_MEMORY,
    ApptainerRuntime,
    HostRuntime,
    TritonOptions,
    WheelRuntime,
    new_shm_prefix,
    remove_shared_memory,
    runtime,
)

if TYPE_CHECKING:
    from tests.server.conftest import RunningTriton

Start = Callable[..., AbstractContextManager["RunningTriton"]]

PARENT = """
import json, subprocess, sys, time
from sonic_parsl.server.leash import leashed
with open(sys.argv[1]) as file:
    command = json.load(file)
child = subprocess.Popen(leashed(command["argv"]), env=command["env"], stdout=sys.stderr, start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""
OPTIONS = TritonOptions(Path("/data/repository"), ("btag", "qcd"), "127.0.0.1", 8001, shm_prefix="sonic-1-")
FLAGS = (
    "--model-control-mode=explicit",
    "--load-model=btag",
    "--load-model=qcd",
    "--grpc-address=127.0.0.1",
    "--grpc-port=8001",
    "--allow-http=false",
    "--allow-metrics=false",
    "--exit-timeout-secs=10",
    "--backend-config=python,shm-region-prefix-name=sonic-1-",
)
ECHO = """
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        return [pb.InferenceResponse([pb.Tensor("y", r.inputs()[0].as_numpy())]) for r in requests]
"""
ECHO_CONFIG = """
backend: "python" max_batch_size: 8 instance_group [{ count: 2 kind: KIND_CPU }]
input [{ name: "x" data_type: TYPE_FP32 dims: [2] }] output [{ name: "y" data_type: TYPE_FP32 dims: [2] }]
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository/echo/1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(ECHO)
    (folder.parent / "config.pbtxt").write_text(ECHO_CONFIG)
    alien = tmp_path / "repository/alien/1"
    alien.mkdir(parents=True)
    (alien.parent / "config.pbtxt").write_text(ECHO_CONFIG.replace('"python"', '"tensorrt"'))
    return tmp_path / "repository"


def program(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


# The wheel -------------------------------------------------------------------


def test_the_wheel_serves_grpc_and_listens_nowhere_else(repository: Path, start_triton: Start, tmp_path: Path) -> None:
    with start_triton(repository, ("echo",), tmp_path / "log") as triton:
        x = np.arange(6, dtype=np.float32).reshape(3, 2)
        tensor = grpcclient.InferInput("x", [3, 2], "FP32")
        tensor.set_data_from_numpy(x)
        np.testing.assert_array_equal(triton.client.infer("echo", [tensor]).as_numpy("y"), x)
        family = [triton.process, *triton.process.children(recursive=True)]
        sockets = [s for process in family for s in process.net_connections(kind="inet")]
        listening = {
            (s.laddr.ip.removeprefix("::ffff:"), s.laddr.port) for s in sockets if s.status == psutil.CONN_LISTEN
        }
        assert listening == {("127.0.0.1", triton.options.port)}


def test_a_backend_the_wheel_lacks_is_seen_before_and_refused_by_triton(
    repository: Path, start_triton: Start, tmp_path: Path
) -> None:
    assert WheelRuntime().backends() == frozenset({"python", "onnxruntime"})
    with (
        start_triton(repository, (), tmp_path / "log") as triton,
        pytest.raises(InferenceServerException, match="tensorrt"),
    ):
        triton.client.load_model("alien")


def test_sigterm_leaves_no_process_and_no_shared_memory(repository: Path, start_triton: Start, tmp_path: Path) -> None:
    with start_triton(repository, ("echo",), tmp_path / "log") as triton:
        stubs = triton.process.children(recursive=True)
        assert len(stubs) == 2
        assert len(triton.regions()) == 2
        triton.process.terminate()
        assert triton.process.wait(timeout=30) == 0
        assert not psutil.wait_procs(stubs, timeout=5)[1]
        assert triton.regions() == []


def test_the_stubs_of_a_killed_triton_end_and_clean_up(repository: Path, start_triton: Start, tmp_path: Path) -> None:
    with start_triton(repository, ("echo",), tmp_path / "log") as triton:
        stubs = triton.process.children(recursive=True)
        triton.process.kill()
        triton.process.wait(timeout=10)
        assert not psutil.wait_procs(stubs, timeout=10)[1]
        assert triton.regions() == []


def test_what_a_job_killed_as_a_whole_leaves_in_shared_memory_can_be_removed(
    repository: Path, start_triton: Start, tmp_path: Path
) -> None:
    with start_triton(repository, ("echo",), tmp_path / "log") as triton:
        family = [*triton.process.children(recursive=True), triton.process]
        for process in family:
            process.suspend()
        for process in family:
            process.kill()
        psutil.wait_procs(family, timeout=10)
        assert len(triton.regions()) == 2
        assert remove_shared_memory(triton.options.shm_prefix) == 2
        assert triton.regions() == []


def test_triton_and_its_stubs_end_with_an_agent_that_is_killed(
    installed: WheelInstallation, repository: Path, tmp_path: Path
) -> None:
    options = TritonOptions(repository, ("echo",), "127.0.0.1", free_port("127.0.0.1"))
    command = WheelRuntime().command(options)
    (tmp_path / "command").write_text(json.dumps({"argv": command.argv, "env": command.env}))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "command")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    triton = psutil.Process(int(parent.stdout.readline()))
    with grpcclient.InferenceServerClient(f"127.0.0.1:{options.port}") as client:
        family = [triton, *wait_until_ready(client, triton).children(recursive=True)]
    assert len(family) == 3
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert not psutil.wait_procs(family, timeout=10)[1]
    remove_shared_memory(options.shm_prefix)
    remove_environments()
    assert not list(SHARED_MEMORY.glob(f"{options.shm_prefix}*"))


def wait_until_ready(client: grpcclient.InferenceServerClient, triton: psutil.Process) -> psutil.Process:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and triton.is_running():
        with suppress(InferenceServerException):
            if client.is_server_ready():
                return triton
        time.sleep(0.05)
    raise AssertionError("Triton did not become ready")


def test_the_wheels_environment_keeps_the_analysis_environment_out(
    installed: WheelInstallation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/analysis")
    monkeypatch.setenv("VIRTUAL_ENV", "/analysis")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    command = WheelRuntime().command(OPTIONS)
    assert command.argv == (
        str(installed.tritonserver),
        "--model-repository=/data/repository",
        *FLAGS,
        f"--backend-directory={installed.backends}",
    )
    assert not {"PYTHONPATH", "VIRTUAL_ENV"} & command.env.keys()
    assert command.env["OMP_NUM_THREADS"] == "3"
    assert command.env["PATH"].split(os.pathsep)[0] == str(installed.python_bin)
    assert command.env["LD_LIBRARY_PATH"].split(":") == list(installed.libraries)


@pytest.mark.parametrize(
    "options",
    [
        TritonOptions(Path("/data/my models"), (), "127.0.0.1", 1),
        TritonOptions(Path("/data"), ("a;b",), "127.0.0.1", 1),
        TritonOptions(Path("/data"), (), "127.0.0.1", 1, shm_prefix="a$b"),
    ],
)
def test_names_that_hang_the_python_backend_are_refused(installed: WheelInstallation, options: TritonOptions) -> None:
    with pytest.raises(ConfigError, match="a character that a shell reads"):
        WheelRuntime().command(options)


def test_the_wheel_says_that_it_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SONIC_PARSL_CACHE", str(tmp_path))
    (problem,) = WheelRuntime().problems()
    assert "`sonic-parsl server install`" in problem
    with pytest.raises(RuntimeMissingError, match="not installed"):
        WheelRuntime().command(OPTIONS)


def test_the_wheel_is_for_the_cpu(installed: WheelInstallation) -> None:
    assert WheelRuntime().problems() == []
    with pytest.raises(ConfigError, match=r"computes on the CPU only\. Use the host or the apptainer runtime for GPUs"):
        runtime("wheel", gpu=True)


# The machine's own -----------------------------------------------------------


def test_a_tritonserver_on_path_is_used_with_the_backends_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    binary = program(tmp_path / "triton/bin", "tritonserver")
    (tmp_path / "triton/backends/tensorrt").mkdir(parents=True)
    monkeypatch.setenv("PATH", os.pathsep.join([str(binary.parent), f"{sys.prefix}/bin", "/usr/bin"]))
    host = HostRuntime()
    assert host.problems() == []
    assert host.backends() == frozenset({"tensorrt"})
    command = host.command(OPTIONS)
    assert command.argv == (str(binary), "--model-repository=/data/repository", *FLAGS)
    assert command.env["CUDA_VISIBLE_DEVICES"] == ""
    if sys.prefix != sys.base_prefix:
        assert f"{sys.prefix}/bin" not in command.env["PATH"].split(os.pathsep)


def test_the_wheels_binary_runs_as_a_host_runtime(
    installed: WheelInstallation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", ":".join(installed.libraries))
    command = HostRuntime(binary=str(installed.tritonserver)).command(OPTIONS)
    done = subprocess.run([*command.argv, "--help"], env=command.env, capture_output=True, text=True, check=False)
    flags = {flag.partition("=")[0] for flag in command.argv[1:]}
    assert flags <= set(re.findall(r"--[a-z-]+", done.stdout + done.stderr))


def test_a_host_without_tritonserver_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert HostRuntime().backends() is None
    with pytest.raises(RuntimeMissingError, match="There is no tritonserver here"):
        HostRuntime().command(OPTIONS)


# In an image -----------------------------------------------------------------


@pytest.mark.parametrize(("gpu", "nv"), [(False, ()), (True, ("--nv",))])
@pytest.mark.parametrize("name", ["apptainer", "singularity"])
def test_an_image_is_run_by_apptainer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, gpu: bool, nv: tuple[str, ...]
) -> None:
    binary = program(tmp_path, name)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    monkeypatch.setenv("FPGA_VISIBLE_DEVICES", "1,3")
    monkeypatch.delenv("IPU_VISIBLE_DEVICES", raising=False)
    image = ApptainerRuntime("docker://nvcr.io/nvidia/tritonserver:24.10-py3", gpu=gpu)
    assert image.problems() == []
    assert image.backends() is None
    command = image.command(OPTIONS)
    assert command.argv == (
        str(binary),
        "exec",
        "--cleanenv",
        "--no-home",
        *nv,
        "--bind",
        "/data/repository:/models:ro",
        "docker://nvcr.io/nvidia/tritonserver:24.10-py3",
        "tritonserver",
        "--model-repository=/models",
        *FLAGS,
    )
    inside = {key.removeprefix(f"{name.upper()}ENV_"): value for key, value in command.env.items() if "ENV_" in key}
    devices = {key: value for key, value in inside.items() if key.endswith("_VISIBLE_DEVICES")}
    assert devices == {"CUDA_VISIBLE_DEVICES": "2" if gpu else "", "FPGA_VISIBLE_DEVICES": "1,3"}


def test_what_apptainer_lacks_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    missing, no_image = ApptainerRuntime(str(tmp_path / "triton.sif")).problems()
    assert missing.startswith("There is no apptainer here.")
    assert f"The image {tmp_path}/triton.sif is not there." in no_image
    with pytest.raises(RuntimeMissingError, match="There is no apptainer here"):
        ApptainerRuntime("docker://x").command(OPTIONS)


def test_a_path_that_apptainer_cannot_bind_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, "apptainer")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="a colon or a comma"):
        ApptainerRuntime("docker://x").command(TritonOptions(Path("/a:b"), (), "127.0.0.1", 1))


# By name ---------------------------------------------------------------------


def test_runtimes_are_found_by_name() -> None:
    assert runtime("wheel") == WheelRuntime()
    assert runtime("host", binary="/opt/tritonserver", gpu=True) == HostRuntime("/opt/tritonserver", gpu=True)
    assert runtime("apptainer", image="t.sif") == ApptainerRuntime("t.sif")
    assert [r.name for r in (runtime("wheel"), runtime("host"), runtime("apptainer", image="t"))] == [
        "wheel",
        "host",
        "apptainer",
    ]


def test_an_unknown_runtime_and_a_missing_image_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no runtime named 'docker'\. Choose one of wheel, host, apptainer"):
        runtime("docker")
    with pytest.raises(ConfigError, match="needs an image"):
        runtime("apptainer")


def test_the_shared_memory_of_others_stays() -> None:
    ours, theirs = new_shm_prefix(), new_shm_prefix()
    uuid = "0c9d5699-26aa-49b1-8038-43028cf29d40"
    regions = [SHARED_MEMORY / f"{prefix}{uuid}" for prefix in (ours, f"{ours}1-", theirs)]
    for region in regions:
        region.touch()
    try:
        assert remove_shared_memory(ours) == 1
        assert [region.exists() for region in regions] == [False, True, True]
        with pytest.raises(ValueError, match="empty prefix"):
            remove_shared_memory("")
    finally:
        for region in regions:
            region.unlink(missing_ok=True)
