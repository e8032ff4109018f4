"""Site files are found in three places, and what is wrong in one is said in a sentence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sonic_parsl import endpoint
from sonic_parsl.credentials import Peer
from sonic_parsl.devices import BUILT_IN, Device
from sonic_parsl.errors import ConfigError
from sonic_parsl.pool.authority import CertificateAuthority
from sonic_parsl.site import PACKAGED_MODELS, Count, SiteFile, find, packaged_folder, read, user_folder

GOOD: dict[str, Any] = {"servers": {"triton": {}}}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return tmp_path / "my-site.yaml"


def problems(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert caught.value.__suppress_context__
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


# Reading --------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(packaged_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_packaged_site_file_reads(path: Path) -> None:
    settings = read(path)
    assert settings.servers
    assert all(settings.device(group.device).kind == group.device for group in settings.servers.values())


@pytest.mark.parametrize("name", ["slurm", "gridengine", "htcondor"])
def test_five_lines_of_a_clusters_site_file_are_marked_as_those_to_edit(name: str) -> None:
    assert find(name).read_text().count("# EDIT") == 5  # README.md says so


def test_the_local_site_has_two_servers_on_this_machine() -> None:
    settings = read(find("local"))
    (group,) = settings.servers.values()
    assert group.count == Count(min=2, max=2)
    assert (group.provider, group.address, group.models) == ("local", None, PACKAGED_MODELS)


def test_everything_but_a_server_group_has_a_default(written: Path) -> None:
    written.write_text(yaml.safe_dump(GOOD))
    assert read(written) == SiteFile.model_validate(GOOD)
    assert read(written).driver.address == "127.0.0.1"


def test_a_model_folder_is_beside_the_site_file(written: Path) -> None:
    groups = {"a": {"models": "my/models"}, "b": {"models": "/abs"}, "c": {"models": "~/m"}, "d": {}}
    written.write_text(yaml.safe_dump({"servers": groups}))
    folders = [group.models for group in read(written).servers.values()]
    assert folders == [str(written.parent / "my/models"), "/abs", str(Path.home() / "m"), PACKAGED_MODELS]


@given(low=st.integers(1, 100), more=st.integers(0, 100))
def test_a_count_is_a_number_or_a_range(low: int, more: int) -> None:
    one = SiteFile.model_validate({"servers": {"a": {"count": low}}})
    assert one.servers["a"].count == Count(min=low, max=low)
    least = SiteFile.model_validate({"servers": {"a": {"count": {"min": low}}}})
    assert least.servers["a"].count == one.servers["a"].count
    some = SiteFile.model_validate({"servers": {"a": {"count": {"min": low, "max": low + more}}}})
    assert some.servers["a"].count == Count(min=low, max=low + more)


def test_a_sites_own_kinds_of_device_stand_beside_the_built_in_ones() -> None:
    fpga = {"alveo": {"family": "fpga", "fidelity": "emulated"}}
    settings = SiteFile.model_validate({"servers": {"a": {"device": "alveo"}}, "devices": fpga})
    assert settings.device("alveo") == Device(kind="alveo", family="fpga", fidelity="emulated")
    assert settings.device("gpu") == BUILT_IN["gpu"]


# What is wrong --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("server: {a: {}}", "server: there is no such key. Did you mean 'servers'?"),
        ("workers: {workers_per_node: 2}", "workers.workers_per_node: there is no such key. Did you mean 'workers-per"),
        ("workers: {count: {mim: 1}}", "workers.count.mim: there is no such key. Did you mean 'min'?"),
        ("servers: {a: {start_timeout: 9}}", "servers.a.start_timeout: there is no such key. Did you mean 'start-time"),
        ("servers: {a: {count: {maxx: 1}}}", "servers.a.count.maxx: there is no such key. Did you mean 'max'?"),
        ("devices: {x: {family: cpu, fidelty: a}}", "devices.x.fidelty: there is no such key. Did you mean 'fidelity'"),
        ("driver: {portrange: [1, 2]}", "driver.portrange: there is no such key. Did you mean 'port-range'?"),
        ("allocation: {idel: 1}", "allocation.idel: there is no such key. Did you mean 'idle'?"),
        ("allocation: {zzz: 1}", "allocation.zzz: there is no such key. Known are idle, queue-ms."),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_right_one(written: Path, text: str, sentence: str) -> None:
    rest = "" if text.startswith("servers:") else "\nservers: {a: {}}"
    assert sentence in problems(written, text + rest)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("workers: {}", "servers: this key is missing."),
        ("servers: {}", "servers: this should have an entry at least."),
        ("servers: [a]", "servers: this should be a mapping, with keys of its own."),
        ("servers: {a: }", "servers.a: this should be a mapping, with keys of its own."),
        ("servers: {a: {count: many}}", "servers.a.count: 'many' is neither a number nor {min: ..., max: ...}."),
        ("servers: {a: {count: {min: 3, max: 2}}}", "servers.a.count: min is 3, which is more than max, 2."),
        ("servers: {a: {count: 0}}", "servers.a.count.min: 0 should be greater than or equal to 1."),
        ("servers: {a: {device: tpu}}", "servers.a.device is 'tpu'; known are cpu, fpga, gpu, ipu."),
        ("servers: {a: {runtime: docker}}", "servers.a.runtime: 'docker' should be 'wheel', 'host' or 'apptainer'."),
        ("servers: {a: {runtime: apptainer}}", "servers.a: runtime apptainer needs an image, a SIF file or docker://"),
        ("servers: {a: {provider: k8s}}", "servers.a.provider: 'k8s' should be 'local', 'slurm'"),
        ("servers: {a: {lease: 1}}", "servers.a.lease: 1 should be greater than or equal to 3."),
        ("servers: {a: {start-timeout: soon}}", "servers.a.start-timeout: 'soon' should be a valid number"),
        ("{servers: {a: {}}, driver: {port-range: [9000, 8000]}}", "driver: port-range [9000, 8000] is not [first, l"),
        ("{servers: {a: {}}, driver: {port-range: [80, 8000]}}", "driver: port-range [80, 8000] is not [first, last]"),
        ("{servers: {a: {}}, workers: {workers-per-node: 0}}", "workers.workers-per-node: 0 should be greater"),
    ],
)
def test_a_wrong_value_is_a_sentence_with_its_place(written: Path, text: str, sentence: str) -> None:
    assert sentence in problems(written, text)


def test_all_that_is_wrong_is_said_at_once(written: Path) -> None:
    text = problems(written, "{servers: {a: {lease: 1, modles: x}}, workers: {provider: pbs}}")
    assert [line.split(":")[0].strip() for line in text.splitlines()[1:]] == [
        "workers.provider",
        "servers.a.lease",
        "servers.a.modles",
    ]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"servers: {a: {}", "is not valid YAML, line 1, column 16: expected"),
        (b"\xff\xfe\xfa", "is not valid YAML: "),
        (b"- a\n- b\n", "is not a site file. It should be a mapping with the key 'servers'."),
        (b"", "is not a site file."),
    ],
)
def test_a_file_that_is_no_site_file_is_refused(written: Path, data: bytes, sentence: str) -> None:
    written.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        read(written)
    assert f"{written} {sentence}" in str(caught.value)


def test_a_site_file_that_is_gone_is_no_oserror(written: Path) -> None:
    with pytest.raises(ConfigError, match=r"my-site\.yaml cannot be read: No such file or directory\."):
        read(written)


# Finding --------------------------------------------------------------------


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the user's folder of site files, and go to an empty folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    user_folder().mkdir(parents=True)
    assert user_folder().is_relative_to(tmp_path)
    return user_folder()


def test_a_path_comes_first_then_the_users_files_then_the_packaged_ones(users: Path) -> None:
    assert find("local") == packaged_folder() / "local.yaml"
    (users / "local.yaml").touch()
    assert find("local") == users / "local.yaml"
    Path("local").touch()
    assert find("local") == Path("local")


def test_a_folder_is_not_taken_for_a_site_file(users: Path) -> None:
    Path("local").mkdir()
    assert find("local") == packaged_folder() / "local.yaml"


def test_a_site_that_is_nowhere_is_answered_with_those_there_are(users: Path) -> None:
    (users / "mine.yaml").touch()
    with pytest.raises(
        ConfigError, match=r"There is no site 'locale'\. Give the path .* one of: .*local, mine"
    ) as caught:
        find("locale")
    assert str(users) in caught.value.hint


# Servers of others, and security --------------------------------------------


def gateway(**keys: Any) -> dict[str, Any]:
    return {
        "servers": {"gate": {"device": "gpu", "static": [{"url": "grpcs://gate.example:443", "models": ["m"]} | keys]}}
    }


def test_a_server_of_others_is_known_by_its_group_and_brings_its_secrets(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = CertificateAuthority("gate").certificate
    (written.parent / "ca.pem").write_text(authority)
    monkeypatch.setenv("GATE_TOKEN", "hunter-token")
    written.write_text(yaml.safe_dump(gateway(ca="ca.pem", **{"token-env": "GATE_TOKEN"})))
    (server,) = read(written).static_servers()
    assert (server.id, server.group, server.kind, server.models) == ("gate-static-0", "gate", "gpu", ("m",))
    assert server.peer == Peer("gate.example:443", secure=True, authority=authority, token="hunter-token")
    assert "hunter" not in repr(server) + repr(read(written))
    assert "GATE_TOKEN" not in os.environ  # which jobs would inherit
    assert read(written).static_servers() == [server]


def test_a_file_that_is_only_read_needs_no_token(written: Path) -> None:
    written.write_text(yaml.safe_dump(gateway(**{"token-env": "NOT_SET"})))
    assert read(written).servers["gate"].static[0].token_env == "NOT_SET"


@pytest.mark.parametrize("value", [None, ""])
def test_a_token_that_is_not_set_is_asked_for_by_its_variable(
    written: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.setattr(endpoint, "_taken", {})
    monkeypatch.delenv("GATE_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("GATE_TOKEN", value)
    written.write_text(yaml.safe_dump(gateway(**{"token-env": "GATE_TOKEN"})))
    with pytest.raises(ConfigError, match=r"token for grpcs://gate.*variable GATE_TOKEN, .*export GATE_TOKEN=\.\.\."):
        read(written).static_servers()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe", "holds no certificate"),
        (b"-----BEGIN PRIVATE KEY-----\nhunter\n-----END PRIVATE KEY-----\n", "holds no certificate"),
        (b"", "holds no certificate"),
    ],
)
def test_an_authority_that_is_none_is_refused_by_the_name_of_its_file(
    written: Path, content: bytes | None, sentence: str
) -> None:
    if content is not None:
        (written.parent / "ca.pem").write_bytes(content)
    written.write_text(yaml.safe_dump(gateway(ca="ca.pem")))
    with pytest.raises(ConfigError, match=rf"ca\.pem, .* of grpcs://gate\.example:443, {sentence}") as caught:
        read(written).static_servers()
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"url": "https://gate.example"}, "servers.gate.static.0.url: this should be grpcs://host:port"),
        ({"url": "grpcs://gate.example"}, "servers.gate.static.0.url: this should be grpcs://host:port"),
        ({"url": "grpcs://user:word@gate.example:1"}, "servers.gate.static.0.url: this should be grpcs://host:port"),
        (
            {"url": "grpc://gate.example:1"},
            "is not encrypted and on another machine; use grpcs://, or say insecure: tr",
        ),
        ({"models": []}, "servers.gate.static.0.models: this should have an entry at least"),
        ({"token_env": "X"}, "servers.gate.static.0.token_env: there is no such key. Did you mean 'token-env'?"),
        ({"token": "X"}, "servers.gate.static.0.token: there is no such key."),
    ],
)
def test_a_wrong_server_of_others_is_a_sentence_with_its_place(
    written: Path, keys: dict[str, Any], sentence: str
) -> None:
    assert sentence in problems(written, yaml.safe_dump(gateway(**keys)))


@pytest.mark.parametrize("keys", [{"url": "grpc://127.0.0.1:1"}, {"url": "grpc://far.example:1", "insecure": True}])
def test_a_plain_connection_is_for_this_machine_or_must_be_meant(written: Path, keys: dict[str, Any]) -> None:
    written.write_text(yaml.safe_dump(gateway(**keys)))
    assert not read(written).static_servers()[0].peer.secure


def test_what_servers_of_others_have_may_be_here_too_and_how_long_they_are_waited_for(written: Path) -> None:
    site = gateway()
    site["servers"]["gate"] |= {"models": "here", "start-timeout": 9}
    written.write_text(yaml.safe_dump(site))
    assert read(written).servers["gate"].start_timeout == 9


@pytest.mark.parametrize("ports", ["9700-9799", " 9700 - 9799 ", [9700, 9799], ["9700", "9799"]])
def test_a_range_of_ports_is_a_pair_or_as_firewalls_write_it(written: Path, ports: object) -> None:
    written.write_text(yaml.safe_dump({**GOOD, "driver": {"port-range": ports}}))
    assert read(written).driver.port_range == (9700, 9799)


def test_security_is_on_unless_it_is_turned_off(written: Path) -> None:
    written.write_text(yaml.safe_dump(GOOD))
    assert (read(written).security, read(written).shared_filesystem) == ("tls", True)
    assert "security: 'weak' should be 'tls' or 'none'" in problems(written, "{servers: {a: {}}, security: weak}")


def test_a_run_fails_without_servers_and_mixes_no_numbers_unless_that_is_meant(written: Path) -> None:
    written.write_text(yaml.safe_dump(GOOD))
    assert (read(written).fallback, read(written).mix_numerics) == (None, False)
    written.write_text(yaml.safe_dump({**GOOD, "fallback": "cpu", "mix-numerics": True}))
    assert (read(written).fallback, read(written).mix_numerics) == ("cpu", True)
    assert "fallback: 'gpu' should be 'cpu'" in problems(written, "{servers: {a: {}}, fallback: gpu}")
    assert "Did you mean 'mix-numerics'?" in problems(written, "{servers: {a: {}}, mix-numeric: true}")
