"""Site files that cannot work: each place that is wrong is named before anything starts, with what would be right."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import uproot

import sonic_parsl as sonic
from sonic_parsl.errors import ConfigError, SonicError
from sonic_parsl.site import user_folder
from tests.bad_input.conftest import PACKAGED, Call, assert_says, told

OTHER_RUN_DIR = "Name another one by run-dir under driver in the site file. Without it: Correct XDG_STATE_HOME, …."
LONG = "a" * 300
SERVERS = "servers: {a: {}}\n"
LOOK = "Look at brackets, colons and indentation there and just before."
NOT_MAPPING = "this should be a mapping, with keys of its own."

UNREADABLE: list[tuple[str, bytes, str]] = [
    ("no bytes", b"", "bad.yaml is not a site file. It should be a mapping with the key 'servers'."),
    ("a list", b"- a\n- b\n", "bad.yaml is not a site file. It should be a mapping with the key 'servers'."),
    ("a word", b"local\n", "bad.yaml is not a site file. It should be a mapping with the key 'servers'."),
    (
        "a bracket that is open",
        b"servers: {a: {}",
        f"bad.yaml is not valid YAML, line 1, column 16: expected ',' or '}}', but got '<stream end>'. {LOOK}",
    ),
    (
        "indentation by a tab",
        b"servers:\n\ta: {}\n",
        f"bad.yaml is not valid YAML, line 2, column 1: found character '\\t' that cannot start any token. {LOOK}",
    ),
    (
        "two colons in a line",
        b"servers: a: b\n",
        f"bad.yaml is not valid YAML, line 1, column 11: mapping values are not allowed here. {LOOK}",
    ),
    (
        "a key that is there twice",
        b"servers:\n  a: {}\n  a: {count: 2}\n",
        f"bad.yaml is not valid YAML, line 3, column 3: the key 'a' is there twice. {LOOK}",
    ),
    (
        "a date that is none",
        b"servers: {a: {}}\nworkers: {walltime: 2026-13-45}\n",
        (
            "bad.yaml is not valid YAML, line 2, column 21: '2026-13-45' is written like a number, "
            "a date or such, and is none. Correct it, or put it in quotes."
        ),
    ),
    (
        "a truth that is none",
        b"servers: {a: {}}\nmix-numerics: !!bool maybe\n",
        "bad.yaml is not valid YAML, line 2, column 15: 'maybe' is written like …",
    ),
    (
        "too many brackets",
        b"[" * 5000 + b"]" * 5000,
        "bad.yaml is nested too deeply. Look at its brackets and its indentation.",
    ),
    ("a picture", b"\x89PNG\r\n\x1a\n\x00\xff", "bad.yaml is not valid YAML: …"),
]

PROBLEMS: list[tuple[str, str, str]] = [
    ("no servers", "workers: {}", "servers: this key is missing."),
    ("an empty list of servers", "servers: {}", "servers: this should have an entry at least."),
    ("an unknown key at the top", "server: {}\n" + SERVERS, "server: there is no such key. Did you mean 'servers'?"),
    (
        "an unknown key of a group",
        "servers: {a: {modles: x}}",
        "servers.a.modles: there is no such key. Did you mean 'models'?",
    ),
    (
        "a key of Python's spelling",
        "servers: {a: {start_timeout: 9}}",
        "servers.a.start_timeout: there is no such key. Did you mean 'start-timeout'?",
    ),
    (
        "a key like no other",
        SERVERS + "allocation: {zzz: 1}",
        "allocation.zzz: there is no such key. Known are idle, queue-ms.",
    ),
    ("a group that is a list", "servers: {a: [1]}", f"servers.a: {NOT_MAPPING}"),
    ("a word for a number", "servers: {a: {lease: soon}}", "servers.a.lease: 'soon' should be a valid number…"),
    ("too small a number", "servers: {a: {lease: 1}}", "servers.a.lease: 1 should be greater than or equal to 3."),
    ("no count", "servers: {a: {count: 0}}", "servers.a.count.min: 0 should be greater than or equal to 1.…"),
    (
        "too high a count",
        "servers: {a: {count: 100000000000000000000}}",
        "servers.a.count.min: 100000000000000000000 should be less than or equal to 1000.…",
    ),
    ("an infinite number", "servers: {a: {lease: .inf}}", "servers.a.lease: inf should be a finite number."),
    ("a number that is none", "servers: {a: {walltime: .nan}}", "servers.a.walltime: nan should be a finite number."),
    (
        "an infinite number of a section",
        SERVERS + "allocation: {idle: .inf}",
        "allocation.idle: inf should be a finite number.",
    ),
    ("an infinite count", "servers: {a: {count: {min: 1, max: .inf}}}", "servers.a.count.max: …"),
    (
        "a word for a count",
        "servers: {a: {count: many}}",
        "servers.a.count: 'many' is neither a number nor {min: ..., max: ...}.",
    ),
    (
        "a range that ends before it begins",
        "servers: {a: {count: {min: 3, max: 2}}}",
        "servers.a.count: min is 3, which is more than max, 2.",
    ),
    (
        "a server of others without a port",
        "servers: {a: {static: [{url: 'grpcs://me:word@triton.example.org', models: [btag]}]}}",
        "servers.a.static.0.url: this should be grpcs://host:port, or grpc://host:port without TLS.",
    ),
    (
        "jobs of servers that others run",
        "servers: {a: {static: [{url: 'grpcs://h:1', models: [m]}], provider: slurm, request: --gres=gpu:1, count: 2}}",
        (
            "servers.a: static servers are run by somebody else, so count, provider, request would do nothing here; "
            "leave it out."
        ),
    ),
    ("an unknown device", "servers: {a: {device: tpu}}", "servers.a.device is 'tpu'; known are cpu, fpga, gpu, ipu."),
    (
        "an unknown runtime",
        "servers: {a: {runtime: docker}}",
        "servers.a.runtime: 'docker' should be 'wheel', 'host' or 'apptainer'.",
    ),
    (
        "an unknown batch system",
        SERVERS + "workers: {provider: torque}",
        "workers.provider: 'torque' should be 'local', 'slurm', 'htcondor', 'gridengine', 'pbspro' or 'lsf'.",
    ),
    (
        "apptainer without an image",
        "servers: {a: {runtime: apptainer}}",
        "servers.a: runtime apptainer needs an image, a SIF file or docker://nvcr.io/nvidia/tritonserver:24.10-py3.",
    ),
    (
        "an image without apptainer",
        "servers: {a: {image: triton.sif}}",
        "servers.a: an image is for runtime apptainer, and would do nothing for runtime wheel; leave one out.",
    ),
    (
        "ports in the wrong order",
        SERVERS + "driver: {port-range: [9000, 8000]}",
        "driver: port-range [9000, 8000] is not [first, last] with 1024 <= first <= last <= 65535.",
    ),
    ("one port", SERVERS + "driver: {port-range: 9700}", "driver.port-range: 9700 is not [first, last]."),
    (
        "three ports",
        SERVERS + "driver: {port-range: [1, 2, 3]}",
        "driver.port-range: [1, 2, 3] is not [first, last].",
    ),
]


def run_at(call: Call, folder: Path, content: bytes) -> str:
    """Return what a run at a site says; its input and everything else is good."""
    (folder / "bad.yaml").write_bytes(content)
    with uproot.recreate(folder / "good.root") as file:
        file["Events"] = {"x": np.arange(3)}
    text = told(call("run", "btag_ttbar", "good.root", "--site", "bad.yaml"))
    assert not list((folder / "state").rglob("*.json"))
    return text


@pytest.mark.parametrize(("content", "sentence"), [pytest.param(*case[1:], id=case[0]) for case in UNREADABLE])
def test_what_is_no_site_file_is_said_with_its_place(call: Call, tmp_path: Path, content: bytes, sentence: str) -> None:
    assert_says(run_at(call, tmp_path, content), sentence)


@pytest.mark.parametrize(("content", "problem"), [pytest.param(*case[1:], id=case[0]) for case in PROBLEMS])
def test_a_wrong_key_or_value_is_a_line_with_what_would_be_right(
    call: Call, tmp_path: Path, content: str, problem: str
) -> None:
    assert_says(run_at(call, tmp_path, content.encode()), f"bad.yaml is wrong:\n  {problem}")
    with pytest.raises(ConfigError, match="is wrong"):
        sonic.load_site("bad.yaml")


def test_a_site_that_is_nowhere_is_answered_with_those_there_are(call: Call) -> None:
    sentence = "There is no site 'locale'. Give the path of a site file, or one of: …local…. Your own go to …."
    assert_says(told(call("run", "btag_ttbar", "--site", "locale")), sentence)
    assert_says(told(call("doctor", "--site", "locale")), sentence)
    assert str(user_folder()) in told(call("doctor", "--site", "locale"))


NO_STATE: list[tuple[str, ...]] = [
    ("run", "btag_ttbar", "good.root"),
    ("pool", "start"),
    ("pool", "start", "--daemon"),
    ("doctor", "--probe"),
]


@pytest.mark.parametrize("args", NO_STATE, ids=" ".join)
def test_a_state_folder_that_cannot_be_made_is_named(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    with uproot.recreate(tmp_path / "good.root") as file:
        file["Events"] = {"x": np.arange(3)}
    monkeypatch.setenv("XDG_STATE_HOME", "/etc/passwd")
    sentence = "The folder /etc/passwd/sonic-parsl/… cannot be made: Not a directory. …Correct XDG_STATE_HOME, …."
    assert_says(told(call(*args)), sentence)


# What only this machine can tell ----------------------------------------------

HERE: list[tuple[str, str, str]] = [
    (
        "a model folder that is not there",
        "servers: {a: {models: gone}}",
        (
            "The model repository {folder}/gone has a problem:\n  There is no model repository {folder}/gone; "
            "name a folder that has one folder a model."
        ),
    ),
    (
        "a model to serve that is not there",
        "servers: {a: {serve: [btagg]}}",
        (
            f"The model repository {PACKAGED} has a problem:\n  The model repository {PACKAGED} has no model 'btagg' "
            "(it has: btag, shape_demo); correct the name, or add its folder."
        ),
    ),
    (
        "an option that its batch system has not",
        "servers: {a: {provider: slurm, options: {partitoin: gpu}}}",
        "Provider slurm has no option 'partitoin'. Did you mean 'partition'?",
    ),
    (
        "a binary that is not there",
        "servers: {a: {runtime: host, binary: tritonserver-25}}",
        "There is no tritonserver-25 here. Load the site's module for it, or use the apptainer or wheel runtime.",
    ),
    (
        "a name for an address",
        SERVERS + "driver: {address: login.example.org}",
        (
            "'login.example.org' is neither an IPv4 address nor an interface of this machine, …. "
            "Give its IPv4 address, or one of its interfaces: …."
        ),
    ),
    (
        "a folder for runs below a file",
        SERVERS + "driver: {run-dir: /etc/passwd/x}",
        f"The folder /etc/passwd/x/… cannot be made: Not a directory. {OTHER_RUN_DIR}",
    ),
    (
        "a folder for runs where none can be made",
        SERVERS + "driver: {run-dir: /proc/x}",
        f"The folder /proc/x/… cannot be made: No such file or directory. {OTHER_RUN_DIR}",
    ),
    (
        "a folder for runs with too long a name",
        SERVERS + f"driver: {{run-dir: /tmp/{LONG}}}",
        f"The folder /tmp/{LONG}/… cannot be made: File name too long. {OTHER_RUN_DIR}",
    ),
    (
        "an address of another machine",
        SERVERS + "driver: {address: 192.0.2.1}",
        (
            "There is no port to listen on at 192.0.2.1: Cannot assign requested address. "
            "Widen port-range in the site file, or correct the address."
        ),
    ),
]


@pytest.mark.parametrize(("content", "sentence"), [pytest.param(*case[1:], id=case[0]) for case in HERE])
def test_what_is_not_here_stops_a_run_before_parsl_starts(
    call: Call, tmp_path: Path, content: str, sentence: str
) -> None:
    assert_says(run_at(call, tmp_path, content.encode()), sentence.replace("{folder}", str(tmp_path)))
    with pytest.raises(SonicError):
        sonic.load_site("bad.yaml")


IMAGE = "servers: {a: {runtime: apptainer, image: gone.sif}}"


def test_without_apptainer_it_is_missed(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_at(call, tmp_path, IMAGE.encode()) == (
        "There is no apptainer here. Ask the site for it, load its module, or use the wheel runtime."
    )


def test_an_image_that_is_not_there_is_named(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apptainer").write_text("#!/bin/sh\n")
    (tmp_path / "apptainer").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_at(call, tmp_path, IMAGE.encode()) == (
        "The image gone.sif is not there. Make it with `apptainer pull gone.sif "
        "docker://nvcr.io/nvidia/tritonserver:24.10-py3`, on a disk that the server's node sees."
    )


def test_ports_that_others_use_are_counted_and_so_are_those_a_run_needs(call: Call, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        text = run_at(call, tmp_path, f"{SERVERS}driver: {{port-range: [{port}, {port}]}}".encode())
    assert text == (
        f"Of the ports from {port} to {port} only 0 are free at 127.0.0.1, and a run needs 6 here: 4 for Parsl, "
        "one for the registry, 1 for servers. "
        "Widen port-range in the site file, or end what uses the ports; Parsl cannot use the last one."
    )
