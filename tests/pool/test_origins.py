"""The first server says what a model was made from; all others agree or stay out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic_parsl.errors import ModelMismatchError
from sonic_parsl.pool.origins import Origin, remember
from sonic_parsl.protocol import ServedModel, ServerInfo

digests = st.sampled_from(["", "aa", "bb"])
models = st.builds(
    lambda name, version, source, artifact: ServedModel(
        name, version, 8, (), (), source_digest=source, artifact_digest=artifact
    ),
    st.sampled_from(["m", "n"]),
    st.sampled_from(["1", "2"]),
    digests,
    digests,
)


def server(server_id: str, *served: ServedModel, group: str = "cpu") -> ServerInfo:
    return ServerInfo(server_id, group, "cpu", "hardware", "n", "a:1", "0", "", served)


def model(source: str = "aa", artifact: str = "cc", version: str = "1") -> ServedModel:
    return ServedModel("m", version, 8, (), (), source_digest=source, artifact_digest=artifact)


def test_servers_that_agree_are_let_in_and_the_first_is_remembered() -> None:
    origins = remember(remember({}, server("a", model())), server("b", model()))
    assert origins == {("m", "1", ""): Origin("a", "aa"), ("m", "1", "cpu"): Origin("a", "cc")}


def test_another_source_is_refused_whatever_the_group_with_both_servers_and_the_way_out() -> None:
    origins = remember({}, server("a", model()))
    with pytest.raises(ModelMismatchError, match=r"Server b .* source digest bb, server a .* with aa.*another name"):
        remember(origins, server("b", model("bb"), group="gpu"))


def test_other_artifacts_are_refused_within_a_group_only() -> None:
    origins = remember({}, server("a", model()))
    assert remember(origins, server("b", model(artifact="dd"), group="gpu"))
    with pytest.raises(ModelMismatchError, match="artifact digest dd"):
        remember(origins, server("b", model(artifact="dd")))


def test_another_version_may_be_another_model() -> None:
    assert remember(remember({}, server("a", model())), server("b", model("bb", "dd", version="2")))


def test_who_cannot_say_what_a_model_was_made_from_is_let_in_and_binds_nobody() -> None:
    origins = remember({}, server("static", model("", "")))
    assert origins == {}
    assert remember(remember(origins, server("a", model())), server("static", model("", "")))


@given(servers=st.lists(st.tuples(st.sampled_from(["cpu", "gpu"]), st.lists(models, max_size=3)), max_size=6))
def test_whatever_comes_no_two_that_were_let_in_disagree(servers: list[tuple[str, list[ServedModel]]]) -> None:
    origins: dict[tuple[str, str, str], Origin] = {}
    sources: dict[tuple[str, str], set[str]] = {}
    artifacts: dict[tuple[str, str, str], set[str]] = {}
    for number, (group, served) in enumerate(servers):
        before = dict(origins)
        try:
            origins = remember(origins, server(str(number), *served, group=group))
        except ModelMismatchError:
            assert origins == before
            continue
        for one in served:
            sources.setdefault((one.name, one.version), set()).add(one.source_digest)
            artifacts.setdefault((one.name, one.version, group), set()).add(one.artifact_digest)
    for found in (*sources.values(), *artifacts.values()):
        assert len(found - {""}) <= 1
