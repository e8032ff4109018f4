"""The doctor asks servers of others for what the site file wants of them, and says how to mend what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonic_parsl.doctor import Finding, examine
from sonic_parsl.pool.authority import CertificateAuthority
from tests.security import test_static
from tests.security.gateway import Diary
from tests.security.test_static import FACILITY, TOKEN, Facility

facility = test_static.facility
SITE = """
servers:
  gate:
    device: gpu
    static: [{url: "grpcs://%s", models: [%s], ca: ca.pem%s}]
"""


@pytest.fixture
def gate(facility: Facility, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Diary]:
    """A gateway that wants a token, and a folder and environment with what it takes to get in."""
    (tmp_path / "ca.pem").write_text(FACILITY.certificate)
    monkeypatch.setenv("GATE_TOKEN", TOKEN)
    monkeypatch.setenv("WRONG_TOKEN", "hunter3")
    return facility.gateway(FACILITY.issue("localhost"), token=TOKEN, also_trusted=FACILITY.certificate)


def findings(folder: Path, address: str, *, models: str = "btag", token: str = ", token-env: GATE_TOKEN") -> list[str]:
    """Return what the doctor says of the gateway; nothing else of its servers is looked at."""
    (folder / "site.yaml").write_text(SITE % (address, models, token))
    found = examine(str(folder / "site.yaml"))
    of_gate = [one for one in found if one.text.startswith(f"servers gate: grpcs://{address}")]
    assert [one for one in found if one.text.startswith("servers") and one not in of_gate] == []
    return [_marked(one) for one in of_gate]


def _marked(one: Finding) -> str:
    return f"{'ok' if one.ok else 'problem'}: {one.text.partition('//')[2].partition(' ')[2]}"


def test_a_site_with_nothing_but_a_gateway_is_well(gate: tuple[str, Diary], tmp_path: Path) -> None:
    address, diary = gate
    assert findings(tmp_path, address, models="btag, shape_demo") == ["ok: is ready and has btag, shape_demo"]
    assert set(diary.tokens) == {f"Bearer {TOKEN}"}
    assert "ModelInfer" not in diary.methods


def test_each_model_that_it_does_not_have_is_a_problem(gate: tuple[str, Diary], tmp_path: Path) -> None:
    nope, nada = findings(tmp_path, gate[0], models="nope, btag, nada")
    assert nope.startswith("problem: The server does not have the model: ")
    assert "'nope'" in nope
    assert "'nada'" in nada
    assert nope.endswith("Correct its `models` in the site file, or ask who runs it.")


@pytest.mark.parametrize(
    ("token", "fix"),
    [
        ("", "If it wants a token, name the variable that holds it: `token-env`."),
        (", token-env: WRONG_TOKEN", "Is the token in the variable that `token-env` names the right one, and still "),
        (", token-env: NO_TOKEN", "Run `export NO_TOKEN=...` first, or correct `token-env` in the site file."),
    ],
    ids=["none", "wrong", "unset"],
)
def test_a_token_that_does_not_let_in_is_a_problem(
    gate: tuple[str, Diary], tmp_path: Path, token: str, fix: str
) -> None:
    (problem,) = findings(tmp_path, gate[0], token=token)
    assert problem.startswith("problem: ")
    assert fix in problem
    assert "hunter" not in problem


def test_an_authority_that_has_not_signed_is_a_problem(gate: tuple[str, Diary], tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(CertificateAuthority("another").certificate)
    (problem,) = findings(tmp_path, gate[0])
    assert problem.endswith("whom `ca` in the site file names, and does it say the host in `url`?")
    (tmp_path / "ca.pem").unlink()
    (problem,) = findings(tmp_path, gate[0])
    assert "ca.pem" in problem
    assert "cannot be read" in problem


def test_a_host_that_nobody_knows_and_a_port_where_nobody_listens_are_problems(
    gate: tuple[str, Diary], tmp_path: Path
) -> None:
    (problem,) = findings(tmp_path, "nowhere.invalid:443")
    assert problem.endswith("Correct the host in `url`: this machine finds no address for nowhere.invalid.")
    (problem,) = findings(tmp_path, "localhost:1")
    assert "Connection refused" in problem
    assert problem.endswith("Correct `url`, or let this machine and the workers' nodes through to it.")


def test_one_that_has_no_room_now_is_a_problem(gate: tuple[str, Diary], tmp_path: Path) -> None:
    address, diary = gate
    diary.refused.add("RepositoryIndex")
    (problem,) = findings(tmp_path, address)
    assert problem.startswith("problem: The server refuses its list of models, and gets no work until it tells it.")
