"""A pool's models in this process: read from their repository, computed by ONNX Runtime."""

from __future__ import annotations

import socket
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from sonic_parsl.client.table import described
from sonic_parsl.errors import InferenceError, ModelMismatchError, ModelNotFoundError, RejectedError, RepositoryError
from sonic_parsl.kserve import Array
from sonic_parsl.poolref import Fallback, LocalModel
from sonic_parsl.protocol import ServedModel
from sonic_parsl.repository import served
from sonic_parsl.repository.folder import Parsed, Section
from sonic_parsl.repository.onnx_session import onnx_errors, onnx_reason, open_onnx

LOCAL_KIND = "fp32"
"""How ONNX Runtime counts on a CPU, whatever a model's servers do."""
BACKEND = "onnxruntime"
UNKNOWN_HERE = ("batch_input", "batch_output", "sequence_batching")
"""Sections of a configuration by which Triton itself makes tensors."""

Shape = tuple[int, ...]


class OnnxModels:
    """The models that a pool's fallback names. May be used from any thread."""

    def __init__(self, fallback: Fallback) -> None:
        self._known = {model.name: model for model in fallback.models}
        self._opened: dict[str, OnnxModel] = {}
        self._lock = threading.Lock()

    def find(self, name: str, *, version: str | None = None, tags: Collection[str] = ()) -> ServedModel:
        """Return the newest version of a model that matches, as this process offers it, ready to be run.

        Raises
        ------
        ModelNotFoundError
            There is none.
        RepositoryError
            This process does not see the model's folder, or cannot compute it.
        ModelMismatchError
            The model was changed after the pool was started.
        RuntimeMissingError
            There is no ONNX Runtime here.
        """
        opened = self.open(name)
        fits = [model for model in opened.versions if version in {None, model.version} and set(tags) <= set(model.tags)]
        if not fits:
            raise ModelNotFoundError(f"The model repository has no {described(name, version, tags)}.")
        with self._lock:
            opened.load(fits[-1].version)
        return fits[-1]

    def all(self) -> Iterator[ServedModel]:
        """Yield every version of every model that this process can compute."""
        for name in self._known:
            with suppress(RepositoryError):
                yield from self.open(name).versions

    def open(self, name: str) -> OnnxModel:
        """Return a model; raises as :meth:`find`."""
        with self._lock:
            if name not in self._opened:
                if name not in self._known:
                    raise ModelNotFoundError(
                        f"No repository of the pool's groups has the model '{name}'.",
                        hint=f"They have: {', '.join(self._known) or 'none'}.",
                    )
                self._opened[name] = OnnxModel(self._known[name])
            return self._opened[name]


class OnnxModel:
    """One model's folder, and the sessions of its versions.

    Attributes
    ----------
    versions
        What this process offers, oldest first.
    """

    def __init__(self, local: LocalModel) -> None:
        path = local.folder_here
        if not path.is_dir():
            raise RepositoryError(
                f"{socket.gethostname()} does not see {path}, the folder of model {local.name}.",
                hint="Put the model repository where all nodes see it under one path.",
            )
        self._parsed = Parsed.read(path)
        for problem in _problems(self._parsed):
            raise RepositoryError(problem)
        folder = self._parsed.folder()
        if folder.artifact_digest != local.artifact_digest:
            raise ModelMismatchError(
                f"Model {local.name} in {path} was changed after the pool was started.",
                hint="Scores of both would mix: put the old one back, or start the run again.",
            )
        self.versions = tuple(replace(model, numeric_kind=LOCAL_KIND) for model in served(folder))
        self._inner = {name: inner for name, _, inner in self._reshapes("input")}
        self._outer = {name: outer for name, outer, _ in self._reshapes("output")}
        self._sessions: dict[str, Any] = {}

    def load(self, version: str) -> None:
        """Load a version, unless it is.

        Raises
        ------
        RepositoryError, RuntimeMissingError
            It cannot be loaded, or there is no ONNX Runtime.
        """
        if version not in self._sessions:
            path = self._parsed.model_file(version)
            assert path is not None  # a backend that is known has a file name
            name = f"{self._parsed.name}/{version}/{self._parsed.filename}"
            self._sessions[version] = open_onnx(path, name, optimised=True)

    def run(self, model: ServedModel, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of a version that was loaded, for rows.

        Raises
        ------
        RejectedError
            The inputs do not fit the model.
        InferenceError
            ONNX Runtime cannot compute them.
        """
        session = self._sessions[model.version]
        names = [spec.name for spec in model.outputs]
        try:
            feed = {name: self._shaped(array, self._inner.get(name)) for name, array in tensors.items()}
            found = dict(zip(names, session.run(names, feed), strict=True))
            return {name: np.atleast_1d(self._shaped(found[name], self._outer.get(name))) for name in names}
        except onnx_errors() as error:
            kind = RejectedError if type(error).__name__ == "InvalidArgument" else InferenceError
            raise kind(f"ONNX Runtime cannot compute it: {onnx_reason(error)}.") from None
        except ValueError as error:
            raise RejectedError(f"Inputs do not have the shape that the model asks for: {error}.") from None

    def _shaped(self, array: Array, row: Shape | None) -> Array:
        if row is None:
            return array
        return array.reshape((len(array), *row) if self._parsed.max_batch_size else row)

    def _reshapes(self, section: Section) -> Iterator[tuple[str, Shape, Shape]]:
        """Yield tensors that have another shape outside, for clients, than inside, for the model."""
        for outer, inner in zip(self._parsed.declared(section), self._parsed.expected(section), strict=True):
            if outer.shape != inner.shape:
                yield outer.name, outer.shape, inner.shape


def _problems(parsed: Parsed) -> Iterator[str]:
    """Yield why a model cannot be computed without a server."""
    if parsed.backend != BACKEND:
        yield (
            f"Model {parsed.name} is one of Triton's backend '{parsed.backend}'; "
            f"without a server only ONNX models can be computed (backend {BACKEND})."
        )
    for section in UNKNOWN_HERE:
        value = parsed.config.HasField(section) if section == "sequence_batching" else getattr(parsed.config, section)
        if value:
            yield f"{parsed.config_name} has the section {section}, which only a server knows."
