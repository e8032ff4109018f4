"""A model's folder in a Triton repository: what its configuration and files say."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from sonic_parsl.errors import RepositoryError
from sonic_parsl.protocol import TensorSpec
from sonic_parsl.repository.digests import files_of, is_ignored, reading, tree_digest
from sonic_parsl.repository.signature import Signature, load_signature

CONFIG = "config.pbtxt"
CONFIGS = "configs"
"""Folder of Triton's other configurations of the same model, one for each kind of device."""
VERSION = re.compile(r"0|[1-9][0-9]*")
SOURCE = "source.sha256"
MODEL_FILES = {"onnxruntime": "model.onnx", "python": "model.py"}
"""The file a version folder must hold, for the backends known here."""

PLATFORMS = {
    "ensemble": "ensemble",
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
    "tensorrt_plan": "tensorrt",
}
"""Backend of each platform, for configurations that name only that."""

DEFAULT_MAX_BATCH_SIZE = 4
"""What Triton's onnxruntime backend fills in where a configuration has neither tensors nor max_batch_size."""

INVALID = "INVALID"
DATATYPES = {
    number: "BYTES" if name == "TYPE_STRING" else name.removeprefix("TYPE_") for name, number in DataType.items()
}

Section = Literal["input", "output"]


@dataclass(frozen=True)
class ModelFolder:
    """A model of a repository, as Triton would serve it.

    Attributes
    ----------
    name, path
        The folder's name, which is the model's, and where it is.
    backend
        Triton backend: ``onnxruntime``, ``python`` ..., or ``ensemble``.
    max_batch_size
        Most rows of one request; 0 means that the model has no batch dimension.
    inputs, outputs
        From the configuration or, where it has no such section, from the newest
        served ONNX file; empty where only the running model can tell.
    versions
        Those that the version policy serves, oldest first.
    tags
        Labels of each version that has any.
    numeric_kind
        How the model counts, for example ``fp32``.
    """

    name: str
    path: Path
    backend: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    versions: tuple[str, ...]
    tags: dict[str, tuple[str, ...]]
    numeric_kind: str = "fp32"

    def source_digest(self, version: str) -> str:
        """Return the SHA-256 of what a version was made from, as 64 hexadecimal digits.

        It is what the folder's ``source.sha256`` says: an artifact built for one
        kind of device names there what it was built from. Without that file it is
        the digest of names and bytes in the version folder, and of what all
        versions share beside it, whatever the configuration, the place and the
        age of the files.

        Raises
        ------
        RepositoryError
            A file cannot be read, or ``source.sha256`` holds no digest.
        """
        built_from = read_source(self.path)
        if built_from is not None:
            return built_from
        with reading(self.path / version):
            own = files_of(self.path / version)
        aside = {CONFIG, CONFIGS}
        shared = {f"../{name}": path for name, path in served_files(self.path, ()).items() if _top(name) not in aside}
        return tree_digest(own | shared)

    @property
    def artifact_digest(self) -> str:
        """SHA-256 of all that a server gets: :func:`served_files`, read again at each use."""
        return tree_digest(served_files(self.path, self.versions))


def served_files(folder: Path, versions: Collection[str]) -> dict[str, Path]:
    """Return the files of a model without its other versions, by their names in its folder.

    What lies beside the versions belongs to it: labels, or what a model's program reads from there.

    Raises
    ------
    RepositoryError
        A folder cannot be read.
    """
    with reading(folder):
        files = files_of(folder)
    return {name: path for name, path in files.items() if _top(name) in versions or not VERSION.fullmatch(_top(name))}


def _top(name: str) -> str:
    return name.partition("/")[0]


