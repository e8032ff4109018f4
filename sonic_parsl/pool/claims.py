"""One newest version and one numeric kind a model and run: of what groups serve, and what processes compute themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sonic_parsl.client.onnx_models import BACKEND, LOCAL_KIND
from sonic_parsl.errors import ConfigError
from sonic_parsl.poolref import Fallback, LocalModel
from sonic_parsl.repository import ModelFolder

Claims = Mapping[str, Sequence[ModelFolder]]
"""The models that each server group is to serve."""


def check_one_version(claims: Claims) -> None:
    """Check that a call which names no version means the same one whichever servers are up.

    Raises
    ------
    ConfigError
        It does not; both versions are named, with their groups.
    """
    first: dict[str, tuple[str, str]] = {}
    for group, folders in claims.items():
        for folder in (folder for folder in folders if folder.versions):
            newest, its_group = first.setdefault(folder.name, (folder.versions[-1], group))
            if newest != folder.versions[-1]:
                raise ConfigError(
                    f"The newest version of model {folder.name} is {newest} in group {its_group} and "
                    f"{folder.versions[-1]} in group {group}: which one answers would depend on the servers that are up.",
                    hint="Serve the same versions in both groups, or give the model of one of them another name.",
                )


def check_one_kind(claims: Claims, *, fallback: bool) -> None:
    """Check that each model counts in one way wherever it may be computed.

    Raises
    ------
    ConfigError
        It does not; both kinds are named, with where they are.
    """
    first: dict[str, tuple[str, str]] = {}
    for name, kind, where in _kinds(claims, fallback=fallback):
        its_kind, its_place = first.setdefault(name, (kind, where))
        if its_kind != kind:
            raise ConfigError(
                f"Model {name} counts in {its_kind} {its_place} and in {kind} {where}; their scores would mix.",
                hint="Say `mix-numerics: true` in the site file if one run may count in both ways.",
            )


def _kinds(claims: Claims, *, fallback: bool) -> Iterator[tuple[str, str, str]]:
    """Yield each model's name and kind, and where it counts so."""
    for group, folders in claims.items():
        for folder in folders:
            yield folder.name, folder.numeric_kind, f"in group {group}"
    if fallback:
        for folder in _best(claims):
            if folder.backend == BACKEND:
                yield folder.name, LOCAL_KIND, "where `fallback: cpu` computes it on workers"


def fallback_of(claims: Claims, *, mix_numerics: bool, patient: bool) -> Fallback:
    """Return what processes need to know to compute the groups' models themselves."""
    models = (LocalModel(folder.name, str(folder.path), folder.artifact_digest) for folder in _best(claims))
    return Fallback(tuple(models), mix_numerics, patient)


def _best(claims: Claims) -> tuple[ModelFolder, ...]:
    """Return of each model the folder that ONNX Runtime on a CPU does best with."""
    best: dict[str, ModelFolder] = {}
    for folder in (folder for folders in claims.values() for folder in folders):
        best[folder.name] = max(best.get(folder.name, folder), folder, key=_fitness)
    return tuple(best.values())


def _fitness(folder: ModelFolder) -> tuple[bool, bool]:
    return folder.backend == BACKEND, folder.numeric_kind == LOCAL_KIND
