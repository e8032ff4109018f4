"""The doctor names what is missing, and how to get it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonic_parsl.doctor import COMMANDS, Finding, examine
from sonic_parsl.errors import ConfigError


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is the whole PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def install(folder: Path, name: str) -> None:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


def findings(folder: Path, servers: str, workers: str = "{}") -> list[Finding]:
    path = folder / "site.yaml"
    path.write_text(f"servers: {{gpu: {servers}}}\nworkers: {workers}\n")
    return examine(str(path))


def missing(found: list[Finding]) -> list[str]:
    return [finding.text for finding in found if not finding.ok]


def good(found: list[Finding]) -> list[str]:
    return [finding.text for finding in found if finding.ok]


def test_nothing_is_missing_for_the_local_site_here() -> None:
    found = examine("local")
    assert missing(found) == []
    assert "provider local needs no command" in good(found)
    assert "servers triton: runtime wheel" in good(found)


@pytest.mark.parametrize(("provider", "command"), sorted(COMMANDS.items()))
def test_a_batch_system_without_its_commands_is_named(
    programs: Path, tmp_path: Path, provider: str, command: str
) -> None:
    found = findings(tmp_path, f"{{provider: {provider}}}")
    sentence = f"provider {provider}: there is no {command} here. Log in to a submit node."
    assert sentence in missing(found)
    install(programs, command)
    assert sentence not in missing(findings(tmp_path, f"{{provider: {provider}}}"))


def test_workers_and_servers_of_one_provider_are_said_once(programs: Path, tmp_path: Path) -> None:
    found = findings(tmp_path, "{provider: slurm}", workers="{provider: slurm}")
    assert sum("sbatch" in finding.text for finding in found) == 1


def test_a_runtime_that_is_not_here_is_missing(programs: Path, tmp_path: Path) -> None:
    (text,) = [text for text in missing(findings(tmp_path, "{runtime: host}")) if "runtime" in text]
    assert text.startswith("servers gpu: runtime host: There is no tritonserver here.")


def test_a_wheel_runtime_that_was_not_installed_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SONIC_PARSL_CACHE", str(tmp_path / "empty"))
    text = "\n".join(missing(findings(tmp_path, "{runtime: wheel}")))
    assert "sonic-parsl server install" in text
    assert "sonic-parsl data fetch" in text


def test_an_image_that_is_not_there_is_missing(programs: Path, tmp_path: Path) -> None:
    install(programs, "apptainer")
    found = findings(tmp_path, "{runtime: apptainer, image: triton.sif}")
    (text,) = [text for text in missing(found) if "runtime" in text]
    assert "The image triton.sif is not there. Make it with `apptainer pull" in text


def test_the_wheel_runtime_is_not_for_gpus(tmp_path: Path) -> None:
    assert "The wheel runtime computes on the CPU only." in "\n".join(missing(findings(tmp_path, "{device: gpu}")))


def test_models_that_are_not_there_are_missing(tmp_path: Path) -> None:
    text = "\n".join(missing(findings(tmp_path, "{models: nowhere}")))
    assert f"There is no model repository {tmp_path / 'nowhere'}" in text


def test_a_model_that_is_asked_for_and_not_there_is_missing(tmp_path: Path) -> None:
    text = "\n".join(missing(findings(tmp_path, "{serve: [btag, ctag]}")))
    assert "has no model 'ctag'" in text


def test_a_site_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ConfigError, match="There is no site 'nowhere'"):
        examine("nowhere")


def test_what_only_nodes_have_is_for_the_probe_to_see(programs: Path, tmp_path: Path) -> None:
    found = findings(tmp_path, "{provider: slurm, device: gpu, runtime: apptainer, image: triton.sif}")
    assert not [text for text in missing(found) if "apptainer" in text]
    assert "servers gpu: runtime apptainer is for the nodes to have; --probe looks" in good(found)


def test_an_address_that_is_none_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("servers: {cpu: {}}\ndriver: {address: ib7}\n")
    (text,) = [text for text in missing(examine(str(path))) if text.startswith("driver: ")]
    assert text.startswith("driver: 'ib7' is neither an IPv4 address nor an interface of this machine")
