"""Triton's model repository: read it, check it before a server starts, tell models apart by digest.

The format is Triton's own, one folder a model::

    <repository>/<model>/config.pbtxt
    <repository>/<model>/<version>/model.onnx

Two parameters of ``config.pbtxt`` are read besides what Triton reads, and one file::

    parameters { key: "tags.2" value { string_value: "run3,prod" } }      labels of version 2
    parameters { key: "numeric_kind" value { string_value: "fp16" } }     how the model counts
    <repository>/<model>/source.sha256                                    what an artifact was built from
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from sonic_parsl.errors import RepositoryError
from sonic_parsl.protocol import ServedModel
from sonic_parsl.repository.checks import problems
from sonic_parsl.repository.copying import copy_model
from sonic_parsl.repository.digests import reading
from sonic_parsl.repository.folder import ModelFolder, Parsed, subfolders

__all__ = ["ModelFolder", "check", "copy", "read", "require", "served"]


def read(root: Path, models: Sequence[str] | None = None) -> tuple[ModelFolder, ...]:
    """Read models without judging them: :func:`check` does that.

    Parameters
    ----------
    root
        The repository.
    models
        Which models, in this order; None for all, by name.

    Raises
    ------
    RepositoryError
        There is no repository, a model asked for is absent, or a model's
        tensors cannot be told; the message names all of them.
    """
    parsed, _, wrong = _parse(root, models)
    _refuse(root, wrong)
    return tuple(model.folder() for model in parsed)


def copy(root: Path, models: Sequence[str], to: Path) -> None:
    """Copy models, and those that ensembles among them are made of.

    Parameters
    ----------
    root
        The repository.
    models
        Which models.
    to
        Where the copy goes: a repository of its own.

    Raises
    ------
    RepositoryError
        A model is absent or cannot be read.
    OSError
        The copy cannot be written.
    """
    asked, done = [*models], set[str]()
    while asked:
        parsed, _, wrong = _parse(root, asked)
        _refuse(root, wrong)
        for model in parsed:
            copy_model(model, to / model.name)
        done.update(asked)
        steps = {step.model_name for model in parsed for step in model.config.ensemble_scheduling.step}
        asked = sorted(steps - done)


def check(root: Path, models: Sequence[str] | None = None, *, backends: Collection[str] | None = None) -> list[str]:
    """Return what is wrong with a repository, each problem one sentence that says what to do.

    Parameters
    ----------
    root
        The repository.
    models
        Which models to look at; None for all.
    backends
        Backends of the runtime that is to serve them; None where that is not known.
    """
    parsed, siblings, wrong = _parse(root, models)
    return [*wrong, *_problems(parsed, siblings, backends)]


def require(
    root: Path, models: Sequence[str] | None = None, *, backends: Collection[str] | None = None
) -> tuple[ModelFolder, ...]:
    """Return what :func:`read` returns, of a repository that :func:`check` finds nothing wrong with.

    Raises
    ------
    RepositoryError
        Something is wrong; the message has all of it, a line each.
    """
    parsed, siblings, wrong = _parse(root, models)
    _refuse(root, [*wrong, *_problems(parsed, siblings, backends)])
    return tuple(model.folder() for model in parsed)


def served(folder: ModelFolder) -> tuple[ServedModel, ...]:
    """Return each version of a model as a server offers it, oldest first.

    Raises
    ------
    RepositoryError
        A file cannot be read.
    """
    artifact = folder.artifact_digest
    return tuple(
        ServedModel(
            name=folder.name,
            version=version,
            max_batch_size=folder.max_batch_size,
            inputs=folder.inputs,
            outputs=folder.outputs,
            tags=folder.tags.get(version, ()),
            source_digest=folder.source_digest(version),
            artifact_digest=artifact,
            numeric_kind=folder.numeric_kind,
        )
        for version in folder.versions
    )


def _parse(root: Path, models: Sequence[str] | None) -> tuple[list[Parsed], list[str], list[str]]:
    """Return the models that can be parsed, the names of all there are, and what is wrong so far."""
    if not root.is_dir():
        return [], [], [f"There is no model repository {root}; name a folder that has one folder a model."]
    try:
        with reading(root):
            names = list(subfolders(root))
    except RepositoryError as error:
        return [], [], [error.message]
    if not names:
        return [], [], [f"The model repository {root} has no models; put a folder with a config.pbtxt into it."]
    asked = names if models is None else list(dict.fromkeys(models))
    known = ", ".join(names)
    wrong = [
        f"The model repository {root} has no model '{name}' (it has: {known}); correct the name, or add its folder."
        for name in asked
        if name not in names
    ]
    parsed: list[Parsed] = []
    for name in asked:
        if name in names:
            try:
                parsed.append(Parsed.read(root / name))
            except RepositoryError as error:
                wrong.append(error.message)
    return parsed, names, wrong


def _problems(parsed: list[Parsed], siblings: list[str], backends: Collection[str] | None) -> Iterator[str]:
    for model in parsed:
        yield from problems(model, siblings, backends)


def _refuse(root: Path, wrong: list[str]) -> None:
    if wrong:
        count = "a problem" if len(wrong) == 1 else f"{len(wrong)} problems"
        raise RepositoryError(f"The model repository {root} has {count}:\n  " + "\n  ".join(wrong))