@dataclass(frozen=True)
class Parsed:
    """A model folder as it stands, right or wrong; files are opened once.

    Attributes
    ----------
    path
        The folder.
    config
        ``ModelConfig`` message.
    folders
        Names of the folders in it that are not hidden.
    """

    path: Path
    config: Any
    folders: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Parsed:
        """Read a model folder.

        Raises
        ------
        RepositoryError
            It cannot be read, or its configuration is absent or cannot be parsed.
        """
        with reading(path):
            return cls(path, _read_config(path), tuple(subfolders(path)))

    @property
    def name(self) -> str:
        """The model's name: its folder's."""
        return self.path.name

    @property
    def config_name(self) -> str:
        """What a problem calls the configuration."""
        return f"{self.name}/{CONFIG}"

    @property
    def backend(self) -> str:
        """Triton backend; empty where none is named."""
        return str(self.config.backend) or PLATFORMS.get(self.config.platform, "")

    @cached_property
    def present(self) -> tuple[str, ...]:
        """Versions that have a folder, oldest first. Triton passes over names with leading zeros."""
        return tuple(sorted(filter(VERSION.fullmatch, self.folders), key=int))

    @cached_property
    def versions(self) -> tuple[str, ...]:
        """Versions that the version policy serves, oldest first."""
        policy = self.config.version_policy
        match policy.WhichOneof("policy_choice"):
            case "all":
                return self.present
            case "specific":
                wanted = {str(version) for version in policy.specific.versions}
                return tuple(version for version in self.present if version in wanted)
            case "latest":
                return self.present[max(0, len(self.present) - policy.latest.num_versions) :]
            case _:
                return self.present[-1:]

    @property
    def filename(self) -> str | None:
        """Name of the file each version folder must hold; None where the backend decides."""
        return str(self.config.default_model_filename) or MODEL_FILES.get(self.backend)

    @cached_property
    def signatures(self) -> dict[str, Signature | RepositoryError]:
        """What the ONNX file of each served version says, or why it cannot; absent files are left out."""
        if self.backend != "onnxruntime":
            return {}
        found = {version: self.model_file(version) for version in self.versions}
        return {version: self._load(version, path) for version, path in found.items() if path and path.is_file()}

    def model_file(self, version: str) -> Path | None:
        """Return where a version's model should be, None where only the backend knows."""
        if self.filename is None:
            return None
        path = self.path / version / self.filename
        # A large ONNX model is a folder that holds the graph beside its weights.
        return path / MODEL_FILES["onnxruntime"] if self.backend == "onnxruntime" and path.is_dir() else path

    def _load(self, version: str, path: Path) -> Signature | RepositoryError:
        try:
            return load_signature(path, f"{self.name}/{version}/{self.filename}")
        except RepositoryError as error:
            return error

    @property
    def newest(self) -> Signature | None:
        """Signature of the newest served version, where it can be had."""
        signature = self.signatures.get(self.versions[-1]) if self.versions else None
        return signature if isinstance(signature, Signature) else None

    @cached_property
    def max_batch_size(self) -> int:
        """Most rows of one request, filled in as Triton fills it in."""
        given = int(self.config.max_batch_size)
        if given or (self.config.input and self.config.output):
            return given
        return DEFAULT_MAX_BATCH_SIZE if self.newest and self.newest.takes_batches else 0

    def declared(self, section: Section) -> tuple[TensorSpec, ...]:
        """Return tensors as a client sends or gets them, without the batch dimension."""
        if entries := getattr(self.config, section):
            return tuple(TensorSpec(e.name, DATATYPES.get(e.data_type, INVALID), tuple(e.dims)) for e in entries)
        # A row that is a single number has dims [1], because Triton's dims are never empty.
        return tuple(
            TensorSpec(tensor.name, tensor.datatype, self.row(tensor) or (tensor.shape and (1,)))
            for tensor in self._own(section)
        )

    def expected(self, section: Section) -> tuple[TensorSpec, ...]:
        """Return tensors as the model file should have them, without the batch dimension."""
        entries = getattr(self.config, section)
        if not entries:
            return tuple(TensorSpec(t.name, t.datatype, self.row(t)) for t in self._own(section))
        shapes = [e.reshape.shape if e.HasField("reshape") else e.dims for e in entries]
        return tuple(
            TensorSpec(spec.name, spec.datatype, tuple(shape))
            for spec, shape in zip(self.declared(section), shapes, strict=True)
        )

    def _own(self, section: Section) -> tuple[TensorSpec, ...]:
        if self.newest is None:
            return ()
        return self.newest.inputs if section == "input" else self.newest.outputs

    def row(self, tensor: TensorSpec) -> tuple[int, ...]:
        """Return a tensor's shape without its batch dimension, if it has one."""
        return tensor.shape[1:] if self.max_batch_size else tensor.shape

    @property
    def tags(self) -> dict[str, tuple[str, ...]]:
        """Labels by version, from parameters named ``tags.<version>``."""
        return {
            key.removeprefix("tags."): tuple(tag.strip() for tag in value.string_value.split(",") if tag.strip())
            for key, value in sorted(self.config.parameters.items())
            if key.startswith("tags.")
        }

    @property
    def numeric_kind(self) -> str:
        """How the model counts."""
        parameters = self.config.parameters
        return str(parameters["numeric_kind"].string_value) if "numeric_kind" in parameters else "fp32"

    def folder(self) -> ModelFolder:
        """Return the model as Triton would serve it.

        Raises
        ------
        RepositoryError
            The tensors must come from an ONNX file that cannot be loaded.
        """
        if not (self.config.input and self.config.output):
            for signature in self.signatures.values():
                if isinstance(signature, RepositoryError):
                    raise signature
        return ModelFolder(
            name=self.name,
            path=self.path,
            backend=self.backend,
            max_batch_size=self.max_batch_size,
            inputs=self.declared("input"),
            outputs=self.declared("output"),
            versions=self.versions,
            tags=self.tags,
            numeric_kind=self.numeric_kind,
        )


def subfolders(path: Path) -> Iterator[str]:
    """Yield the names of the folders in `path` that are not hidden, sorted."""
    yield from sorted(child.name for child in path.iterdir() if not is_ignored(child.name) and child.is_dir())


def read_source(path: Path) -> str | None:
    """Return the digest in a model folder's ``source.sha256``, None where there is no such file.

    Raises
    ------
    RepositoryError
        It cannot be read or holds something else.
    """
    file = path / SOURCE
    with reading(file):
        text = file.read_bytes().strip().lower() if file.exists() else None
    if text is None:
        return None
    if not re.fullmatch(rb"[0-9a-f]{64}", text):
        raise RepositoryError(
            f"{path.name}/{SOURCE} is no SHA-256 digest; write 64 hexadecimal digits into it, or remove it."
        )
    return text.decode()


def _read_config(path: Path) -> Any:
    file, name = path / CONFIG, f"{path.name}/{CONFIG}"
    if not file.is_file():
        raise RepositoryError(f"{name} is missing; write one, or move the folder out of the repository.")
    try:
        return text_format.Parse(file.read_bytes().decode(), ModelConfig())
    except UnicodeDecodeError as error:
        raise RepositoryError(f"{name} is not UTF-8 text (byte {error.start}); save it as plain text.") from None
    except text_format.ParseError as error:
        reason = re.sub(r"^\d+:\d+ : ", "", " ".join(str(error).split())).rstrip(".")
        raise RepositoryError(
            f"{name}, line {error.GetLine()}, cannot be parsed ({reason}); correct it as Triton's ModelConfig asks."
        ) from None
