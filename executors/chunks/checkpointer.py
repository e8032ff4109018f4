"""``Checkpointer``: coffea's checkpoints, of this very processor with these very models only."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cloudpickle
from coffea.processor import ProcessorABC, SimpleCheckpointer

from sonic_parsl.client.onnx_models import OnnxModels
from sonic_parsl.errors import ConfigError
from sonic_parsl.poolref import Fallback
from sonic_parsl.protocol import ServedModel, ServerTable

KEY_CHARACTERS = 16
FOREIGN = ("builtins", "abc", "coffea")
"""Packages whose classes are no part of an analysis."""


class Checkpointer(SimpleCheckpointer):  # type: ignore[misc]
    """Keeps the output of finished chunks, and finds it again where nothing that made it has changed.

    coffea's own checkpointer knows a chunk by its file and events only: after a change of the analysis or of
    a model it brings old results back. Here they lie in a folder named for both.

    Parameters
    ----------
    folder
        Where checkpoints are kept, a path or URL that all workers see.
    processor
        The analysis. What counts are its source file, those of the classes it is made of, and its attributes;
        not the modules that these files import, the schema, or the versions of libraries.
    models
        Digest of each model, by name and version; see :func:`model_digests`.
    **options
        ``verbose`` and ``overwrite`` of coffea's SimpleCheckpointer.
    """

    def __init__(
        self, folder: str | Path, *, processor: ProcessorABC, models: Mapping[str, str], **options: bool
    ) -> None:
        self.key = key_of(processor, models)
        super().__init__(f"{str(folder).rstrip('/')}/{self.key}", **options)


def key_of(processor: ProcessorABC, models: Mapping[str, str]) -> str:
    """Return what checkpoints of an analysis with these models are known by."""
    total = hashlib.sha256()
    for part in (*_sources(type(processor)), _pickled(vars(processor))):
        total.update(len(part).to_bytes(8, "big") + part)
    total.update(json.dumps(dict(sorted(models.items()))).encode())
    return total.hexdigest()[:KEY_CHARACTERS]


def model_digests(table: ServerTable, fallback: Fallback | None = None) -> dict[str, str]:
    """Return digests and numeric kind of each model that is served, by name and version.

    Where no server is ready, of those that workers compute themselves.

    Raises
    ------
    ConfigError
        A server tells no digest of a model: then nobody could say whether it has changed.
    """
    found: dict[str, str] = {}
    for entry in table.ready:
        for model in entry.info.models:
            if not model.source_digest:
                raise ConfigError(
                    f"Server {entry.info.id} tells no digest of model {model.name}, so results cannot be kept for it.",
                    hint="Use coffea's SimpleCheckpointer, in a new folder whenever the model has changed.",
                )
            found |= _digest(model)
    if not table.ready and fallback is not None:
        for model in OnnxModels(fallback).all():
            found |= _digest(model)
    return found


def _digest(model: ServedModel) -> dict[str, str]:
    digests = (
        f"{model.source_digest} {model.artifact_digest} {model.numeric_kind}"  # the artifact's: of its settings, too
    )
    return {f"{model.name}/{model.version}": digests}


def _sources(cls: type) -> Iterator[bytes]:
    """Yield the source of each class that the processor is made of: of its whole file where it has one."""
    for part in cls.__mro__:
        if part.__module__.partition(".")[0] not in FOREIGN:
            yield part.__qualname__.encode()
            yield _source(part)


def _source(cls: type) -> bytes:
    module: Any = inspect.getmodule(cls)
    for thing in (module, cls):
        try:
            return inspect.getsource(thing).encode()
        except (OSError, TypeError):
            continue  # a notebook's module has no file; a class made by exec has no lines
    return _pickled(cls)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Writes sets in one order: their own depends on the hashes of strings, which are others in each process."""

    def persistent_id(self, thing: Any) -> Any:
        """Return what stands for a set, the subclass and its attributes included; None for all else."""
        if not isinstance(thing, set | frozenset):
            return None
        return type(thing).__qualname__, sorted(map(_pickled, thing)), getattr(thing, "__dict__", None)


def _pickled(thing: Any) -> bytes:
    """Return bytes that are the same wherever `thing` is."""
    buffer = io.BytesIO()
    _Pickler(buffer).dump(thing)
    return buffer.getvalue()
